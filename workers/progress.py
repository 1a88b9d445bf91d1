"""What an engine has in hand: how full its batch is, and whether any of it moves. A hung engine has work and stands."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from workers.interface import EngineLoad


class Progress:
    """The windows in flight, and how long they have shown no sign of progress. Safe from any thread.

    ``room``: how many windows the engine's batch holds.
    """

    def __init__(self, room: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        self._room = room
        self._clock = clock
        self._lock = threading.Lock()
        self._in_flight = 0
        self._moved = self._counted = clock()
        self._busy_seconds = self._full_seconds = 0.0

    def started(self) -> None:
        """A window was handed to the engine. Only the first of several restarts the clock: a hung engine gets more."""
        with self._lock:
            self._count()
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
            self._count()
            self._in_flight -= 1

    def stalled_seconds(self) -> float:
        """Seconds since the last sign while windows wait for one; 0.0 without any."""
        with self._lock:
            return self._clock() - self._moved if self._in_flight else 0.0

    def load(self) -> EngineLoad:
        """How full the batch is and was, as if the engine took each window for which it has room."""
        with self._lock:
            self._count()
            running = min(self._in_flight, self._room)
            return EngineLoad(running, self._in_flight - running, self._busy_seconds, self._full_seconds)

    def batches(self) -> int:
        """How many batches the windows in flight are: the last of them waits for as many, its own included."""
        with self._lock:
            return max(1, -(-self._in_flight // self._room))

    def _count(self) -> None:
        """Add the time since the last change. With the lock held."""
        now = self._clock()
        passed, self._counted = now - self._counted, now
        self._busy_seconds += passed if self._in_flight else 0.0
        self._full_seconds += passed if self._in_flight >= self._room else 0.0
