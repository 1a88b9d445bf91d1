"""An outage of Redis must not end a worker.

Celery closes a broken connection twice (`Connection.collect`, then `close`). In kombu 5.7 the first time may stop at a
channel whose socket raises, and leave others open whose messages then cannot be given back: the connection has no
address any more. That ends in an AttributeError, which nobody expects there, and so in the end of the worker.
tests/workers/test_lost_connection.py guards it.

A Redis that answers but refuses every write (it is full, its disk is, it is no master any more) is no lost connection,
but Celery connects anew all the same (`broker_channel_error_retry`): at once, five times a second. Here, once a second.
tests/workers/test_kept.py guards that. A right that is missing is named: Celery says no more than that it connects.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from celery import bootsteps
from celery.worker.consumer import Consumer
from kombu.transport.redis import Channel
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, ResponseError

from workers.redis_client import reason

log = logging.getLogger(__name__)

REFUSED_SECONDS = 1.0
#: What Celery's consumer does before it connects again.
CONNECTING_ANEW = ("on_connection_error_before_connected", "on_connection_error_after_connected")

_connparams: Any = Channel._connparams


def _of_an_open_connection(self: Any, *arguments: Any, **options: Any) -> Any:
    """As kombu's, but that a closed connection is what Celery expects: an error of the connection."""
    if self.connection.client is None:
        raise RedisConnectionError("the connection to the broker is closed")
    return _connparams(self, *arguments, **options)


def _patient(connect_anew: Callable[..., None]) -> Callable[..., None]:
    def waiting(self: Consumer, error: Exception) -> None:
        if isinstance(error, NoPermissionError):
            log.error("Redis: %s", reason(error))
        if isinstance(error, ResponseError):
            time.sleep(REFUSED_SECONDS)
        if self.hub is not None:  # what kombu does for the old connection at every turn of the loop: it never stops
            self.hub.on_tick.clear()
        connect_anew(self, error)

    return waiting


_anew = {name: getattr(Consumer, name) for name in CONNECTING_ANEW}


def install() -> None:
    """Let a channel of a closed connection say so, and a refusal cost a moment. Does nothing the second time."""
    Channel._connparams = _of_an_open_connection  # type: ignore[method-assign]
    for name, connect_anew in _anew.items():
        setattr(Consumer, name, _patient(connect_anew))


class LostConnectionStep(bootsteps.Step):  # type: ignore[misc]
    """Installs it in workers, before they connect."""

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        install()
