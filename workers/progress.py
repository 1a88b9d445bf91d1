"""Tells an engine that works from one that hangs: both have windows in flight, only one of them moves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Progress:
    """How long the windows in flight have shown no sign of progress. Safe from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._in_flight = 0
        self._moved = clock()

    def started(self) -> None:
        """A window was handed to the engine. Only the first of several restarts the clock: a hung engine gets more."""
        with self._lock:
            if not self._in_flight:
                self._moved = self._clock()
            self._in_flight += 1

    def moved(self) -> None:
        """The engine gave a sign: tokens, or a window's end."""
        with self._lock:
            self._moved = self._clock()

    def ended(self) -> None:
        """A window is no longer in flight. That alone is no sign: it may have been given up."""
        with self._lock:
            self._in_flight -= 1

    def stalled_seconds(self) -> float:
        """Seconds since the last sign while windows wait for one; 0.0 without any."""
        with self._lock:
            return self._clock() - self._moved if self._in_flight else 0.0
