"""Remote control for clients that do not know this app's settings (``celery -b URL inspect ping``).

A client that waits for a worker's reply notes its queue in a table in Redis, with the separator of its own app: the
default one, where this app has another (``sep`` in `workers.app`). Celery 5.7 with kombu 5.7 then fails to reply, and
one such client that was killed leaves its note behind: from then on nobody gets a reply, Flower neither. So this
worker reads the notes of both kinds; what is neither is passed over.
"""

from __future__ import annotations

import re
from typing import Any

from celery import bootsteps
from kombu.transport.redis import Channel


class BindingsStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Has every connection of this process read the tables of both kinds: replies go out by one of Celery's pool."""

    requires = ("celery.worker.consumer.connection:Connection",)

    def start(self, parent: Any) -> None:
        """In a worker's process only, and again after a lost connection, which changes nothing."""
        Channel.get_table = table  # type: ignore[method-assign]


def table(channel: Any, exchange: str) -> list[tuple[str, str, str]]:
    """The routing keys, patterns and queues that are noted for ``exchange``, whoever noted them."""
    with channel.conn_or_acquire() as client:
        notes = [note.decode(errors="replace") for note in client.smembers(channel.keyprefix_queue % exchange)]
    found = []
    for note in notes:
        parts = re.split("|".join(map(re.escape, (channel.sep, Channel.sep))), note)
        if len(parts) == 3:
            found.append((parts[0], parts[1], parts[2]))
    return found
