"""A job on disk: one step, from its header (`producer.opening`) to its rows, its records and its step file.

A job does all rows of its step, or, when it is a retry (`producer.retry`), those that are named in ``retried.txt``:
they are its rows 0, 1, 2 ... to the fleet.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import secrets
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from producer.aside import Stopped, never, while_wanted
from producer.cache import Step
from producer.columns import Columns
from producer.disk import disk_errors
from producer.errors import FleetError, JobCancelledError, UsageError
from producer.header import JobHeader, now
from producer.inputs import read_rows, stamp_of
from producer.journal import Journal
from producer.merge import Kept, picked, write_step
from producer.registry import Progress, Registration
from producer.rows import timed_record_of
from workers.messages import TASKS, Failure, Options, Record, Task


@contextlib.contextmanager
def under_way() -> Iterator[None]:
    """A UsageError of the block is a FleetError with the same words: no argument is wrong, but the input of a job whose
    rows are sent was changed or removed since.
    """
    try:
        yield
    except UsageError as error:
        raise FleetError(error.message, type=error.type) from error


@dataclass(frozen=True, slots=True)
class Job:
    """One step that is being made, or is made."""

    step: Step
    header: JobHeader
    #: What its input's files were like when they were found to be the job's (`stamp_of`); None: nobody looked.
    stamp: object = field(default=None, compare=False, repr=False)

    @property
    def id(self) -> str:
        """The job's name in the fleet."""
        return self.header.id

    @property
    def task(self) -> Task:
        """What is done with each row."""
        return next(task for task in TASKS if task == self.header.task)

    @property
    def columns(self) -> Columns:
        """The columns that the job adds."""
        return Columns.of(self.header.options)

    @property
    def message_options(self) -> Options:
        """The options that travel with every message."""
        options = self.header.options
        return Options(
            language=options["language"],
            prompt=self.header.option("prompt"),
            timestamps=options["timestamps"],
            channels=self.header.option("channels"),
            model=options["model"],
        )

    @property
    def media_key(self) -> str:
        """The column with the audio."""
        return str(self.header.options["media_key"])

    @property
    def rows(self) -> int:
        """How many rows the job does: all of its step, or those of a retry."""
        return self.header.rows if self.header.retry is None else self.header.retry.rows

    def registration(self) -> Registration:
        """What a collector has to know to find the job's files."""
        return Registration(id=self.id, output=str(self.step.path), rows=self.rows, created=self.header.created)

    def lines(self) -> Iterator[bytes]:
        """The rows of the whole step as they stand in the input, without what was appended since the job began."""
        return read_rows([Path(path) for path in self.header.inputs], self.header.rows)

    def check_input(self) -> None:
        """Raise UsageError where the input is not the one that the job began with: one pass over it.

        Of a job whose rows are being sent it is a FleetError: see `under_way`.
        """
        digest = hashlib.sha256()
        for line in self.lines():
            digest.update(line + b"\n")
        if digest.hexdigest() != self.header.sha256:
            made = (self.header.complete or self.header.retry) and self.step.path.exists()
            advice = " (and keep answers with --reuse)" if made else ""
            raise UsageError(
                f"{', '.join(self.header.inputs)}: the input changed since the job of {self.step.path} began: "
                f"put it back, or start over with --force{advice}"
            )

    def checked(self) -> Job:
        """The job after `check_input`, which remembers what its files were like: who sends it sees whether they change.

        Raises UsageError as `check_input` does.
        """
        stamp = stamp_of(self.header.inputs)
        self.check_input()
        return dataclasses.replace(self, stamp=stamp)

    def retried(self) -> array[int]:
        """The rows of the step that a retry does, in order. Raises FleetError where the file is not whole."""
        with disk_errors(self.step.retried_path), self.step.retried_path.open("rb") as lines:
            rows = array("q", map(int, lines))
        if self.header.retry is None or len(rows) != self.header.retry.rows:
            raise FleetError(f"{self.step.retried_path}: changed by another program: start over with --force")
        return rows

    def records(self) -> Iterator[tuple[int, Record | Failure]]:
        """The number of each row of the job and the record that it asks for, or why there is none."""
        return ((row, record) for row, record, _ in self.timed_records())

    def timed_records(
        self, wanted: Callable[[int], bool] = lambda row: True
    ) -> Iterator[tuple[int, Record | Failure, float | None]]:
        """`records` of the rows that are ``wanted``, each with the seconds of audio that its row says it has."""
        media_key, audio_root = self.media_key, self.header.audio_root
        for row, line in enumerate(self._lines_to_do()):
            if wanted(row):
                yield row, *timed_record_of(row, line, media_key, audio_root)

    def _lines_to_do(self) -> Iterable[bytes]:
        return self.lines() if self.header.retry is None else picked(self.lines(), self.retried())

    def progress(self) -> Progress:
        """How far a complete job came; of one that runs, its collector knows."""
        complete = self.is_finished()
        summary = (complete and self.header.summary) or {}
        return Progress(
            rows=self.rows,
            answered=summary.get("rows", 0),
            failed=summary.get("failed", 0),
            reused=summary.get("reused", 0),
            audio_seconds=summary.get("audio_seconds", 0.0),
            reasons=Counter(summary.get("reasons", {})),
            complete=complete,
            step_path=str(self.step.path),
        )

    def is_finished(self) -> bool:
        """Whether the step file was written, wherever its user has it now: nothing is left to be done."""
        return self.header.complete

    def is_complete(self) -> bool:
        """Whether the step file is there and final."""
        return self.is_finished() and self.step.path.exists()

    def reload(self) -> Job:
        """The job as its files say now."""
        header = JobHeader.read(self.step.header_path)
        return self if header is None else dataclasses.replace(self, header=header)

    def current(self) -> Job:
        """`reload`, of this job alone, for whoever is at it.

        Raises FleetError where its files were removed or are another job's by now, and JobCancelledError.
        """
        header = JobHeader.read(self.step.header_path)
        if header is None or header.id != self.id:
            raise self.replaced()
        if self._is_given_up(header):
            raise self.cancelled()
        return dataclasses.replace(self, header=header)

    def cancel(self) -> None:
        """Leave the mark that ends whoever is at the job (`producer.cancel`); a complete one it does nothing to."""
        self.step.cancelled_path.write_text(self.id, encoding="utf-8")

    def cancelled(self) -> JobCancelledError:
        """What whoever is at the job ends with where it was given up."""
        return JobCancelledError(f"{self.step.path}: job {self.id} was cancelled: the command that makes it resumes")

    def is_cancelled(self) -> bool:
        """Whether it was given up (`producer.cancel`) and not resumed since."""
        header = JobHeader.read(self.step.header_path)
        return header is not None and header.id == self.id and self._is_given_up(header)

    def _is_given_up(self, header: JobHeader) -> bool:
        return not header.complete and self.step.cancelled() == header.id

    def replaced(self) -> FleetError:
        """What whoever still is at the job ends with."""
        return FleetError(f"{self.step.job_path}: job {self.id} is not there any more: was it removed or replaced?")

    @under_way()
    def finish(self, journal: Journal, stopped: Stopped = never) -> Job:
        """Write the step file, and then say in the header that it is final. The journal has served its time.

        Raises StoppedError soon after ``stopped``, and FleetError where the job was removed or replaced: nothing is
        changed then.
        """
        retry = self.header.retry
        kept = None if retry is None else Kept(read_rows([self.step.path]), self.retried(), retry.kept_sha256)
        drop = self.columns.family() if self.header.options["overwrite_column"] else ()
        write_step(
            *(self.step.path, self._lines_while_current(stopped), journal, self.columns, self.media_key, drop),
            sha256=self.header.sha256,
            kept=kept,
        )
        header = dataclasses.replace(self.header, complete=True, summary=self._summary(journal), retry=None)
        header.write(self.step.header_path)
        self.step.forget_answers()
        self.step.retried_path.unlink(missing_ok=True)
        self.step.cancelled_path.unlink(missing_ok=True)
        return dataclasses.replace(self, header=header)

    def _lines_while_current(self, stopped: Stopped) -> Iterator[bytes]:
        """`lines`. Writing them takes minutes where they are many: it is looked before and after."""
        self.current()
        yield from while_wanted(self.lines(), stopped)
        self.current()

    def _summary(self, journal: Journal) -> dict[str, Any]:
        """What came of the step. ``audio_seconds``: all that was transcribed for it, retries too."""
        retry, before = self.header.retry, self.header.summary
        standing = before if retry is not None and before is not None else {}
        return {
            "finished": now(),
            "rows": self.header.rows,
            "failed": journal.failed + (retry.kept_failed if retry else 0),
            "reasons": dict(journal.reasons + Counter(retry.kept_reasons if retry else {})),
            "reused": journal.reused + standing.get("reused", 0),
            "audio_seconds": round(journal.audio_seconds + standing.get("audio_seconds", 0.0), 3),
            **({"retried": retry.rows, "retried_failed": journal.failed} if retry else {}),
        }


def load_job(output: Path) -> Job | None:
    """The job that makes the step file ``output``, None if there is none."""
    step = Step.of(output)
    header = None if step is None else JobHeader.read(step.header_path)
    return None if step is None or header is None else Job(step, header)


def new_id(step: Step) -> str:
    """A name that no other job has, so that nobody's late answers are taken for its own."""
    return f"{step.path.stem}-{secrets.token_hex(4)}"
