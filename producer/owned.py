"""A job that this process serves: its files, under its lock."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from producer.aside import Piece, Stopped, StoppedError
from producer.errors import FleetError, JobCancelledError
from producer.file_lock import FileLock
from producer.job import Job
from producer.journal import Journal
from producer.registry import Progress
from producer.spans import PartStore

#: How often it is looked, while a journal is read, whether somebody starts over.
LOOK_SECONDS = 5.0


@dataclass(slots=True, eq=False)
class OwnedJob:
    """A job whose lock this process holds."""

    job: Job
    journal: Journal
    parts: PartStore
    lock: FileLock
    #: Whether its step file is written.
    complete: bool = field(default=False)
    #: Why it cannot go on now (a full disk, a changed input).
    error: FleetError | None = field(default=None)
    #: Seconds that its last try to go on took, reading its journal included.
    tried_seconds: float = field(default=0.0)
    #: Its step file being written: nothing else is done with the job meanwhile.
    merging: Piece[Job] | None = field(default=None)

    @property
    def answered(self) -> bool:
        """Whether all its rows are."""
        return self.journal.answered == self.journal.rows

    def progress(self) -> Progress:
        """How far it is."""
        journal = self.journal
        return Progress(
            rows=journal.rows,
            answered=journal.answered,
            failed=journal.failed,
            reused=journal.reused,
            audio_seconds=journal.audio_seconds,
            reasons=journal.reasons,
            complete=self.complete,
            step_path=str(self.job.step.path),
        )

    def check_in_place(self) -> None:
        """Raise FleetError where its folder was removed, and JobCancelledError.

        What lies there now, if anything, is another job's.
        """
        if not self.lock.in_place():
            raise self.job.replaced()
        self.job.current()

    def is_asked_back(self) -> bool:
        """Whether somebody who starts over waits for it: that is for none to do whose job a producer still sends."""
        return self.job.step.force_lock.is_held()

    def merge(self, stopped: Stopped) -> Job:
        """Its step file written, if it is not. Raises what `Job.finish` does."""
        self.check_in_place()
        return self.job if self.job.is_finished() else self.job.finish(self.journal, stopped)

    def let_go(self) -> None:
        """End what is done with it, and leave it to others."""
        if self.merging is not None:
            self.merging.end()
        self.journal.close()
        self.lock.release()


def opened(job: Job, stopped: Stopped) -> OwnedJob | Job | None:
    """The job with its journal read, under its lock; without that if it is complete. None where others have it."""
    lock = job.step.lock("collector")
    unwanted = _now_and_then(lambda: job.step.force_lock.is_held() or job.is_cancelled())
    if unwanted() or not lock.acquire():
        return None
    journal = None
    try:
        # Read again now that nobody else writes it: another collector may have finished the job meanwhile.
        job = job.current()
        if job.is_finished():
            lock.release()
            return job
        journal = Journal.open(job.step.journal_path, job.rows, lambda: stopped() or unwanted())
        parts = PartStore(job.step.parts_path, job.rows, journal)
        journal.append(parts.standing())
        job.current()
    except BaseException as error:
        if journal is not None:
            journal.close()
        lock.release()
        if isinstance(error, StoppedError | JobCancelledError):
            return None
        raise
    return OwnedJob(job, journal, parts, lock)


def _now_and_then(look: Callable[[], bool]) -> Callable[[], bool]:
    """``look``, which is a look at the disk, not more often than every few seconds; False between."""
    next_look = float("-inf")

    def looked() -> bool:
        nonlocal next_look
        if time.monotonic() < next_look:
            return False
        found, next_look = look(), time.monotonic() + LOOK_SECONDS
        return found

    return looked
