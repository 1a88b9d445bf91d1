"""What Flower would hear of: the events of workers, as they come."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from celery import Celery

from fleet import listeners, wait_for
from workers.redis_client import connect


@contextlib.contextmanager
def events_heard(app: Celery) -> Iterator[list[dict[str, Any]]]:
    """The events that ``app``'s broker tells from here to the end of the block."""
    events: list[dict[str, Any]] = []
    receivers: list[Any] = []

    def capture() -> None:
        with app.connection() as connection:
            receivers.append(app.events.Receiver(connection, handlers={"*": events.append}))
            receivers[0].capture(limit=None, timeout=None, wakeup=False)

    redis = connect(app.conf.broker_url)
    others = listeners(redis)
    listener = threading.Thread(target=capture, daemon=True)
    listener.start()
    try:
        wait_for(lambda: listeners(redis) > others)
        yield events
    finally:
        for receiver in receivers:
            receiver.should_stop = True  # seen within a second
        listener.join(30)
