"""The time that a benchmark has, on a machine of any speed: no repeat begins that would not end in it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


class Budget:
    """So many minutes from now, and what the repeats took until now. ``None``: as long as it takes.

    ``reserve``: what comes after the repeats takes so many times a repeat.
    """

    def __init__(self, minutes: float | None, reserve: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._deadline = None if minutes is None else clock() + minutes * 60.0
        self._reserve = reserve
        #: Of all repeats, and of what a series took beside its own.
        self._longest = self._preparation = 0.0
        self._count = 0
        self._in_repeats = 0.0

    def series(self, of: Iterable[T]) -> Iterator[T]:
        """Those of which there is time for one repeat, with what a series takes before its first and after its last.

        Each is given once the one before it is done; the budget's first always is.
        """
        for one in of:
            if self._over(self._preparation):
                return
            began, before = self._clock(), self._in_repeats
            yield one
            beside = self._clock() - began - (self._in_repeats - before)
            self._preparation = max(self._preparation, beside)

    def repeats(self, of: Iterable[T]) -> Iterator[T]:
        """Those of which there is time for, each given once the one before it is done. The first always is."""
        for one in of:
            if self._over():
                return
            began = self._clock()
            yield one
            seconds = self._clock() - began
            self._in_repeats += seconds
            self._longest = max(self._longest, seconds)
            self._count += 1

    def _over(self, preparation: float = 0.0) -> bool:
        """Whether one more, as long as the longest so far, and what comes after it would end too late."""
        if self._deadline is None or self._count == 0:
            return False
        return self._clock() + preparation + self._longest * (1.0 + self._reserve) > self._deadline
