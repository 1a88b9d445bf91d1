"""An outage of Redis must not end a worker.

Celery closes a broken connection twice (`Connection.collect`, then `close`). In kombu 5.7 the first time may stop at a
channel whose socket raises, and leave others open whose messages then cannot be given back: the connection has no
address any more. That ends in an AttributeError, which nobody expects there, and so in the end of the worker.
tests/workers/test_lost_connection.py guards it.
"""

from __future__ import annotations

from typing import Any

from celery import bootsteps
from kombu.transport.redis import Channel
from redis.exceptions import ConnectionError as RedisConnectionError

_connparams: Any = Channel._connparams


def _of_an_open_connection(self: Any, *arguments: Any, **options: Any) -> Any:
    """As kombu's, but that a closed connection is what Celery expects: an error of the connection."""
    if self.connection.client is None:
        raise RedisConnectionError("the connection to the broker is closed")
    return _connparams(self, *arguments, **options)


def install() -> None:
    """Let a channel of a closed connection say so. Does nothing the second time."""
    Channel._connparams = _of_an_open_connection  # type: ignore[method-assign]


class LostConnectionStep(bootsteps.Step):  # type: ignore[misc]
    """Installs it in workers, before they connect."""

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        install()
