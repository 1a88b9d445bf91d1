"""A call's answer is stored, and what follows it is sent, however long Redis is full or away.

Celery tries again only where the connection is at fault, and what follows a call (chain, chord, link) four times within
a second. A Redis that is full, or no master any more, refuses the answer; Celery would take that for the task's end,
and acknowledge a message whose answer nobody has, or leave a chord without one of its parts. A worker that is told to
end meanwhile gives the message back (`workers.bootsteps`). Only a task's thread waits so: the main one has other
messages to hold on to. tests/workers/test_delivery.py guards it.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from celery import bootsteps
from celery.backends.redis import RedisBackend
from redis.exceptions import NoPermissionError, OutOfMemoryError, ReadOnlyError, RedisError

from workers.redis_client import passes

log = logging.getLogger(__name__)

#: Between two tries to count a part of a chord.
AGAIN_SECONDS = 1.0


def _passes(self: RedisBackend, error: Exception) -> bool:
    """Whatever Redis says, but that this worker has not the right to: nobody's waiting mends that."""
    if isinstance(error, ReadOnlyError):  # the next try is to connect anew: another may be the primary by now
        self.client.connection_pool.disconnect(inuse_connections=False)
    of_redis = isinstance(error, RedisError) and not isinstance(error, NoPermissionError)
    return of_redis and threading.current_thread() is not threading.main_thread()


def _callback_passes(error: Exception) -> bool:
    return threading.current_thread() is not threading.main_thread() and passes(error)


def _claim_seconds(backend: RedisBackend) -> float:
    """For how long a chord's last part keeps others from sending what follows (Celery's `on_chord_part_return`)."""
    return max(5.0, 2.0 * (backend.app.conf.result_chord_join_timeout or 5.0))


def _outlasting(part_return: Callable[..., Any]) -> Callable[..., Any]:
    """`RedisBackend.on_chord_part_return`, which counts each part once: again, until Redis takes it."""

    @functools.wraps(part_return)
    def outlasted(self: RedisBackend, *arguments: Any, **options: Any) -> Any:
        while True:
            try:
                return part_return(self, *arguments, **options)
            except RedisError as error:
                if not _passes(self, error):
                    raise
                log.warning("a part of a chord is not counted yet: %s", error)
                refused = isinstance(error, OutOfMemoryError)
            # One whose reply was lost may have claimed what is to follow, for so long.
            time.sleep(AGAIN_SECONDS if refused else _claim_seconds(self) + 1.0)

    return outlasted


class ResultsStep(bootsteps.Step):  # type: ignore[misc]
    """Lets this worker try again. Not a setting of the app: whoever only reads results is to hear of an outage."""

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        RedisBackend.exception_safe_to_retry = _passes
        RedisBackend.on_chord_part_return = _outlasting(RedisBackend.on_chord_part_return)
        parent.app.backend.always_retry = True
        parent.app.amqp.outlasts = _callback_passes
