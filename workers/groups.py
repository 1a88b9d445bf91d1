"""Which windows an engine gets at once, and which wait here until several can be encoded in one step.

A step that encodes decodes all rows without CUDA graphs, however few windows it encodes, and vLLM fills each row of its
batch the moment it is free: of a full batch most steps are such, with one or two windows each.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

#: Gives a window to the engine; False for one that nobody wants any more.
Start = Callable[[], bool]


class Groups:
    """Holds windows back while fewer than ``size`` rows of the engine's ``room`` are free. Safe from any thread.

    With ``size`` 0 every window goes at once. Rows stand empty meanwhile: about half of ``size``. Not for an engine
    that urgent windows nearly fill by themselves: the others would wait for ever.
    """

    def __init__(self, room: int, size: int) -> None:
        self._room = room
        self._size = min(size, room)
        self._lock = threading.Lock()
        self._given = 0
        self._held: deque[Start] = deque()

    def enter(self, start: Start, *, urgent: bool) -> None:
        """Call ``start`` now or, in another thread, when it is its turn; an urgent window has no turn to wait for."""
        with self._lock:
            if urgent or not self._size:
                self._given += 1
                starts = [start]
            else:
                self._held.append(start)
                starts = self._take()
        self._start(starts)

    def left(self) -> None:
        """A window that was started has ended."""
        with self._lock:
            self._given -= 1
            starts = self._take()
        self._start(starts)

    def _take(self) -> list[Start]:
        """Those whose turn it is. With the lock held."""
        free = self._room - self._given
        count = min(free, len(self._held)) if free >= self._size else 0
        self._given += count
        return [self._held.popleft() for _ in range(count)]

    def _start(self, starts: list[Start]) -> None:
        while starts:
            unwanted = [start() for start in starts].count(False)
            with self._lock:
                self._given -= unwanted
                starts = self._take()
