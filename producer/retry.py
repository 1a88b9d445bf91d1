"""Doing the failed rows of a finished step again.

A retry is the same job under a new name (so that nobody's late answers are taken for its own), whose rows are the
failed ones. Its answers go into a small journal; at the end the step file is rewritten at once, with all other lines as
they were. Until then the old file stays. `Job.finish` does that, so any collector can.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, BinaryIO

from producer.audio_files import Stamp, read_stamps, stamped, write_stamps
from producer.cache import Step, atomic_write
from producer.errors import UsageError
from producer.failed import failed_row, foreign_row, step_lines
from producer.header import JobHeader, Retry
from producer.job import Job, new_id
from producer.standing import SETTLE_SECONDS


def begin_retry(job: Job, reasons: Sequence[str] = (), before_new: Callable[[], object] = lambda: None) -> Job | None:
    """The job that does again the rows that failed (for one of ``reasons``), None where there are none.

    One that was interrupted is resumed. ``before_new`` may refuse a new one. Raises UsageError where the step is not
    finished, where a retry for other reasons is, where the input has changed, and where the next step is being made
    from this one; FleetError where rows of the step are not those of the input any more.
    """
    wanted = sorted(set(reasons))
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        with job.step.lock("producer") as producing, job.step.lock("collector") as collecting:
            busy = next((lock for lock in (producing, collecting) if not lock.acquire()), None)
            job = job.reload()
            if job.header.retry is not None:
                return _resumed(job, wanted)
            if not job.is_finished():
                raise UsageError(f"{job.step.path}: not finished: run the command that makes it to its end first")
            if not job.is_complete():
                raise UsageError(f"{job.step.path}: not there any more: put it back")
            if busy is None:
                return _begin(job, wanted, before_new)
        if time.monotonic() > deadline:
            raise UsageError(f"{job.step.path}: {busy.holder()} is working on it: stop that one first")
        time.sleep(0.05)


def _resumed(job: Job, wanted: list[str]) -> Job:
    standing = job.header.retry.reasons if job.header.retry else []
    if standing != wanted:
        options = "".join(f" --reason {reason}" for reason in standing) or " no --reason"
        raise UsageError(f"{job.step.path}: a retry with{options} is not finished: end that one first")
    job = job.checked()
    job.step.cancelled_path.unlink(missing_ok=True)
    return job


def _begin(job: Job, wanted: list[str], before_new: Callable[[], object]) -> Job | None:
    """Name the rows to do in retried.txt, then make it so in the header. Hold the job's locks."""
    job = job.checked()
    step = job.step
    later = Step(step.cache_path, step.prefix, step.number + 1)
    made = JobHeader.read(later.header_path)
    if made is not None and not made.complete:  # its answers would be of another input
        raise UsageError(
            f"{later.path}: is being made from {step.path}: run the command that makes it to its end first, "
            f"or remove {later.job_path}"
        )
    found = _Found()
    with atomic_write(step.retried_path, mode=0o600) as output:
        found.sort(job, set(wanted), output)
    if found.rows != job.header.rows:
        step.retried_path.unlink()
        raise UsageError(f"{step.path}: has {found.rows} rows, not {job.header.rows}: start over with --force")
    if found.retried == 0:
        step.retried_path.unlink()
        return None
    try:
        before_new()
    except BaseException:
        step.retried_path.unlink()
        raise
    retry = Retry(found.retried, wanted, found.kept.hexdigest(), found.kept_failed, dict(found.kept_reasons))
    header = replace(job.header, id=new_id(step), complete=False, retry=retry)
    job = replace(job, header=header)
    _renew_stamps(job)
    step.forget_answers()  # a crash at the end of the job may have left some
    header.write(step.header_path)
    return job


class _Found:
    """The rows of a step, sorted into those that are done again and those that are kept."""

    def __init__(self) -> None:
        self.rows = 0
        self.retried = 0
        self.kept = hashlib.sha256()
        self.kept_failed = 0
        self.kept_reasons: Counter[str] = Counter()

    def sort(self, job: Job, wanted: set[str], output: BinaryIO) -> None:
        """Write the numbers of the rows to do to ``output`` and count the others; in the memory of one row."""
        family, sources = job.columns.family(), job.lines()
        for line in step_lines(job):
            source = next(sources, b"{}")
            failed = failed_row(job, self.rows, line)
            reasons = failed.reasons() if failed else Counter[str]()
            if failed is not None and (not wanted or wanted & reasons.keys()):
                # It is made again from the input: in a file that was sorted or extended that would be another row.
                if _other_columns(line, family) != _other_columns(source, family):
                    raise foreign_row(job, self.rows)
                output.write(b"%d\n" % self.rows)
                self.retried += 1
            else:
                self.kept.update(line + b"\n")
                self.kept_failed += failed is not None and failed.whole
                self.kept_reasons += reasons
            self.rows += 1


def _other_columns(line: bytes, family: Collection[str]) -> dict[str, Any]:
    # Integers as floats, as everywhere (`producer.rows`), and NaN as something that equals itself.
    row = json.loads(line, parse_int=float, parse_constant=str)
    return {name: value for name, value in row.items() if name not in family}


def _renew_stamps(job: Job) -> None:
    """The rows' audio is what it is now: a later --reuse compares with that."""
    path = job.step.audio_path
    if path.exists():
        fresh = (stamps for _, stamps in stamped(record for _, record in job.records()))
        write_stamps(path, _renewed(read_stamps(path), job.retried(), fresh))


def _renewed(stamps: Iterable[list[Stamp]], rows: Iterable[int], fresh: Iterator[list[Stamp]]) -> Iterator[list[Stamp]]:
    wanted = iter(rows)
    next_row = next(wanted, None)
    for row, old in enumerate(stamps):
        if row == next_row:
            yield next(fresh)
            next_row = next(wanted, None)
        else:
            yield old
