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
        #: How long it took. It may have waited for a thread before.
        self.seconds = 0.0
        self._unwanted = False
        self._future: Future[Value] = threads.submit(self._timed, work)

    def _timed(self, work: Callable[[Stopped], Value]) -> Value:
        began = time.monotonic()
        try:
            return work(lambda: self._unwanted)
        finally:
            self.seconds = time.monotonic() - began

    def wait(self, seconds: float = 0.0) -> bool:
        """Whether it has ended, after ``seconds`` at most."""
        return self._future.done() or bool(wait([self._future], seconds).done)

    def result(self) -> Value:
        """What the work gave or raised, once it has ended."""
        return self._future.result()

    def stop(self) -> bool:
        """Have it end soon. Whether it has not begun, and will not."""
        self._unwanted = True
        return self._future.cancel()

    def end(self) -> Value | None:
        """`stop`, and wait for its end. What it gave all the same, None where it did not."""
        if self.stop():
            return None
        with contextlib.suppress(Exception):
            return self._future.result()
        return None

    @staticmethod
    def wait_all(pieces: Iterable[Piece[Value]], seconds: float) -> None:
        """Wait until all have ended, ``seconds`` at most."""
        wait([piece._future for piece in pieces], seconds)
