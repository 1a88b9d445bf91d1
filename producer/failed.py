"""What failed in a step, and why: read from its file, or from the journal of a job that is still running."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from producer.columns import is_failure, parts_of
from producer.errors import FleetError, UsageError
from producer.inputs import read_rows
from producer.job import Job
from producer.journal import Journal
from producer.merge import picked
from producer.rows import recording_count

#: Examples that are kept of each reason.
EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class FailedRow:
    """A row (numbers count from 0) in which something failed.

    ``failures`` are the number of the recording, the type and the message of each; ``whole``: nothing else is in it.
    """

    row: int
    failures: list[tuple[int, str, str]]
    whole: bool

    def reasons(self) -> Counter[str]:
        """Its failures by type."""
        return Counter(type for _, type, _ in self.failures)


@dataclass(slots=True)
class Example:
    """One failure: its row, its audio and what was said of it."""

    row: int
    message: str
    recording: int
    audio: str = ""


@dataclass(slots=True)
class Reason:
    """The rows that failed for one reason."""

    rows: int = 0
    examples: list[Example] = field(default_factory=list)


@dataclass(slots=True)
class Failures:
    """``answered`` rows were looked at; in ``failed`` of them everything failed, in ``partly`` something."""

    rows: int
    answered: int = 0
    failed: int = 0
    partly: int = 0
    reasons: dict[str, Reason] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, most frequent reason first."""
        reasons = {
            type: {
                "rows": reason.rows,
                "examples": [{"row": one.row, "audio": one.audio, "message": one.message} for one in reason.examples],
            }
            for type, reason in self.ranked()
        }
        return {
            "rows": self.rows,
            "answered": self.answered,
            "failed": self.failed,
            "partly_failed": self.partly,
            "reasons": reasons,
        }

    def ranked(self) -> list[tuple[str, Reason]]:
        """The reasons, most frequent first."""
        return sorted(self.reasons.items(), key=lambda item: (-item[1].rows, item[0]))


def failures_of(job: Job) -> Failures:
    """What failed in a job's step: in its file if that is the job's (a retry replaces it last), else so far.

    Memory: a bit a row at most. An example's ``audio`` is empty where the input of a running job is gone or another.
    Raises FleetError for a step file that another program changed.
    """
    made = job.header.complete or job.header.retry is not None
    found = Failures(job.header.rows)
    for row in _rows_made(job) if made else _rows_so_far(job):
        found.answered += 1
        if row is not None:
            _add(found, row)
    examples = [one for reason in found.reasons.values() for one in reason.examples]
    if made:
        _name_audio(job, step_lines(job), examples)
    elif examples:
        # Of a running job the input may be gone or another meanwhile.
        with contextlib.suppress(UsageError, ValueError, AttributeError):
            job.check_input()
            _name_audio(job, job.lines(), examples)
    return found


def step_lines(job: Job) -> Iterator[bytes]:
    """The rows of the job's step file. Raises FleetError where it is not there."""
    if not job.step.path.exists():
        raise FleetError(f"{job.step.path}: not there any more: run the command that made it again")
    return read_rows([job.step.path])


def failed_row(job: Job, row: int, line: bytes) -> FailedRow | None:
    """A row of the job's step file as far as something failed in it. Raises FleetError for what is no such row."""
    columns = job.columns
    if not columns.may_have_failed(line):
        return None
    try:
        errors = columns.errors(json.loads(line, parse_int=float), recording_count(line, job.media_key) == 1)
        failures = [(at, error["type"], error["message"]) for at, error in errors if error is not None]
    except (ValueError, LookupError, TypeError, AttributeError):
        raise foreign_row(job, row) from None
    return FailedRow(row, failures, whole=len(failures) == len(errors)) if failures else None


def foreign_row(job: Job, row: int) -> FleetError:
    """What is said of a row of the job's step file that is not as the job wrote it."""
    return FleetError(f"{job.step.path}:{row + 1}: changed by another program: start over with --force")


def _rows_made(job: Job) -> Iterator[FailedRow | None]:
    return (failed_row(job, row, line) for row, line in enumerate(step_lines(job)))


def _rows_so_far(job: Job) -> Iterator[FailedRow | None]:
    for answer in Journal.read_answers(job.step.journal_path, job.rows):
        parts = [(at, part) for at, item in enumerate(answer.items) for part in parts_of(item)]
        failures = [(at, part["type"], part["message"]) for at, part in parts if is_failure(part)]
        yield FailedRow(answer.row, failures, whole=len(failures) == len(parts)) if failures else None


def _add(found: Failures, row: FailedRow) -> None:
    if row.whole:
        found.failed += 1
    else:
        found.partly += 1
    seen: set[str] = set()
    for at, type, message in row.failures:
        if type in seen:
            continue
        seen.add(type)
        reason = found.reasons.setdefault(type, Reason())
        reason.rows += 1
        if len(reason.examples) < EXAMPLES:
            reason.examples.append(Example(row.row, message, at))


def _name_audio(job: Job, lines: Iterable[bytes], examples: Collection[Example]) -> None:
    """Look up in ``lines``, the rows of the step or of its input, what the examples' rows name."""
    rows = sorted({one.row for one in examples})
    for row, line in zip(rows, picked(lines, rows), strict=False):
        media = json.loads(line, parse_int=float).get(job.media_key)
        for one in (one for one in examples if one.row == row):
            recordings = media if isinstance(media, list) else [media]
            one.audio = str((recordings[one.recording : one.recording + 1] or [""])[0] or "")
