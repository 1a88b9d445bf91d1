"""A job on disk: one step, from the options of a command line to its rows, its records and its step file.

What is wrong with the input or the options is found here, before anything is enqueued or overwritten. A job does all
rows of its step, or, when it is a retry (`producer.retry`), those that are named in ``retried.txt``: they are its rows
0, 1, 2 ... to the fleet.
"""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from producer import reuse
from producer.aside import Stopped, never, while_wanted
from producer.audio_files import read_stamps, stamped, write_stamps
from producer.cache import Step, check_writable
from producer.columns import Columns
from producer.disk import disk_errors
from producer.errors import FleetError, UsageError
from producer.header import JobHeader
from producer.inputs import default_prefix, expand_inputs, read_rows, stamp_of
from producer.journal import Journal
from producer.merge import Kept, picked, write_step
from producer.registry import Progress, Registration
from producer.rows import ScanRules, scan, timed_record_of
from producer.spec import JobSpec, audio_root
from producer.standing import settle, standing_header
from workers.languages import canonical_language
from workers.messages import TASKS, Failure, Options, Record, Task

__all__ = ["Job", "JobSpec", "load_job", "new_id", "open_job"]


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
        """Raise UsageError where the input is not the one that the job began with: one pass over it."""
        digest = hashlib.sha256()
        for line in self.lines():
            digest.update(line + b"\n")
        if digest.hexdigest() != self.header.sha256:
            raise UsageError(
                f"{', '.join(self.header.inputs)}: the input changed since the job of {self.step.path} began: "
                "put it back, or start over with --force (and keep answers with --reuse)"
            )

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
        """`reload`, of this job alone. Raises FleetError where its files were removed or are another job's by now."""
        header = JobHeader.read(self.step.header_path)
        if header is None or header.id != self.id:
            raise self.replaced()
        return dataclasses.replace(self, header=header)

    def replaced(self) -> FleetError:
        """What whoever still is at the job ends with."""
        return FleetError(f"{self.step.job_path}: job {self.id} is not there any more: was it removed or replaced?")

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
            "finished": _now(),
            "rows": self.header.rows,
            "failed": journal.failed + (retry.kept_failed if retry else 0),
            "reasons": dict(journal.reasons + Counter(retry.kept_reasons if retry else {})),
            "reused": journal.reused + standing.get("reused", 0),
            "audio_seconds": round(journal.audio_seconds + standing.get("audio_seconds", 0.0), 3),
            **({"retried": retry.rows, "retried_failed": journal.failed} if retry else {}),
        }


def open_job(spec: JobSpec, before_new: Callable[[], object] = lambda: None) -> Job:
    """The job that ``spec`` asks for: a new one, or the one whose files are there already.

    Checks every row, and looks at every audio file that this machine can see. ``before_new`` may refuse a new job.
    Raises UsageError (exit code 2) for whatever is wrong, with nothing overwritten.
    """
    spec.check()
    step0 = expand_inputs(spec.inputs)
    prefix = spec.prefix or default_prefix(step0)
    step = Step(Path(spec.cache_path).absolute(), prefix, spec.step + 1)
    inputs = step.input_of([path.absolute() for path in step0])
    _check_made(inputs[0], step)
    columns = Columns(spec.output_key, spec.timestamps, spec.details)
    columns.check(spec.media_key)
    refused = frozenset() if spec.overwrite_column else frozenset(columns.names())
    stamp = stamp_of(inputs)
    found = scan(inputs, ScanRules(spec.media_key, refused, spec.limit))
    check_writable(step.cache_path)
    header = JobHeader(
        id=new_id(step),
        created=_now(),
        inputs=[str(path) for path in inputs],
        rows=found.rows,
        bytes=found.bytes,
        sha256=found.sha256,
        task=spec.task,
        options={
            "language": canonical_language(spec.language),
            "prompt": (spec.prompt or "").strip() or None,
            "channels": spec.channels,
            "timestamps": spec.timestamps,
            "details": spec.details,
            "model": spec.model,
            "media_key": spec.media_key,
            "output_key": spec.output_key,
            "overwrite_column": spec.overwrite_column,
            "limit": spec.limit,
            "reuse": spec.reuse and str(Path(spec.reuse).absolute()),
        },
        audio_root=audio_root(spec, step, step0),
        output=str(step.path),
    )
    standing = None if spec.force else standing_header(step, header)
    if standing is not None:
        return Job(step, _where_it_lies(step, standing, header.inputs), stamp)
    before_new()
    old = None if spec.reuse is None else reuse.open_old(Path(spec.reuse), header)
    with step.staging() as folder:
        reused = _prepare(Job(step, header), old, folder)
        job = Job(step, settle(step, header, folder, force=spec.force), stamp)
    return _finished(job) if reused == found.rows else job


def load_job(output: Path) -> Job | None:
    """The job that makes the step file ``output``, None if there is none."""
    step = Step.of(output)
    header = None if step is None else JobHeader.read(step.header_path)
    return None if step is None or header is None else Job(step, header)


def new_id(step: Step) -> str:
    """A name that no other job has, so that nobody's late answers are taken for its own."""
    return f"{step.path.stem}-{secrets.token_hex(4)}"


def _prepare(job: Job, old: reuse.OldStep | None, folder: Path) -> int:
    """Write what a new job begins with into ``folder``; returns how many rows are answered by ``old``."""
    audio_path = folder / job.step.audio_path.name
    write_stamps(audio_path, (stamps for _, stamps in stamped(record for _, record in job.records())))
    if old is None:
        return 0
    journal = Journal.open(folder / job.step.journal_path.name, job.rows)
    try:
        reuse.take(old, job.records(), read_stamps(audio_path), journal, folder / "index.sqlite")
        return journal.answered
    finally:
        journal.close()


def _finished(job: Job) -> Job:
    """A job whose rows are all answered before it begins needs no fleet."""
    with job.step.lock("collector") as collecting:
        if not collecting.acquire() or job.reload().is_finished():
            return job.reload()
        journal = Journal.open(job.step.journal_path, job.rows)
        try:
            return job.finish(journal) if journal.answered == job.rows else job
        finally:
            journal.close()


def _check_made(source: Path, step: Step) -> None:
    """Raise UsageError where the step before this one is being made anew: its file is still the old one."""
    if step.number == 1:
        return
    header = JobHeader.read(Step(step.cache_path, step.prefix, step.number - 1).header_path)
    if header is not None and not header.complete:
        what = f"run step {step.number - 2}" if header.retry is None else "run its retry"
        raise UsageError(f"{source}: is being made anew and not finished: {what} to its end first")


def _where_it_lies(step: Step, standing: JobHeader, inputs: list[str]) -> JobHeader:
    """``standing``, which reads the same input under the names that it has now.

    Raises UsageError where somebody is at the job and its input is no longer where it lay.
    """
    if standing.complete or standing.inputs == inputs:
        return standing
    with step.lock("producer") as producing, step.lock("collector") as collecting:
        if not (producing.acquire() and collecting.acquire()):
            Job(step, standing).check_input()  # somebody is at the job, and reads it where it lay
            return standing
        standing = JobHeader.read(step.header_path) or standing
        if not standing.complete:
            standing = dataclasses.replace(standing, inputs=inputs)
            standing.write(step.header_path)
        return standing


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
