"""The two tasks, thin: what a message asks for, handed to whoever decides on its delivery. Light to import."""

from __future__ import annotations

from typing import Any

from celery import Task as CeleryTask

from workers import runtime
from workers.app import PRIORITY_BULK, app
from workers.calls import CallWork
from workers.delivery import Envelope, Work
from workers.errors import TranscriptionError
from workers.messages import TASK_NAMES, Task, parse_options, parse_records
from workers.rows import RowsWork
from workers.settings import settings

#: By name: only a worker loads them.
IN_WORKERS = {"Request": "workers.request:FleetRequest", "Strategy": "workers.versions:strategy"}


@app.task(name=TASK_NAMES["transcribe"], bind=True, throws=(TranscriptionError,), **IN_WORKERS)  # type: ignore[untyped-decorator]
def transcribe(
    self: CeleryTask, records: list[dict[str, Any]], options: dict[str, Any] | None = None, job: str | None = None
) -> Any:
    """Speech to text in the language spoken. ``records``: see `workers.messages.Record`."""
    return _run(self, "transcribe", records, options, job)


@app.task(name=TASK_NAMES["translate"], bind=True, throws=(TranscriptionError,), **IN_WORKERS)  # type: ignore[untyped-decorator]
def translate(
    self: CeleryTask, records: list[dict[str, Any]], options: dict[str, Any] | None = None, job: str | None = None
) -> Any:
    """Speech in any language to English text. ``records``: see `workers.messages.Record`."""
    return _run(self, "translate", records, options, job)


def _run(task: CeleryTask, kind: Task, records: Any, options: Any, job: str | None) -> Any:
    """Bulk messages name a job and send each row to its stream; others return their transcripts."""
    current, envelope, retry_seconds = runtime.current(), Envelope.of(task), settings().retry_seconds
    work: Work
    if job is not None:
        work = RowsWork(current, envelope, kind, records, parse_options(options), job, retry_seconds)
    else:
        urgent = envelope.priority < PRIORITY_BULK  # its sender may have named another one
        work = CallWork(current, kind, parse_records(records), parse_options(options), retry_seconds, urgent)
    return current.deliveries.handle(envelope, work)
