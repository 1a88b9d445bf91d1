"""What a worker does besides running tasks: load the engine before the first message, and hold on to its messages."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from celery import bootsteps, signals

from workers import runtime
from workers.app import task_threads
from workers.errors import ModelLoadError, SettingsError
from workers.presence import Presence, PresencePublisher
from workers.redis_client import connect
from workers.settings import DEFAULT_REDIS_URL, settings

log = logging.getLogger(__name__)


class EngineStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Loads the engine in the main process before the consumer starts.

    Celery swallows what a `worker_init` handler raises: such a worker would say `ready` without an engine.
    """

    requires = ("celery.worker.components:Pool",)

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self._presence: PresencePublisher | None = None

    def start(self, parent: Any) -> None:
        """Load the engine. A model that cannot load ends the worker with one line and exit code 1."""
        config = settings()
        began = time.monotonic()
        threads = int(parent.concurrency or task_threads(config))
        try:
            loaded = runtime.build(config, threads)
        except (ModelLoadError, SettingsError) as error:
            log.critical("The worker cannot start: %s", error)
            raise SystemExit(1) from error
        runtime.install(loaded)
        facts = loaded.engine.facts
        log.info("engine ready: %s on %s, %.1f s", facts.model, facts.device, time.monotonic() - began)
        queues = [str(name) for name in parent.app.amqp.queues.consume_from]
        self._presence = PresencePublisher(
            connect(config.redis_url or DEFAULT_REDIS_URL), Presence.of(parent.hostname, queues, facts, threads)
        )
        self._presence.start()

    def stop(self, parent: Any) -> None:
        """No producer counts on this worker from here on; the engine stays until the tasks have ended."""
        if self._presence is not None:
            self._presence.stop()
            self._presence = None

    terminate = stop


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
        """Renew the hold every ``lease_seconds``."""
        channel = parent.task_consumer.channel
        self._timer = parent.timer.call_repeatedly(settings().lease_seconds, renew_leases, (channel,))

    def stop(self, parent: Any) -> None:
        """Stop renewing: the consumer is going away, and its messages with it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def renew_leases(channel: Any) -> int:
    """Stamp every message that ``channel`` has delivered and not acknowledged as delivered now. Returns how many."""
    held = [tag for tag in list(channel.qos._delivered) if tag not in channel.qos._dirty]
    if held:
        with channel.conn_or_acquire() as client:
            client.zadd(channel.unacked_index_key, dict.fromkeys(held, time.time()), xx=True)
    return len(held)


@signals.worker_shutting_down.connect(weak=False)  # type: ignore[untyped-decorator]
def begin_drain(**_: Any) -> None:
    """Running records have ``drain_seconds`` from SIGTERM on; what is left then goes back to the queue."""
    try:
        current = runtime.current()
    except RuntimeError:
        return
    timer = threading.Timer(settings().drain_seconds, current.stopping.set)
    timer.daemon = True  # this runs in a signal handler: only arm it
    timer.start()


@signals.worker_shutdown.connect(weak=False)  # type: ignore[untyped-decorator]
def close_runtime(**_: Any) -> None:
    """End the engine once the last task has: the pool outlives the steps that require it."""
    try:
        current = runtime.current()
    except RuntimeError:
        return
    current.close()
    runtime.install(None)
