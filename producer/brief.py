"""Short questions to Redis, of many threads at once: all of them are over soon, also while it stands still."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

#: For so long after Redis did not answer nobody asks again.
SILENCE_SECONDS = 1.0

T = TypeVar("T")


class Brief:
    """Asks Redis for those who must not wait for it. While it is silent not each asks anew.

    Thread-safe. Not for what must reach Redis.
    """

    def __init__(self, redis: Redis) -> None:
        """``redis`` waits shortly, and does not retry."""
        self.redis = redis
        self._closed = False
        self._silence: RedisError | None = None
        #: When Redis last did not answer (`time.monotonic`).
        self._silent_at = float("-inf")

    def ask(self, question: Callable[[Redis], T]) -> T:
        """What ``question`` returns or raises; RedisError where Redis did not answer until a moment ago."""
        silence, asked = self._silence, time.monotonic()
        if silence is not None and asked - SILENCE_SECONDS < self._silent_at:
            raise copy.copy(silence)
        try:
            return self._asked(question)
        except (RedisConnectionError, RedisTimeoutError) as error:
            self._silence, self._silent_at = error, time.monotonic()
            raise
        finally:
            if self._closed:
                self._disconnect()

    def close(self) -> None:
        """End its connections: each as soon as no question, of another thread or an interrupted one, is under way."""
        self._closed = True
        self._disconnect()

    def _asked(self, question: Callable[[Redis], T]) -> T:
        try:
            return question(self.redis)
        except (RedisConnectionError, ReadOnlyError):
            # An idle connection may have been forgotten on the way, or lead to a primary of yesterday.
            self._disconnect()
            return question(self.redis)

    def _disconnect(self) -> None:
        # One in use, closed beneath its user, raises all kinds of errors there: ValueError, AttributeError.
        self.redis.connection_pool.disconnect(inuse_connections=False)


class SharedAnswer(Generic[T]):
    """One question of many threads: it is asked by one at a time, and its answer is that of all who asked before."""

    def __init__(self, brief: Brief, question: Callable[[Redis], T]) -> None:
        self.brief, self._question = brief, question
        self._asking = threading.Lock()
        #: When the last question began (`time.monotonic`), and what gives or raises what came of it.
        self._began = float("-inf")
        self._last: Callable[[], T]

    def get(self) -> T:
        """Waits for two questions at most. Raises RedisError, as `Brief.ask`."""
        asked = time.monotonic()
        with self._asking:
            if self._began < asked:
                self._began = time.monotonic()
                self._last = self._outcome()
            return self._last()

    def _outcome(self) -> Callable[[], T]:
        try:
            answer = self.brief.ask(self._question)
        except RedisError as error:
            return _raising(error)
        return lambda: answer


def _raising(error: RedisError) -> Callable[[], Any]:
    def outcome() -> Any:
        raise copy.copy(error)

    return outcome
