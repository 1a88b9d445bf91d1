"""Parts of rows: the answers of a long recording's spans, kept on the disk until their row is whole.

A part is on the disk before it leaves Redis, as an answer is in the journal. When all spans that a row awaits have
come, they become one answer (`workers.spans`), which goes into the journal like any other. The file is read again after
a crash, and removed with the journal (`producer.job.Job.finish`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from producer.disk import disk_errors, fsync_folder
from producer.follow import RowSet
from workers.messages import PartResult, RowResult, Span, first_problem
from workers.spans import joined

log = logging.getLogger(__name__)

#: In every part and in no whole answer: inside a JSON text its quotation marks would be escaped.
_MARK = b'"part":'


#: Rows in memory from which on those are forgotten that are answered.
LEAST_SWEEP_ROWS = 1000


@dataclass(slots=True)
class _Row:
    """Where in the file a row's parts are: what begins its answer, by the spans that it awaits, and the spans."""

    firsts: dict[tuple[Span, ...], tuple[int, int]] = field(default_factory=dict)
    spans: dict[Span, tuple[int, int]] = field(default_factory=dict)

    def whole(self) -> tuple[Span, ...] | None:
        """The spans of an answer of which every part is there."""
        return next((awaited for awaited in self.firsts if self.spans.keys() >= set(awaited)), None)

    def add(self, part: PartResult, place: tuple[int, int]) -> None:
        """Of equal parts the first counts."""
        if part.part.span is None:
            self.firsts.setdefault(part.part.awaits, place)
        else:
            self.spans.setdefault(part.part.span, place)


class PartStore:
    """The parts of a job's rows. In memory are only the places of those whose row is not whole yet. One owner.

    ``answered``: the rows that are in the journal; their parts are passed over. Not for whole answers: `take` lets
    those through.
    """

    def __init__(self, path: Path, rows: int, answered: RowSet) -> None:
        self._path = path
        self._row_count = rows
        self._answered = answered
        self._rows: dict[int, _Row] = {}
        self._size = 0
        self._sweep_at = LEAST_SWEEP_ROWS
        for line in self._lines():
            part = self._read(line)
            if part is not None:
                self._rows.setdefault(part.row, _Row()).add(part, (self._size, len(line)))
            self._size += len(line)

    def take(self, answers: Iterable[bytes]) -> list[bytes]:
        """The answers that are whole, and those whose last parts are among these, as the journal takes them.

        Of rows that have no part among these nothing is looked at: there may be as many as wait for their last part.
        Parts are on the disk when this returns. Raises FleetError where the disk is full or fails: then nothing counts.
        """
        self._forget_answered()
        whole: list[bytes] = []
        lines: list[tuple[PartResult, bytes]] = []
        for answer in answers:
            if _MARK not in answer:
                whole.append(answer)
            elif (part := self._read(answer)) is not None:
                lines.append((part, answer.strip().replace(b"\n", b" ") + b"\n"))
        if lines:
            self._write(b"".join(line for _, line in lines))
            for part, line in lines:
                self._rows.setdefault(part.row, _Row()).add(part, (self._size, len(line)))
                self._size += len(line)
        return [*whole, *self._joined({part.row for part, _ in lines})]

    def _forget_answered(self) -> None:
        """Now and then: a row that is given as whole may be given again, where the journal could not take it."""
        if len(self._rows) >= self._sweep_at:
            self._rows = {number: row for number, row in self._rows.items() if number not in self._answered}
            self._sweep_at = max(LEAST_SWEEP_ROWS, 2 * len(self._rows))

    def standing(self) -> list[bytes]:
        """The answers whose parts are all in the file: a crash came before they were in the journal."""
        return list(self._joined(list(self._rows)))

    def _joined(self, numbers: Iterable[int]) -> Iterator[bytes]:
        for number in numbers:
            row = self._rows[number]
            if number in self._answered:
                continue
            if (awaited := row.whole()) is not None:
                yield self._join(number, row, awaited)

    def _join(self, number: int, row: _Row, awaited: tuple[Span, ...]) -> bytes:
        first = self._part_at(row.firsts[awaited])
        items = list(first.items)
        for recording, item in enumerate(items):
            later = sorted((span for span in awaited if span.recording == recording), key=lambda span: span.start_s)
            items[recording] = joined([item, *(self._part_at(row.spans[span]).items[0] for span in later)])
        return RowResult(row=number, items=items).model_dump_json().encode()

    def _read(self, line: bytes) -> PartResult | None:
        """A part of a row that is not answered yet; what is no part is logged and left out."""
        try:
            part = _parsed(line)
        except ValidationError as error:
            log.warning("%s: a part of an answer is ignored: %s", self._path, first_problem(error))
            return None
        if part.row >= self._row_count or (part.part.span is not None and len(part.items) != 1):
            log.warning("%s: a part of an answer is ignored: row %d has no such part", self._path, part.row)
            return None
        return None if part.row in self._answered else part

    def _part_at(self, place: tuple[int, int]) -> PartResult:
        with disk_errors(self._path), self._path.open("rb") as handle:
            handle.seek(place[0])
            return _parsed(handle.read(place[1]))

    def _lines(self) -> Iterator[bytes]:
        """The whole lines of the file. A last one that a crash cut off is written over: it was still in Redis."""
        with disk_errors(self._path):
            if self._path.exists():
                with self._path.open("rb") as handle:
                    for line in handle:
                        if line.endswith(b"\n"):
                            yield line

    def _write(self, data: bytes) -> None:
        with disk_errors(self._path):
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.ftruncate(fd, self._size)
                written = 0
                while written < len(data):
                    written += os.pwrite(fd, data[written:], self._size + written)
                os.fsync(fd)
            finally:
                os.close(fd)
            if not self._size:
                fsync_folder(self._path.parent)


def _parsed(line: bytes) -> PartResult:
    """What a newer worker says besides is passed over, or its rows would be sent again without end."""
    return PartResult.model_validate_json(line, extra="ignore")
