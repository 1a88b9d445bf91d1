"""What one worker process has: its engine, its decode processes, its way to Redis. Built once, before any message."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from workers.delivery import Deliveries
from workers.device import check_engine, decode_processes
from workers.loading import Loading
from workers.marks import TaskMarks
from workers.redis_client import connect
from workers.settings import DEFAULT_REDIS_URL, Settings
from workers.sink import ResultSink
from workers.startup import DECODERS, Startup

if TYPE_CHECKING:
    from workers.audio import DecodePool
    from workers.interface import Engine
    from workers.transcriber import Transcriber


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


def build(
    settings: Settings,
    threads: int,
    parts: Startup | None = None,
    check: Callable[[], None] = lambda: None,
    process: str | None = None,
) -> Runtime:
    """Load the engine and start the decode processes, side by side. Raises ModelLoadError.

    ``check`` is called meanwhile; what it raises ends the loading. ``process``: by which other workers know this one.
    """
    check_engine(settings)
    # Imported here: this module is loaded by everyone who knows the tasks. And before the engine's thread imports too.
    from workers.audio import AudioLimits, DecodePool
    from workers.transcriber import Transcriber

    parts = parts or Startup()
    stopping = threading.Event()
    loading = Loading(settings, parts)
    with contextlib.ExitStack() as undo:
        undo.callback(loading.give_up)
        check()
        redis = connect(settings.redis_url or DEFAULT_REDIS_URL)
        # Renewed from here on: what a fresh worker knows of the others has to be of some age.
        marks = TaskMarks(redis, stopping, settings, process)
        with parts.part(DECODERS):
            processes = decode_processes(settings)
            pool = DecodePool(processes, AudioLimits.from_settings(settings))
        undo.callback(pool.close)
        marks.start()
        undo.callback(marks.close, release=False)
        engine = loading.result()
        undo.pop_all()
    return Runtime(
        engine=engine,
        pool=pool,
        transcriber=Transcriber(engine, pool, settings, threads, stopping),
        sink=ResultSink(redis, stopping),
        deliveries=Deliveries(marks, stopping, engine.healthy),
        stopping=stopping,
    )


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
