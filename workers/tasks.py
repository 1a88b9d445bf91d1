"""The two tasks, thin: records in, transcripts out, and which failure means what. Light to import."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

from celery import Task as CeleryTask
from celery.exceptions import Reject

from workers import runtime
from workers.app import app
from workers.errors import EngineLostError, TranscriptionError
from workers.messages import (
    TASK_NAMES,
    ChannelTranscripts,
    Failure,
    Item,
    Options,
    Record,
    RowResult,
    Task,
    failures_of,
    parse_options,
    parse_record,
    parse_records,
)

log = logging.getLogger(__name__)

#: By name: only a worker loads it.
REQUEST = "workers.request:FleetRequest"


@app.task(name=TASK_NAMES["transcribe"], bind=True, throws=(TranscriptionError,), Request=REQUEST)  # type: ignore[untyped-decorator]
def transcribe(
    self: CeleryTask, records: list[dict[str, Any]], options: dict[str, Any] | None = None, job: str | None = None
) -> Any:
    """Speech to text in the language spoken. ``records``: see `workers.messages.Record`."""
    return _run(self, "transcribe", records, options, job)


@app.task(name=TASK_NAMES["translate"], bind=True, throws=(TranscriptionError,), Request=REQUEST)  # type: ignore[untyped-decorator]
def translate(
    self: CeleryTask, records: list[dict[str, Any]], options: dict[str, Any] | None = None, job: str | None = None
) -> Any:
    """Speech in any language to English text. ``records``: see `workers.messages.Record`."""
    return _run(self, "translate", records, options, job)


def _run(task: CeleryTask, kind: Task, records: Any, options: Any, job: str | None) -> Any:
    """Bulk messages name a job and send each row to its stream; others return their transcripts.

    A lost engine puts the message back into the queue: nothing that it had not answered is lost.
    """
    try:
        if job is not None:
            return _run_rows(kind, records, parse_options(options), job)
        return _run_call(kind, parse_records(records), parse_options(options))
    except EngineLostError as error:
        log.error("task %s job %s goes back to the queue: %s", task.request.id, job, error)
        raise Reject(str(error), requeue=True) from error


def _run_rows(kind: Task, records: Any, options: Options, job: str) -> dict[str, Any]:
    """Each row to the job's stream as soon as it is ready; returns counts for whoever watches the tasks.

    A record that cannot be read costs its own row, not the others of its message.
    """
    if not isinstance(records, list):
        raise TranscriptionError("bad_argument", "records must be a list")
    current = runtime.current()
    reasons: Counter[str] = Counter()
    failed = 0

    def deliver(record: Record, items: list[Item]) -> None:
        nonlocal failed
        failures = [failure for item in items for failure in failures_of(item)]
        failed += bool(failures)
        reasons.update(failure.type for failure in failures)
        current.sink.add(job, RowResult(row=record.row or 0, items=items))

    def readable() -> Iterator[Record]:
        for number, record in enumerate(records):
            row = record.get("row") if isinstance(record, dict) else None
            if type(row) is not int or row < 0:
                raise TranscriptionError("bad_argument", f"record {number}: a record of a job needs its row number")
            try:
                yield parse_record(record, number)
            except TranscriptionError as error:
                deliver(Record.model_construct(audio="-", row=row), [Failure.of(error)])

    current.transcriber.transcribe(readable(), kind, options, deliver)
    return {"rows": len(records), "failed": failed, "reasons": dict(reasons)}


def _run_call(kind: Task, records: list[Record], options: Options) -> list[Any]:
    """The transcripts themselves, one entry a record: a transcript or ``{"error": ...}``, a list where audio was one.

    A recording whose channels were split is ``{"channels": [...]}`` with such an entry a channel. A single record with
    a single file that fails (all its channels) raises its TranscriptionError, so that the task is a FAILURE.
    """
    answers: list[Any] = []

    def deliver(record: Record, items: list[Item]) -> None:
        if len(records) == 1 and len(items) == 1:
            (item,), failures = items, failures_of(items[0])
            if len(failures) == (len(item.channels) if isinstance(item, ChannelTranscripts) else 1):
                raise TranscriptionError(failures[0].type, failures[0].message)
        entries = [_entry(item) for item in items]
        answers.append(entries[0] if isinstance(record.audio, str) else entries)

    runtime.current().transcriber.transcribe(records, kind, options, deliver)
    return answers


def _entry(item: Item) -> dict[str, Any]:
    if isinstance(item, ChannelTranscripts):
        return {"channels": [_entry(channel) for channel in item.channels]}
    return {"error": item.model_dump()} if isinstance(item, Failure) else item.model_dump(mode="json")
