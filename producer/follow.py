"""A job's journal as another process writes it: which rows are answered by now."""

from __future__ import annotations

import threading
from typing import Protocol

from producer.errors import FleetError
from producer.job import Job
from producer.journal import Answered, Journal


class RowSet(Protocol):
    """Rows of a job, by number."""

    def __contains__(self, row: int, /) -> bool: ...

    def __len__(self) -> int: ...


class Follower:
    """Reads what has come to the journal since it last did; one bit of memory a row.

    Not for the process that writes the journal: that one has it in memory.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._lock = threading.Lock()
        self._answered = Answered(job.rows)
        self._complete = False

    def read(self) -> RowSet:
        """The rows that are answered and on the disk. Raises FleetError for files that cannot be read or are gone."""
        with self._lock:
            if not self._complete:
                journal_path = self._job.step.journal_path
                try:
                    Journal.read_answered(journal_path, self._job.rows, self._answered)
                except FileNotFoundError:
                    pass
                except OSError as error:
                    why = f"cannot be read ({error.strerror or error}): is it of a collector of another user?"
                    raise FleetError(f"{journal_path}: {why}") from error
                # A step that is written needs no journal any more.
                self._complete = not journal_path.exists() and self._job.current().is_finished()
            return range(self._job.rows) if self._complete else self._answered

    @property
    def count(self) -> int:
        """How many rows the last ``read`` gave."""
        return self._job.rows if self._complete else len(self._answered)
