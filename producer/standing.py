"""Which job an output path belongs to: the one that stands there, or the one that is about to begin."""

from __future__ import annotations

import time
from pathlib import Path

from producer.cache import Step
from producer.errors import UsageError
from producer.file_lock import FileLock
from producer.header import INPUT_CHANGED, JobHeader, differences
from producer.job import Job
from producer.registry import ANNOUNCE_SECONDS

#: Another starter of the same job needs no longer to write its header.
SETTLE_SECONDS = 5.0
#: A collector of the fleet gives a job back within this time, if it does.
GIVE_BACK_SECONDS = 3 * ANNOUNCE_SECONDS


def settle(step: Step, header: JobHeader, folder: Path, *, force: bool) -> JobHeader:
    """The header that holds: the one on disk if it is of the same job, else this one, with the files of ``folder``.

    With ``force``, a collector that serves the job alone, for a producer that has gone, is asked to give it back.
    Raises UsageError where somebody else is at the job, or the collector keeps it.
    """
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        with step.lock("producer") as producing, step.lock("collector") as collecting:
            busy = next((lock for lock in (producing, collecting) if not lock.acquire()), None)
            if force and busy is collecting:
                _wait_until_given_back(step, collecting)
                busy = None
            if busy is None:
                step.end_beginning()
            # Looked at again under the locks: another starter of the same job may have been faster.
            standing = None if force else standing_header(step, header)
            if standing is not None:
                return standing
            if busy is None:
                header.write(folder / step.header_path.name)
                step.begin(folder)
                return header
        if force or time.monotonic() > deadline:
            # That may be the collector of all jobs, which sends what a killed producer has not.
            other_way = ", or `whisper-fleet cancel` the job," if force else ""
            raise UsageError(f"{step.path}: {busy.holder()} is working on it: stop that one{other_way} first")
        time.sleep(0.05)


def end_beginning(step: Step) -> None:
    """Complete the job of a starter that was killed while its files were put in place; nothing where none was."""
    if step.is_beginning():
        with step.lock("producer") as producing, step.lock("collector") as collecting:
            if producing.acquire() and collecting.acquire():
                step.end_beginning()


def _wait_until_given_back(step: Step, collecting: FileLock) -> None:
    """Take the lock of the job's collector, who may be everybody's and on another machine. Hold the producer's."""
    deadline = time.monotonic() + GIVE_BACK_SECONDS
    with step.force_lock as asking:
        while not (asking.acquire() and collecting.acquire()):
            if time.monotonic() > deadline:
                raise UsageError(
                    f"{step.path}: {collecting.holder()} collects it and has not given it back within "
                    f"{GIVE_BACK_SECONDS:.0f} s: stop that one first"
                )
            time.sleep(0.05)


def standing_header(step: Step, header: JobHeader) -> JobHeader | None:
    """The header on disk that ``header`` resumes, None where a new job starts. Raises UsageError for another job's."""
    old = JobHeader.read(step.header_path)
    if old is None:
        if step.path.exists():
            raise UsageError(
                f"{step.path}: exists, and no job of this cache made it: overwrite it with --force, or use another "
                "--prefix"
            )
        return None
    needs_step = old.complete or old.retry is not None
    changes = differences(old, header)
    if changes:
        only_input = len(changes) == 1 and changes[0].startswith(INPUT_CHANGED)
        made = needs_step and step.path.exists()
        advice = f" (and keep answers with --reuse {step.path})" if only_input and made else ""
        appended = only_input and not needs_step and _begins_alike(Job(step, old))
        finish = f", or finish it first: the same command with a file of the first {old.rows} rows" if appended else ""
        raise UsageError(
            f"{step.path}: made by a job with other options: {'; '.join(changes)}. "
            f"Start over with --force{advice}, or write elsewhere with --prefix{finish}"
        )
    return old if step.path.exists() or not needs_step else None


def _begins_alike(job: Job) -> bool:
    """Whether the input of a job still begins with its rows: others were appended."""
    try:
        job.check_input()
    except UsageError:
        return False
    return True
