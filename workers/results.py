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
from redis.exceptions import RedisError


def _whatever_redis_says(self: RedisBackend, error: Exception) -> bool:
    return isinstance(error, RedisError) and threading.current_thread() is not threading.main_thread()


class ResultsStep(bootsteps.Step):  # type: ignore[misc]
    """Lets workers try again; needs ``result_backend_always_retry``."""

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        RedisBackend.exception_safe_to_retry = _whatever_redis_says
