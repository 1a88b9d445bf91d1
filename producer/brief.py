"""Short questions to Redis, of many threads at once: all of them are over soon, also while it stands still."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

#: For so long after Redis did not answer nobody asks again.
SILENCE_SECONDS = 1.0

T = TypeVar("T")


class Brief:
    """Asks Redis for those who must not wait for it: one at a time, and while it is silent not each anew.

    Thread-safe. Not for what must reach Redis.
    """

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self._asking = threading.Lock()
        self._silence: RedisError | None = None
        #: When Redis last did not answer (`time.monotonic`).
        self._silent_at = float("-inf")

    def ask(self, question: Callable[[Redis], T]) -> T:
        """What ``question`` returns or raises; RedisError where Redis did not answer until a moment ago."""
        asked = time.monotonic()
        with self._asking:
            if self._silence is not None and asked - SILENCE_SECONDS < self._silent_at:
                raise copy.copy(self._silence)
            try:
                return question(self.redis)
            except (RedisConnectionError, RedisTimeoutError) as error:
                self._silence, self._silent_at = error, time.monotonic()
                raise
