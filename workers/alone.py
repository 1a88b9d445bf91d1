"""The gate before a worker's engine: ordinary tasks pass together, a suspect passes alone."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from workers.errors import EngineLostError

#: How often a thread that waits here looks whether the worker is ending.
CHECK_SECONDS = 0.5
#: How long a thread waits for another thread's suspect, which may have to be fetched first.
SHUT_SECONDS = 5.0


class ShutError(Exception):
    """A suspect of another thread has the worker's engine to itself, or is the next: others may come in elsewhere."""


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

    def shut(self) -> bool:
        """Whether whoever came now would have to wait for a suspect."""
        with self._changed:
            return self._alone or bool(self._line)

    @contextmanager
    def entered(self, *, alone: bool) -> Iterator[None]:
        """Inside while the context lasts. A suspect that is first in line waits for those inside, however long.

        Raises EngineLostError if the worker has to end before it is its turn, ShutError where it waits for a suspect.
        """
        self._enter(alone)
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._alone = False
                self._changed.notify_all()

    def _enter(self, alone: bool) -> None:
        place, began = object(), time.monotonic()
        with self._changed:
            self._line.append(place)
            try:
                while (behind := self._line[0] is not place or self._alone) or (alone and self._inside):
                    if self._stopping.is_set():
                        raise EngineLostError("the worker is ending and its grace is over")
                    if behind and time.monotonic() - began > SHUT_SECONDS:
                        raise ShutError("a suspect runs alone here")
                    self._changed.wait(CHECK_SECONDS)
                self._inside += 1
                self._alone = alone
            finally:
                self._line.remove(place)
                self._changed.notify_all()
