"""The gate before a worker's engine: ordinary tasks pass together, a suspect passes alone."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from workers.errors import EngineLostError

#: How often a thread that waits here looks whether the worker is ending.
CHECK_SECONDS = 0.5


class Gate:
    """Lets threads in, in the order in which they came, so that neither kind starves the other.

    Not reentrant: a thread that is inside must leave before it enters again.
    """

    def __init__(self, stopping: threading.Event) -> None:
        self._stopping = stopping
        self._changed = threading.Condition()
        self._line: deque[object] = deque()
        self._inside = 0
        self._alone = False

    @contextmanager
    def entered(self, *, alone: bool) -> Iterator[None]:
        """Inside while the context lasts. Raises EngineLostError if the worker has to end before it is its turn."""
        self._enter(alone)
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._alone = False
                self._changed.notify_all()

    def _enter(self, alone: bool) -> None:
        place = object()
        with self._changed:
            self._line.append(place)
            try:
                while not (self._line[0] is place and not self._alone and not (alone and self._inside)):
                    if self._stopping.is_set():
                        raise EngineLostError("the worker is ending and its grace is over")
                    self._changed.wait(CHECK_SECONDS)
                self._inside += 1
                self._alone = alone
            finally:
                self._line.remove(place)
                self._changed.notify_all()
