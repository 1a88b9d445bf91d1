"""Work that this process already does, or did a moment ago, is joined and not repeated.

After a lost broker connection kombu delivers every message again that this worker had not acknowledged.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from workers.errors import TranscriptionError

log = logging.getLogger(__name__)

#: How long an outcome is kept for a delivery that comes late.
KEEP_SECONDS = 60.0


class SingleFlight:
    """One run per key at a time; whoever comes later waits for it and gets its outcome.

    No deadlock with a pool of threads: whoever is waited for has a thread already.
    """

    def __init__(self, keep_seconds: float = KEEP_SECONDS) -> None:
        self._keep_seconds = keep_seconds
        self._lock = threading.Lock()
        self._flights: dict[str, Future[Any]] = {}
        self._ended: deque[tuple[float, str, Future[Any]]] = deque()

    def run(
        self,
        key: str,
        work: Callable[[], Any],
        *,
        reuse: bool,
        joined: Callable[[Future[Any]], Any] = lambda flight: flight.result(),
    ) -> Any:
        """``work()``, or the outcome of a run of ``key`` that is under way or (with ``reuse``) ended a moment ago.

        ``joined`` makes of that run what is returned. A run that gave its message back has no outcome: the message will
        come again and has to be run then.
        """
        with self._lock:
            self._forget_old()
            flight = self._flights.get(key)
            joins = flight is not None and (reuse or not flight.done())
            if not joins:
                flight = self._flights[key] = Future()
        assert flight is not None
        if joins:
            log.info("task %s is delivered again: joined to the run that it has already", key)
            return joined(flight)
        try:
            result = work()
        except BaseException as error:
            self._end(key, flight, keep=isinstance(error, TranscriptionError))
            flight.set_exception(error)
            raise
        self._end(key, flight, keep=True)
        flight.set_result(result)
        return result

    def _end(self, key: str, flight: Future[Any], *, keep: bool) -> None:
        with self._lock:
            if keep:
                self._ended.append((time.monotonic(), key, flight))
            elif self._flights.get(key) is flight:
                del self._flights[key]

    def _forget_old(self) -> None:
        while self._ended and time.monotonic() - self._ended[0][0] > self._keep_seconds:
            _, key, flight = self._ended.popleft()
            if self._flights.get(key) is flight:
                del self._flights[key]
