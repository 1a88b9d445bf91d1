"""Room in the engine: how many windows wait or run there at once, those of one task and of all, and those of calls."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

#: Leaves the room that a window has.
Leave = Callable[[], None]

#: How often a thread that waits looks whether it still should.
CHECK_SECONDS = 0.5


class Rooms:
    """Thread-safe. Interactive calls have as much room again, that jobs do not take."""

    def __init__(self, windows: int, check: Callable[[], None]) -> None:
        """``check`` is called now and then by who waits; what it raises ends the waiting."""
        self._of_jobs, self._of_calls = threading.Semaphore(windows), threading.Semaphore(windows)
        self._check = check

    def enter(self, of_task: threading.Semaphore, *, urgent: bool) -> Leave:
        """Wait for room for one window, in its task's room too."""
        with contextlib.ExitStack() as left:
            for room in self._both(of_task, urgent):
                while not room.acquire(timeout=CHECK_SECONDS):
                    self._check()
                left.callback(room.release)
            return left.pop_all().close

    def enter_at_once(self, of_task: threading.Semaphore, *, urgent: bool) -> Leave | None:
        """The same without waiting: None where there is no room now."""
        with contextlib.ExitStack() as left:
            for room in self._both(of_task, urgent):
                if not room.acquire(blocking=False):
                    return None
                left.callback(room.release)
            return left.pop_all().close

    def _both(self, of_task: threading.Semaphore, urgent: bool) -> tuple[threading.Semaphore, threading.Semaphore]:
        return of_task, self._of_calls if urgent else self._of_jobs
