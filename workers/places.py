"""Places that threads wait for: all but one for anybody, and one more for those who cannot wait."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

#: How often a thread that waits looks whether it still should.
CHECK_SECONDS = 0.5

Place = TypeVar("Place")


class ClosedError(Exception):
    """There will be no more places."""


class Places(Generic[Place]):
    """Places, taken and put back by any thread: the one put back last goes first.

    The usual never have all of them at once, and the urgent take any: one that is put back is theirs first.
    """

    def __init__(self, free: Iterable[Place]) -> None:
        """``free``: the last one goes first."""
        self._free = list(free)
        self._usual_most = len(self._free) - 1
        self._usual_taken = 0
        self._urgent_waiting = 0
        self._closed = False
        lock = threading.Lock()
        self._usual, self._urgent = threading.Condition(lock), threading.Condition(lock)

    def take(self, *, urgent: bool = False, check: Callable[[], None] = lambda: None) -> Place:
        """A place, as soon as there is one. Raises ClosedError once they are closed.

        ``check`` is called now and then by who waits; what it raises ends the waiting.
        """
        with self._usual:
            if urgent:
                self._urgent_waiting += 1
                try:
                    while not self._urgent.wait_for(lambda: self._free or self._closed, CHECK_SECONDS):
                        check()
                finally:
                    self._urgent_waiting -= 1
            else:
                while not self._usual.wait_for(lambda: self._usual_may() or self._closed, CHECK_SECONDS):
                    check()
            if self._closed:
                raise ClosedError
            self._usual_taken += not urgent
            place = self._free.pop()
            self._wake()
            return place

    def put(self, place: Place, *, urgent: bool = False) -> None:
        """Give a place back, with the urgency with which it was taken."""
        with self._usual:
            self._usual_taken -= not urgent
            self._free.append(place)
            self._wake()

    def close(self) -> None:
        """Nobody waits any longer."""
        with self._usual:
            self._closed = True
            self._usual.notify_all()
            self._urgent.notify_all()

    def _usual_may(self) -> bool:
        return len(self._free) > self._urgent_waiting and self._usual_taken < self._usual_most

    def _wake(self) -> None:
        """One thread a place: a worker may have a hundred that wait. With the lock held."""
        if self._free and self._urgent_waiting:
            self._urgent.notify()
        if self._usual_may():
            self._usual.notify()
