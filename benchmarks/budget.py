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
        self._longest = 0.0
        self._count = 0

    @property
    def over(self) -> bool:
        """Whether one more, as long as the longest so far, and what comes after it would end too late."""
        if self._deadline is None or self._count == 0:
            return False
        return self._clock() + self._longest * (1.0 + self._reserve) > self._deadline

    def repeats(self, of: Iterable[T]) -> Iterator[T]:
        """Those of which there is time for, each given once the one before it is done. The first always is."""
        for one in of:
            if self.over:
                return
            began = self._clock()
            yield one
            self._longest = max(self._longest, self._clock() - began)
            self._count += 1
