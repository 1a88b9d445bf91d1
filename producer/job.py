"""A job on disk: one step, from the options of a command line to its rows, its records and its step file.

What is wrong with the input or the options is found here, before anything is enqueued or overwritten.
"""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from producer.cache import JobHeader, Step, check_writable, differences
from producer.columns import Columns
from producer.errors import UsageError
from producer.inputs import default_prefix, expand_inputs, read_rows
from producer.journal import Journal
from producer.merge import write_step
from producer.registry import Progress, Registration
from producer.rows import ScanRules, record_of, scan
from workers.errors import TranscriptionError
from workers.languages import canonical_language
from workers.messages import TASKS, ChannelMode, Failure, Options, Record, Task

#: Another starter of the same job needs no longer to write its header.
SETTLE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What a caller asks for; the fields are the options of ``whisper-fleet run``."""

    inputs: tuple[str, ...]
    task: Task = "transcribe"
    language: str = "auto"
    prompt: str | None = None
    channels: ChannelMode = "mix"
    timestamps: bool = False
    details: bool = False
    model: str | None = None
    media_key: str = "audio"
    output_key: str = "transcription"
    overwrite_column: bool = False
    audio_root: str | None = None
    cache_path: str = "cache"
    prefix: str | None = None
    step: int = 0
    limit: int | None = None
    force: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """One step that is being made, or is made."""

    step: Step
    header: JobHeader

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
        options = self.header.options
        return Columns(options["output_key"], options["timestamps"], options["details"])

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
        """How many rows the step has."""
        return self.header.rows

    def registration(self) -> Registration:
        """What a collector has to know to find the job's files."""
        return Registration(id=self.id, output=str(self.step.path), rows=self.rows, created=self.header.created)

    def lines(self) -> Iterator[bytes]:
        """The rows as they stand in the input."""
        return read_rows([Path(path) for path in self.header.inputs], self.header.options["limit"])

    def records(self) -> Iterator[tuple[int, Record | Failure]]:
        """Each row's number and the record that it asks for, or why there is none."""
        for row, line in enumerate(self.lines()):
            yield row, record_of(row, line, self.media_key, self.header.audio_root)

    def progress(self) -> Progress:
        """How far a complete job came; of one that runs, its collector knows."""
        summary = self.header.summary or {}
        return Progress(
            rows=self.rows,
            answered=summary.get("rows", 0),
            failed=summary.get("failed", 0),
            audio_seconds=summary.get("audio_seconds", 0.0),
            reasons=Counter(summary.get("reasons", {})),
            complete=self.is_complete(),
            step_path=str(self.step.path),
        )

    def is_complete(self) -> bool:
        """Whether the step file is there and final."""
        return self.header.complete and self.step.path.exists()

    def reload(self) -> Job:
        """The job as its files say now."""
        header = JobHeader.read(self.step.header_path)
        return self if header is None else dataclasses.replace(self, header=header)

    def finish(self, journal: Journal) -> Job:
        """Write the step file, and then say in the header that it is final. The journal has served its time."""
        drop = self.columns.family() if self.header.options["overwrite_column"] else ()
        write_step(self.step.path, self.lines(), journal, self.columns, self.media_key, drop, sha256=self.header.sha256)
        summary = {
            "finished": _now(),
            "rows": journal.rows,
            "failed": journal.failed,
            "reasons": dict(journal.reasons),
            "audio_seconds": round(journal.audio_seconds, 3),
        }
        header = dataclasses.replace(self.header, complete=True, summary=summary)
        header.write(self.step.header_path)
        self.step.journal_path.unlink(missing_ok=True)
        return dataclasses.replace(self, header=header)


def open_job(spec: JobSpec) -> Job:
    """The job that ``spec`` asks for: a new one, or the one whose files are there already.

    Checks every row. Raises UsageError (exit code 2) for whatever is wrong, with nothing overwritten.
    """
    _check_options(spec)
    step0 = expand_inputs(spec.inputs)
    prefix = spec.prefix or default_prefix(step0)
    step = Step(Path(spec.cache_path).absolute(), prefix, spec.step + 1)
    inputs = step.input_of([path.absolute() for path in step0])
    columns = Columns(spec.output_key, spec.timestamps, spec.details)
    columns.check(spec.media_key)
    refused = frozenset() if spec.overwrite_column else frozenset(columns.names())
    found = scan(inputs, ScanRules(spec.media_key, refused, spec.limit))
    check_writable(step.cache_path)
    header = JobHeader(
        id=f"{step.path.stem}-{secrets.token_hex(4)}",
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
        },
        audio_root=_audio_root(spec, step, step0),
        output=str(step.path),
    )
    return Job(step, _settle(step, header, force=spec.force))


def load_job(output: Path) -> Job | None:
    """The job that makes the step file ``output``, None if there is none."""
    prefix, _, number = output.stem.rpartition("_step")
    if not prefix or not number.isdigit():
        return None
    step = Step(output.parent.absolute(), prefix, int(number))
    header = JobHeader.read(step.header_path)
    return None if header is None else Job(step, header)


def _settle(step: Step, header: JobHeader, *, force: bool) -> JobHeader:
    """The header that holds: the one on disk if it is of the same job, else this one, written."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        standing = None if force else _standing(step, header)
        if standing is not None:
            return standing
        step.create_job_folder()
        with step.lock("producer") as producing, step.lock("collector") as collecting:
            busy = next((lock for lock in (producing, collecting) if not lock.acquire()), None)
            # Looked at again under the locks: another starter of the same job may have been faster.
            standing = None if force or busy else _standing(step, header)
            if standing is not None:
                return standing
            if busy is None:
                step.forget()
                header.write(step.header_path)
                return header
        if force or time.monotonic() > deadline:
            raise UsageError(f"{step.path}: {busy.holder()} is working on it: stop that one first")
        time.sleep(0.05)


def _standing(step: Step, header: JobHeader) -> JobHeader | None:
    """The header on disk that ``header`` resumes, None where a new job starts. Raises UsageError for another job's."""
    old = JobHeader.read(step.header_path)
    if old is None:
        if step.path.exists():
            raise UsageError(
                f"{step.path}: exists, and no job of this cache made it: overwrite it with --force, or use another "
                "--prefix"
            )
        return None
    changes = differences(old, header)
    if changes:
        raise UsageError(
            f"{step.path}: made by a job with other options: {'; '.join(changes)}. "
            "Start over with --force, or write elsewhere with --prefix"
        )
    return old if not old.complete or step.path.exists() else None


def _check_options(spec: JobSpec) -> None:
    if spec.step < 0:
        raise UsageError(f"--step {spec.step}: steps count from 0, the input")
    if spec.limit is not None and spec.limit < 1:
        raise UsageError(f"--limit {spec.limit}: must be at least 1")
    try:
        canonical_language(spec.language)
    except TranscriptionError as error:
        raise UsageError(f"--language {spec.language}: {error.message}") from None
    try:
        (spec.prompt or "").encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError("--prompt: not valid UTF-8") from None


def _audio_root(spec: JobSpec, step: Step, step0: list[Path]) -> str:
    """Where relative paths start: as told, as the step before had it, or the folder of step 0."""
    if spec.audio_root is not None:
        return spec.audio_root if "://" in spec.audio_root else str(Path(spec.audio_root).absolute())
    if step.number > 1:
        before = JobHeader.read(Step(step.cache_path, step.prefix, step.number - 1).header_path)
        if before is not None:
            return before.audio_root
    folders = {str(path.absolute().parent) for path in step0}
    if len(folders) > 1:
        raise UsageError("the inputs lie in several folders: say with --audio-root where relative paths start")
    return folders.pop()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
