"""What a message without a job asks for: the transcripts themselves, as the task's result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from celery.exceptions import Ignore

from workers import retries
from workers.errors import TranscriptionError
from workers.marks import Claim
from workers.messages import ChannelTranscripts, Failure, Item, Options, Record, Task, failures_of
from workers.runtime import Runtime


@dataclass(slots=True)
class CallWork:
    """The records of one call (see `workers.delivery.Work`). ``urgent``: they go before those of jobs."""

    runtime: Runtime
    kind: Task
    records: list[Record]
    options: Options
    retry_seconds: float
    urgent: bool = True
    of_job: bool = False
    done_seconds: int = 0
    divisible: bool = False

    def run(self, claim: Claim) -> list[Any]:
        """One entry a record: a transcript or ``{"error": ...}``, a list where audio was one.

        A recording whose channels were split is ``{"channels": [...]}`` with such an entry a channel. A single record
        with a single file that fails (all its channels) raises its TranscriptionError, so that the task is a FAILURE.
        """
        answers: dict[int, list[Item]] = {}

        def deliver(record: Record, items: list[Item]) -> None:
            answers[id(record)] = items

        failed = retries.transcribe(
            self.runtime.transcriber,
            self.records,
            self.kind,
            self.options,
            deliver,
            pause_seconds=self.retry_seconds,
            stopping=self.runtime.stopping,
            urgent=self.urgent,
        )
        for record, items in failed:
            deliver(record, retries.given_up(items, f"{retries.TRIES_IN_PLACE} tries"))
        return self._entries([answers[id(record)] for record in self.records])

    def divide(self, claim: Claim) -> Any:
        """A call is answered as one: it is never divided."""
        raise NotImplementedError

    def give_up(self, claim: Claim, failure: Failure) -> Any:
        """The call fails as a whole."""
        raise TranscriptionError(failure.type, failure.message)

    def repeat(self) -> Any:
        """Its result is stored already."""
        raise Ignore

    def _entries(self, answers: list[list[Item]]) -> list[Any]:
        if len(answers) == 1 and len(answers[0]) == 1:
            item = answers[0][0]
            failures = failures_of(item)
            if len(failures) == (len(item.channels) if isinstance(item, ChannelTranscripts) else 1):
                raise TranscriptionError(failures[0].type, failures[0].message)
        entries = [[_entry(item) for item in items] for items in answers]
        return [
            entry[0] if isinstance(record.audio, str) else entry
            for record, entry in zip(self.records, entries, strict=True)
        ]


def _entry(item: Item) -> dict[str, Any]:
    if isinstance(item, ChannelTranscripts):
        return {"channels": [_entry(channel) for channel in item.channels]}
    return {"error": item.model_dump()} if isinstance(item, Failure) else item.model_dump(mode="json")
