"""What a worker does besides running tasks: load its engine first, hold on to its messages, end in good order."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from celery import bootsteps, signals

from workers import broker_clock, exit_codes, keys, runtime
from workers.app import task_threads
from workers.broker_check import ask_broker
from workers.device import batch
from workers.drain import Ending, ended_at_once, handle_signals, reloads, wait_for_threads
from workers.errors import ModelLoadError, SettingsError
from workers.messages import Message
from workers.pool import TaskPool
from workers.presence import Presence
from workers.publisher import Publisher
from workers.redis_client import connect
from workers.settings import DEFAULT_REDIS_URL, Settings, settings
from workers.spare_thread import bulk_threads
from workers.startup import CONNECT, Starting, Startup, overview
from workers.watch import Watch

log = logging.getLogger(__name__)


class EngineStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Loads the engine in the main process before the consumer starts, and waits for the last tasks at the end.

    While it loads, the worker says in Redis what it does; then, what it is and how busy (also in `inspect stats`).
    Celery swallows what a `worker_init` handler raises: such a worker would say `ready` without an engine.
    """

    # Stopped after the consumer and before the pool: no new messages, and the threads still run.
    requires = ("celery.worker.components:Pool",)

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self._presence: Publisher | None = None
        self._parts = Startup.of_process()
        self._startup_seconds: Mapping[str, float] = {}
        self._ending = Ending(settings().drain_seconds)

    def start(self, parent: Any) -> None:
        """Load the engine. What no waiting mends ends the worker with one line and exit code 1.

        Such as a model, a broker, or arguments that this worker cannot have.
        """
        config = settings()
        threads = int(parent.concurrency or task_threads(config))
        name = str(parent.hostname)
        process = uuid.uuid4().hex  # several workers of a host may have one name
        starting = _publisher(
            config, keys.STARTING, keys.starting(name, process), lambda: Starting.of(name, self._parts)
        )
        self._parts.changed = starting.refresh
        starting.start()
        try:
            check_pool(parent)
            with ended_at_once():
                loaded = runtime.build(config, threads, self._parts, lambda: ask_broker(config, self._parts), process)
        except (ModelLoadError, SettingsError, ImportError) as error:
            what = "a package is missing or broken: " if isinstance(error, ImportError) else ""
            log.critical("%s%s%s", exit_codes.CANNOT_START_WORDS, what, error)
            raise SystemExit(exit_codes.CANNOT_START) from error
        finally:
            starting.stop()
        handle_signals(self._ending, str(parent.hostname))
        loaded.deliveries.told_to_end = lambda: self._ending.told
        runtime.install(loaded)
        Watch(loaded, self._ending, config.engine_stall_seconds).start()
        engine = loaded.engine

        def presence() -> Presence:
            queues = [str(name) for name in list(parent.app.amqp.queues.consume_from)]
            # What producers make their messages for.
            bulk = bulk_threads(threads)
            return Presence.of(name, queues, engine.facts, bulk, engine.load(), self._startup_seconds)

        self._presence = _publisher(config, keys.WORKERS, keys.worker(name, process), presence)
        self._presence.start()
        facts, windows = engine.facts, batch(config)
        sizes = f"{windows.max_num_seqs} windows at once, {windows.encode_batch} of them encoded together"
        log.info("engine ready: %s on %s, %s", facts.model, facts.device, sizes)
        connecting = self._parts.begin(CONNECT)

        def ready(**_: Any) -> None:
            self._parts.end(connecting)
            self._ready(engine.facts.model)

        signals.worker_ready.connect(ready, weak=False, dispatch_uid="whisper-fleet-ready")

    def info(self, parent: Any) -> dict[str, Any]:
        """For `inspect stats`: how busy the engine is, and how long the worker's start took."""
        try:
            load = runtime.current().engine.load()
        except RuntimeError:
            return {}
        return {"engine": dataclasses.asdict(load), "startup_seconds": dict(self._startup_seconds)}

    def stop(self, parent: Any) -> None:
        """No producer counts on this worker any more; what runs has its grace, and the engine until then."""
        by_control = self._ending.deadline is None
        if by_control:
            self._ending.begin()
        if by_control or self._ending.told:  # and not for an engine that was lost
            with contextlib.suppress(RuntimeError):  # it never loaded
                runtime.current().deliveries.tell_ending()
        if self._presence is not None:
            self._presence.stop()
            self._presence = None
        if not wait_for_threads(parent, self._ending):
            self._leave(parent)

    def terminate(self, parent: Any) -> None:
        """The end that Celery takes for a cold one: no grace."""
        self._ending.begin(at_once=True)
        self.stop(parent)
        close_runtime(parent)

    def _ready(self, model: str) -> None:
        """Messages are taken from now on."""
        seconds, total = self._parts.seconds(), self._parts.total_seconds
        self._startup_seconds = {**seconds, "total": round(total, 3)}
        if self._presence is not None:
            self._presence.refresh()
        log.info("ready after %.1f s with %s: %s (s; some beside others)", total, model, overview(seconds))

    def _leave(self, parent: Any) -> None:
        """End without the threads that do not: their messages go back first, and Python would wait for them.

        After a SIGHUP with a failure: what starts this process anew would not run, so that its supervisor has to.
        """
        log.error("Some records do not stop; this worker leaves them. They go back to the queue.")
        parent.consumer.shutdown()
        settle_exit_code(parent)
        # Not the whole runtime: a decoder that is ended would be taken for a fault of its file by a task that waits.
        current = runtime.current()
        current.closing = True
        current.deliveries.close()
        current.engine.close()
        logging.shutdown()
        os._exit(parent.exitcode or (exit_codes.FAILED if reloads(self._ending) else 0))


def check_pool(worker: Any) -> None:
    """Raise SettingsError for a pool whose threads are not the fleet's own, or not as many from start to end."""
    if not issubclass(worker.pool_cls, TaskPool):
        raise SettingsError("-P: the tasks of a worker run in threads of its own: leave it out")
    if worker.autoscale:
        raise SettingsError("--autoscale: a worker has a fixed number of threads: -c, or WHISPER_CONCURRENCY")


def _publisher(config: Settings, index: str, key: str, say: Callable[[], Message]) -> Publisher:
    return Publisher(connect(config.redis_url or DEFAULT_REDIS_URL), index, key, say)


class LeaseStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Keeps the messages that this worker holds from reaching the visibility timeout.

    Redis gives a message out again when its holder has been silent for that long. Re-stamping the ones we hold lets
    the time-out be a minute, so that a killed worker's records are back soon and long ones do not run twice.
    Uses two private attributes of kombu's QoS: tests/workers/test_bootsteps.py guards them.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self._timer: Any = None

    def start(self, parent: Any) -> None:
        """Renew the hold again and again (`Settings.beat_seconds`)."""
        channel = parent.task_consumer.channel
        broker_clock.install()
        with channel.conn_or_acquire() as client:
            broker_clock.measure(client)
        self._timer = parent.timer.call_repeatedly(settings().beat_seconds, renew_leases, (channel,))

    def stop(self, parent: Any) -> None:
        """Stop renewing after a lost connection. At the worker's end its last records still need their messages."""
        if parent.blueprint.state == bootsteps.RUN:
            self.shutdown(parent)

    def shutdown(self, parent: Any) -> None:
        """Stop renewing: what is held now goes back to the queue."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def renew_leases(channel: Any) -> int:
    """Stamp every message that ``channel`` has delivered and not acknowledged as delivered now. Returns how many."""
    held = [tag for tag in list(channel.qos._delivered) if tag not in channel.qos._dirty]
    if held:
        with channel.conn_or_acquire() as client:
            broker_clock.measure(client)
            client.zadd(channel.unacked_index_key, dict.fromkeys(held, broker_clock.now()), xx=True)
    return len(held)


@signals.worker_shutdown.connect(weak=False)  # type: ignore[untyped-decorator]
def close_runtime(sender: Any, **_: Any) -> None:
    """End the engine once the last task has: the pool outlives the steps that require it."""
    try:
        current = runtime.current()
    except RuntimeError:
        return
    settle_exit_code(sender)
    runtime.install(None)
    current.close()


def settle_exit_code(worker: Any) -> None:
    """What ended a worker whose engine had loaded is no reason not to start another: never `exit_codes.CANNOT_START`.

    Told to end through remote control, Celery makes its message the exit code.
    """
    if isinstance(worker.exitcode, str):
        worker.exitcode = 0
    elif worker.exitcode == exit_codes.CANNOT_START:
        worker.exitcode = exit_codes.FAILED
