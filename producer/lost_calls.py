"""Calls that Redis has lost (a flush, a crash, a failover to an older copy) are sent again: none waits for ever.

A call whose message is neither queued nor held by a worker, at two looks with a look for its answer between, is lost.
Sent again under its old id, it is joined to the run that it may have after all (`workers.marks`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kombu.exceptions import OperationalError
from redis import Redis
from redis.exceptions import RedisError

from producer.in_flight import calls_on_their_way

log = logging.getLogger(__name__)

#: Between the two looks: a message on its way is nowhere for a moment.
LOOK_AGAIN_SECONDS = 1.0
#: Looking may take this share of the time.
_LOOK_SHARE = 0.05


@dataclass(slots=True)
class _Sent:
    queue: str
    again: Callable[[], None]
    at: float


class LostCalls:
    """Looks after calls that have had no answer for ``stall_seconds``. One thread calls `step`; any may call `sent`."""

    def __init__(self, redis: Redis, stall_seconds: float) -> None:
        self._redis = redis
        self._stall_seconds = stall_seconds
        self._lock = threading.Lock()
        self._sent: dict[str, _Sent] = {}
        self._missing: set[str] = set()
        self._next_look = 0.0

    def sent(self, id: str, queue: str, again: Callable[[], None]) -> None:
        """A call was sent to ``queue``; ``again`` sends it once more."""
        with self._lock:
            self._sent[id] = _Sent(queue, again, time.monotonic())

    def step(self, outstanding: Iterable[str]) -> None:
        """Look, where it is time to; calls that are not ``outstanding`` any more are forgotten. Raises RedisError."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + min(LOOK_AGAIN_SECONDS, self._stall_seconds)
        waiting = set(outstanding)
        with self._lock:
            # What was sent this moment may not have been outstanding a moment ago.
            ended = [id for id, sent in self._sent.items() if id not in waiting and now - sent.at > LOOK_AGAIN_SECONDS]
            for id in ended:
                del self._sent[id]
            old = {id: sent for id, sent in self._sent.items() if now - sent.at >= self._stall_seconds}
        if old:
            self._look(old)

    def _look(self, old: dict[str, _Sent]) -> None:
        began = time.monotonic()
        missing = old.keys() - calls_on_their_way(self._redis, {sent.queue for sent in old.values()})
        lost = missing & self._missing
        if lost:
            log.warning("%d calls were lost by Redis and are sent again", len(lost))
        for id in lost:
            try:
                old[id].again()
            except (OperationalError, OSError) as error:
                raise RedisError(str(error)) from error
            missing.discard(id)
        now = time.monotonic()
        for id in old.keys() - missing:
            old[id].at = now  # here it is; looked at again when it has been quiet for as long once more
        self._missing = missing
        self._next_look = now + max(LOOK_AGAIN_SECONDS, (now - began) / _LOOK_SHARE)
