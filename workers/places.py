"""Places that threads wait for, the last of which is only for those who cannot wait."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Generic, TypeVar

Place = TypeVar("Place")


class ClosedError(Exception):
    """There will be no more places."""


class Places(Generic[Place]):
    """Free places, taken and put back by any thread: the one put back last goes first.

    The usual leave one free, which the urgent take when no other is; put back, a place goes to the urgent first.
    """

    def __init__(self, free: Iterable[Place]) -> None:
        """``free``: the last one goes first."""
        self._free = list(free)
        lock = threading.Lock()
        self._usual, self._urgent = threading.Condition(lock), threading.Condition(lock)
        self._urgent_waiting = 0
        self._closed = False

    def take(self, *, urgent: bool = False) -> Place:
        """A place, as soon as there is one. Raises ClosedError once they are closed."""
        with self._usual:
            if urgent:
                self._urgent_waiting += 1
                self._urgent.wait_for(lambda: self._free or self._closed)
                self._urgent_waiting -= 1
            else:
                self._usual.wait_for(lambda: len(self._free) > 1 or self._closed)
            if self._closed:
                raise ClosedError
            place = self._free.pop()
            self._wake()
            return place

    def put(self, place: Place) -> None:
        """Give a place back."""
        with self._usual:
            self._free.append(place)
            self._wake()

    def close(self) -> None:
        """Nobody waits any longer."""
        with self._usual:
            self._closed = True
            self._usual.notify_all()
            self._urgent.notify_all()

    def _wake(self) -> None:
        """One thread a place: a worker may have a hundred that wait. With the lock held."""
        if self._free and self._urgent_waiting:
            self._urgent.notify()
        elif len(self._free) > 1:
            self._usual.notify()
