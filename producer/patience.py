"""A producer's calls to Redis: made until it answers, however long that takes, and said now and then."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from kombu.exceptions import BatchPublishError, OperationalError
from redis import Redis
from redis.exceptions import RedisError

from producer import room
from producer.disk import may_pass
from producer.errors import FleetError, UsageError
from producer.job import Job
from workers.redis_client import reason, refused_right

log = logging.getLogger(__name__)

RETRY_SECONDS = 2.0
#: How often what is waited for is said again.
SAY_AGAIN_SECONDS = 60.0
#: What Redis and kombu raise where Redis is away, full or too slow.
TROUBLE = (OperationalError, BatchPublishError, RedisError, OSError)

Value = TypeVar("Value")


class Patience:
    """Waits for Redis for a job, until ``stop``, or until the job is gone or given up (FleetError, `Job.current`).

    Not for calls that somebody waits for.
    """

    def __init__(self, redis: Redis, job: Job, stop: threading.Event) -> None:
        self._redis = redis
        self._job = job
        self._stop = stop
        self._said = float("-inf")
        self._about = ""

    def retried(self, call: Callable[[], Value]) -> Value:
        """``call`` until Redis answers. Raises FleetError when stopped meanwhile, and for a right that is missing."""
        while True:
            try:
                return call()
            except TROUBLE as error:
                self.wait_out(error)

    def wait_out(self, error: Exception) -> None:
        """Wait a little after this one of `TROUBLE`. Raises FleetError as `retried` does."""
        if (refusal := refused_right(error)) is not None:
            raise FleetError(f"Redis does not take it: {reason(refusal)}") from error
        cause = error.__cause__ if isinstance(error, BatchPublishError) and error.__cause__ else error
        self.say(f"Redis does not take it, trying again: {reason(cause)}")
        if self._stop.wait(RETRY_SECONDS):
            raise FleetError(f"Redis does not answer: {reason(cause)}") from error
        self.current()

    def current(self) -> Job:
        """`Job.current`, once its files can be read: a network's file system may be away. Raises what that does."""
        while True:
            try:
                return self._job.current()
            except UsageError as error:
                if not may_pass(error) or self._stop.is_set():
                    raise
                self.say(f"trying again: {error.message}")
                self._stop.wait(RETRY_SECONDS)

    def wait_for_memory(self) -> None:
        """Wait until Redis has room (`producer.room`), or ``stop``. Raises FleetError as `retried` does."""
        while not self._stop.is_set() and (why := self.retried(lambda: room.full(self._redis))):
            self.say(f"{why}: waiting until there is room")
            self._stop.wait(RETRY_SECONDS)
            self.current()

    def say(self, what: str, *, at_once: bool = False) -> None:
        """Log what is waited for, unless something was said a short while ago; ``at_once``: unless it is the same.

        What stands in brackets may differ: how long it takes so far.
        """
        about = what.partition(" (")[0]
        if time.monotonic() - self._said >= SAY_AGAIN_SECONDS or (at_once and about != self._about):
            self._said, self._about = time.monotonic(), about
            log.warning("job %s: %s", self._job.id, what)
