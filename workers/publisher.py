"""How a process says something of itself in Redis while it lives, and how others find all that say so.

The keys of a kind are listed in one sorted set, by when they expire: whoever looks for them reads that, and not the
whole keyspace. What a process says expires by itself, so that a name whose key is gone is only not trimmed yet.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import cast

from redis import Redis
from redis.exceptions import RedisError

from workers.messages import Message

log = logging.getLogger(__name__)

#: A process that has said nothing for so long is gone.
EXPIRES_SECONDS = 30
REPEAT_SECONDS = 10.0


class Publisher:
    """Repeats what a process says of itself under ``key``, listed in ``index``, until stopped; takes it back then.

    ``say`` is asked anew each time, in a thread of this object's: a worker may stop consuming a queue. ``key`` ends in
    ``:`` and an id of the process; the name before it should be its own too, and is complained of where it is not.
    """

    def __init__(self, redis: Redis, index: str, key: str, say: Callable[[], Message]) -> None:
        self._redis = redis
        self._index = index
        self._key = key
        self._say = say
        self._wake = threading.Event()
        self._stopped = self._complained = False
        #: From then on, what a process that ended before this one began has said is no longer there.
        self._namesakes_at = float("inf")
        self._thread = threading.Thread(target=self._repeat, name="presence", daemon=True)

    def start(self) -> None:
        """Publish at once and then every 10 s."""
        self._namesakes_at = time.monotonic() + EXPIRES_SECONDS
        self._thread.start()

    def refresh(self) -> None:
        """Publish now: there is news."""
        self._wake.set()

    def stop(self) -> None:
        """Take it back: nobody counts on this process any more."""
        self._stopped = True
        self._wake.set()
        self._thread.join()

    def _repeat(self) -> None:
        while not self._stopped:
            try:
                publish(self._redis, self._index, self._key, self._say().model_dump_json())
                self._look_for_namesakes()
                self._complained = False
            except RedisError as error:
                if not self._complained:
                    log.warning("cannot publish this worker's presence: %s", error)
                self._complained = True
            self._wake.wait(REPEAT_SECONDS)
            self._wake.clear()
        try:
            take_back(self._redis, self._index, self._key)
        except RedisError:
            log.debug("%s is left to expire", self._key)

    def _look_for_namesakes(self) -> None:
        """Once: remote control and Flower know workers by their names alone, and take two of one name for one."""
        if time.monotonic() < self._namesakes_at:
            return
        self._namesakes_at = float("inf")
        mine = self._key.rpartition(":")[0]
        if any(key.rpartition(":")[0] == mine and key != self._key for key, _ in published(self._redis, self._index)):
            name = mine.rpartition(":")[2]
            log.warning(
                "another live worker is called %s too: Flower and remote control take the two for one. "
                "Start each with a --name of its own, as in --name gpu0@%%h",
                name,
            )


def publish(redis: Redis, index: str, key: str, payload: str | bytes) -> None:
    """Say ``payload`` under ``key`` for the next 30 s, and list it in ``index``. Raises RedisError."""
    now = redis.time()[0]  # of one clock, whichever machines the workers are on
    with redis.pipeline() as pipe:
        pipe.set(key, payload, ex=EXPIRES_SECONDS)
        pipe.zadd(index, {key: now + EXPIRES_SECONDS})
        pipe.zremrangebyscore(index, "-inf", now - 1)
        pipe.expire(index, EXPIRES_SECONDS)
        pipe.execute()


def take_back(redis: Redis, index: str, key: str) -> None:
    """Say no more what is published under ``key``. Raises RedisError."""
    with redis.pipeline() as pipe:
        pipe.delete(key)
        pipe.zrem(index, key)
        pipe.execute()


def published(redis: Redis, index: str) -> list[tuple[str, bytes]]:
    """The keys of ``index`` under which something is said now, by name, and what. Two commands. Raises RedisError."""
    names = sorted(cast("list[bytes]", redis.zrange(index, 0, -1)))
    payloads = cast("list[bytes | None]", redis.mget(names) if names else [])
    return [(name.decode(), payload) for name, payload in zip(names, payloads, strict=True) if payload]
