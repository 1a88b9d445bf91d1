"""A call's answer is stored, however long Redis is full or away.

Celery tries again only where the connection is at fault. A Redis that is full, or no master any more, refuses the
answer; Celery would take that for the task's end, and acknowledge a message whose answer nobody has. A worker that is
told to end meanwhile gives the message back (`workers.bootsteps`). Only a task's thread waits so: the main one has
other messages to hold on to. tests/workers/test_delivery.py guards it.
"""

from __future__ import annotations

import threading
from typing import Any

from celery import bootsteps
from celery.backends.redis import RedisBackend
from redis.exceptions import NoPermissionError, ReadOnlyError, RedisError


def _passes(self: RedisBackend, error: Exception) -> bool:
    """Whatever Redis says, but that this worker has not the right to: nobody's waiting mends that."""
    if isinstance(error, ReadOnlyError):  # the next try is to connect anew: another may be the primary by now
        self.client.connection_pool.disconnect(inuse_connections=False)
    of_redis = isinstance(error, RedisError) and not isinstance(error, NoPermissionError)
    return of_redis and threading.current_thread() is not threading.main_thread()


class ResultsStep(bootsteps.Step):  # type: ignore[misc]
    """Lets this worker try again. Not a setting of the app: whoever only reads results is to hear of an outage."""

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        RedisBackend.exception_safe_to_retry = _passes
        parent.app.backend.always_retry = True
