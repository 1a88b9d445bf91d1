"""What a bulk message asks for: each row's answer in its job's stream, as soon as it is ready."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from workers import keys, retries
from workers.delivery import Envelope
from workers.errors import TranscriptionError
from workers.marks import DONE_SECONDS, Claim
from workers.messages import Failure, Item, Options, Record, Task, failures_of, parse_record
from workers.runtime import Runtime
from workers.singles import send_single, single_id
from workers.split import Splitter


@dataclass(slots=True)
class RowsWork:
    """The rows of one message and what became of them (see `workers.delivery.Work`). For one run of one message.

    Raises TranscriptionError ``bad_argument`` if a record has no row number: it could not be answered.
    """

    runtime: Runtime
    envelope: Envelope
    kind: Task
    records: list[Any]
    options: Options
    job: str
    retry_seconds: float
    of_job: bool = True
    _splitter: Splitter = field(init=False)
    _counts: Counter[str] = field(default_factory=Counter)
    _reasons: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._splitter = Splitter(self.runtime, self.envelope, self.options, self.job)
        if not isinstance(self.records, list):
            raise TranscriptionError("bad_argument", "records must be a list")
        for number, record in enumerate(self.records):
            row = record.get("row") if isinstance(record, dict) else None
            if type(row) is not int or row < 0:
                raise TranscriptionError("bad_argument", f"record {number}: a record of a job needs its row number")

    @property
    def done_seconds(self) -> int:
        """A row may be sent on with its spans long after they were done."""
        is_span = any(record.get("span_of") is not None for record in self.records)
        return keys.TASK_EXPIRES_SECONDS if is_span else DONE_SECONDS

    @property
    def divisible(self) -> bool:
        """Whether there are rows to part."""
        return len(self.records) > 1

    def run(self, claim: Claim) -> dict[str, Any]:
        """Answer each row that has no answer yet; one that fails for a moment goes on in a message of its own."""
        failed = retries.transcribe(
            self.runtime.transcriber,
            self._readable(claim),
            self.kind,
            self.options,
            self._deliver,
            pause_seconds=self.retry_seconds,
            stopping=self.runtime.stopping,
            share=None if self.envelope.id is None else self._splitter.share,
        )
        self._counts["spans"] = self._splitter.count
        for record, items in failed:
            if record.attempt < retries.MAX_ATTEMPTS and self.envelope.id is not None:
                attempt = record.attempt + 1
                self._send_on(record.model_copy(update={"attempt": attempt}), f"a{attempt}", claim)
                self._counts["retried"] += 1
            else:
                tried = f"{record.attempt} attempts of {retries.TRIES_IN_PLACE} tries"
                self._deliver(record, retries.given_up(items, tried))
        return self._summary()

    def divide(self, claim: Claim) -> dict[str, Any]:
        """Send each row without an answer on as a suspect. None of them has been alone yet."""
        accusation = replace(claim, deaths=claim.deaths + claim.deaths_alone, deaths_alone=0)
        for record in self._readable(claim):
            self._send_on(record, "s", accusation)
            self._counts["suspects"] += 1
        return self._summary()

    def give_up(self, claim: Claim, failure: Failure) -> dict[str, Any]:
        """Answer each row that has no answer yet with ``failure``, once a recording."""
        for record in self._readable(claim):
            self._deliver(record, [failure] * len(record.sources))
        return self._summary()

    def repeat(self) -> dict[str, Any]:
        """All rows have their answers."""
        self._counts["skipped"] = len(self.records)
        return self._summary()

    def _readable(self, claim: Claim) -> Iterator[Record]:
        """The records that are left. One that cannot be read costs its own row, not the others of its message."""
        for number, record in enumerate(self.records):
            if record["row"] in claim.settled:
                self._counts["skipped"] += 1
                continue
            try:
                parsed = parse_record(record, number)
            except TranscriptionError as error:
                self._deliver(Record.model_construct(audio="-", row=record["row"]), [Failure.of(error)])
            else:
                yield parsed

    def _deliver(self, record: Record, items: list[Item]) -> None:
        failures = [failure for item in items for failure in failures_of(item)]
        self._counts["failed"] += bool(failures)
        self._reasons.update(failure.type for failure in failures)
        self.runtime.sink.add(self.job, self._splitter.answer(record, items), self.envelope.id)

    def _send_on(self, record: Record, suffix: str, claim: Claim) -> None:
        """Sent before it is settled here, so that at no moment it is neither queued nor held."""
        origin, row, marks = self.envelope.id or "", record.row or 0, self.runtime.deliveries.marks
        id = single_id(self.job, row, origin, suffix)
        if claim.suspect:
            marks.accuse(id, claim)
        options = self.options.model_dump(exclude_defaults=True)
        send_single(
            self.envelope, id, record.model_dump(exclude_defaults=True), options, self.job, self.runtime.stopping
        )
        marks.settle(origin, row)

    def _summary(self) -> dict[str, Any]:
        """Counts for whoever watches the tasks; those of the uncommon are there when they are not 0."""
        uncommon = {
            name: self._counts[name] for name in ("skipped", "retried", "suspects", "spans") if self._counts[name]
        }
        return {
            "rows": len(self.records),
            "failed": self._counts["failed"],
            "reasons": dict(self._reasons),
            **uncommon,
        }
