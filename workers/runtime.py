"""What one worker process has: its engine, its decode processes, its way to Redis. Built once, before any message."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from workers.delivery import Deliveries
from workers.device import usable_cores
from workers.marks import TaskMarks
from workers.redis_client import connect
from workers.settings import DEFAULT_REDIS_URL, Settings
from workers.sink import ResultSink

if TYPE_CHECKING:
    from workers.audio import DecodePool
    from workers.interface import Engine
    from workers.transcriber import Transcriber

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Runtime:
    """The parts that every task of this process shares."""

    engine: Engine
    pool: DecodePool
    transcriber: Transcriber
    sink: ResultSink
    deliveries: Deliveries
    #: Set when the worker's grace is over: whoever waits for the engine or for Redis gives up.
    stopping: threading.Event = field(default_factory=threading.Event)
    #: The engine is being ended on purpose: that it answers no more is no fault then.
    closing: bool = False

    def close(self) -> None:
        """End the engine's and the decoders' processes."""
        self.closing = True
        self.stopping.set()
        self.deliveries.close()
        self.pool.close()
        self.transcriber.close()
        self.engine.close()


def build(settings: Settings, threads: int) -> Runtime:
    """Load the engine and start the decode processes. Raises ModelLoadError."""
    # Imported here: this module is loaded by everyone who knows the tasks.
    from workers.audio import AudioLimits, DecodePool
    from workers.transcriber import Transcriber

    stopping = threading.Event()
    redis = connect(settings.redis_url or DEFAULT_REDIS_URL)
    # Renewed from here on: what a fresh worker knows of the others has to be of some age.
    marks = TaskMarks(redis, stopping, settings)
    pool = DecodePool(settings.decode_processes or min(8, len(usable_cores())), AudioLimits.from_settings(settings))
    marks.start()
    try:
        engine = _engine(settings)
    except BaseException:
        marks.close(release=False)
        pool.close()
        raise
    return Runtime(
        engine=engine,
        pool=pool,
        transcriber=Transcriber(engine, pool, settings, threads, stopping),
        sink=ResultSink(redis, stopping),
        deliveries=Deliveries(marks, stopping, engine.healthy),
        stopping=stopping,
    )


def _engine(settings: Settings) -> Engine:
    if settings.engine == "standin":
        from workers.standin import StandInEngine

        log.warning("STAND-IN ENGINE: this worker transcribes nothing; its texts are made up for load tests.")
        return StandInEngine(settings)
    from workers import golden
    from workers.engine import VllmEngine

    engine = VllmEngine(settings)
    if settings.golden_check:
        try:
            golden.check(engine)
        except BaseException:
            engine.close()
            raise
    return engine


_current: Runtime | None = None


def current() -> Runtime:
    """The runtime of this process. Raises RuntimeError in a process whose worker has not loaded it."""
    if _current is None:
        raise RuntimeError("this process has no engine: tasks run in a worker started with `celery -A workers worker`")
    return _current


def install(runtime: Runtime | None) -> None:
    """Make ``runtime`` this process's own."""
    global _current
    _current = runtime
