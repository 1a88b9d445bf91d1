"""What takes minutes where a job is large, beside the loop that serves all jobs: the others go on meanwhile."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

#: Pieces of work at once: a small job's does not wait for a large one's.
THREADS = 4
#: Every so many rows it is asked whether the work is still wanted.
ROWS_BETWEEN_LOOKS = 256

Value = TypeVar("Value")
Stopped = Callable[[], bool]


class StoppedError(Exception):
    """Nobody wants the work any more."""


def never() -> bool:
    """For work that is always wanted."""
    return False


def while_wanted(rows: Iterable[Value], stopped: Stopped) -> Iterator[Value]:
    """``rows`` as they are. Raises StoppedError soon after ``stopped``."""
    for number, row in enumerate(rows):
        if number % ROWS_BETWEEN_LOOKS == 0 and stopped():
            raise StoppedError
        yield row


class Piece(Generic[Value]):
    """One piece of work in a thread of ``threads``. ``work`` is told how to ask whether it is still wanted."""

    def __init__(self, threads: ThreadPoolExecutor, work: Callable[[Stopped], Value]) -> None:
        self._unwanted = False
        self._ended_at: float | None = None
        self._began_at = time.monotonic()
        self._future: Future[Value] = threads.submit(work, lambda: self._unwanted)
        self._future.add_done_callback(self._note_end)

    def wait(self, seconds: float = 0.0) -> bool:
        """Whether it has ended, after ``seconds`` at most."""
        return self._future.done() or bool(wait([self._future], seconds).done)

    @property
    def seconds(self) -> float:
        """How long it took, or has taken so far, since it was asked for."""
        return (self._ended_at or time.monotonic()) - self._began_at

    def result(self) -> Value:
        """What the work gave or raised, once it has ended."""
        return self._future.result()

    def end(self) -> Value | None:
        """Have it end soon, and wait for that. What it gave all the same, None where it did not."""
        self._unwanted = True
        if self._future.cancel():
            return None
        with contextlib.suppress(Exception):
            return self._future.result()
        return None

    @staticmethod
    def wait_all(pieces: Iterable[Piece[Value]], seconds: float) -> None:
        """Wait until all have ended, ``seconds`` at most."""
        wait([piece._future for piece in pieces], seconds)

    def _note_end(self, _: Future[Value]) -> None:
        self._ended_at = time.monotonic()
