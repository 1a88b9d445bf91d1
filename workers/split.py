"""A long recording shared with the whole fleet: its spans go on in messages of their own.

The worker that takes a row of a job reads its recording until the language is known, sends the spans after that to the
row's own queue, and does those before itself. Each answer is a part of the row's (`PartResult`); the collector joins
them (`producer.spans`). What makes it exact:

- Where the cuts are depends on the file alone (`workers.cuts`), and the spans carry them and the language: no two
  workers have to agree on anything.
- A span's message has the same id however often its row's message is run: one that is done is not done again. A row
  that is sent anew, because a part of it was lost, has new ids, and all its spans are done anew.
- The row's first part names the spans that belong to it. The row is answered when all of them are, by whomever; the
  first failure among them, in order of time, is the failure of the recording.
- While a span is queued or held its row is on its way (`producer.in_flight`): its message is one of the row's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from workers.delivery import Envelope
from workers.messages import Item, Options, Part, PartResult, Record, RowResult, Span
from workers.runtime import Runtime
from workers.singles import send_single, single_id


@dataclass(slots=True)
class Splitter:
    """The spans that one run of one message shares."""

    runtime: Runtime
    envelope: Envelope
    options: Options
    job: str
    _shared: dict[tuple[int, int], list[Span]] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many spans were sent."""
        return sum(map(len, self._shared.values()))

    def share(self, record: Record, spans: list[Span], language: str | None) -> None:
        """Send spans of one of the record's recordings, in the ``language`` that was voted for, if it was.

        Raises EngineLostError if the worker has to end first.
        """
        row, recording = record.row or 0, spans[0].recording
        if self._shared.get((row, recording)) == spans:  # this is another try in place
            return
        options = self.options.model_dump(exclude_defaults=True)
        for span in spans:
            one = {
                "audio": record.sources[recording],
                "start_s": span.start_s,
                "end_s": span.end_s,
                "language": language or record.language,
                "span_of": recording,
                "attempt": 1,
            }
            fields = record.model_copy(update=one).model_dump(exclude_defaults=True)
            id = single_id(self.job, row, self.envelope.id or "", f"p{_named(span)}")
            send_single(self.envelope, id, fields, options, self.job, self.runtime.stopping)
        self._shared[row, recording] = spans

    def answer(self, record: Record, items: list[Item]) -> RowResult | PartResult:
        """The answer of ``record``: its row's, or a part of it."""
        row = record.row or 0
        awaited = tuple(span for (of, _), spans in self._shared.items() if of == row for span in spans)
        if record.span_of is None and not awaited:
            return RowResult(row=row, items=items)
        return PartResult(row=row, items=items, part=Part(span=span_of(record), awaits=awaited))


def span_of(record: Record) -> Span | None:
    """The span that a record is, None for a row's own."""
    if record.span_of is None:
        return None
    return Span(recording=record.span_of, start_s=record.start_s or 0.0, end_s=record.end_s)


def _named(span: Span) -> str:
    """A span in the id of its message: hundredths of seconds, without the dots that part an id."""
    end = "" if span.end_s is None else f"{span.end_s * 100:.0f}"
    return f"{span.recording}-{span.start_s * 100:.0f}-{end}"
