"""The journal of a job: one line per answered row, as it was received, on the disk before it counts as answered.

Of a row's answers the first counts, so that what a crashed or doubled worker sends again changes nothing.
"""

from __future__ import annotations

import json
import logging
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from producer.aside import Stopped, never, while_wanted
from producer.disk import disk_errors, fsync_folder
from producer.errors import FleetError
from producer.journal_lines import Answer, Figures, read_answer, row_of

logger = logging.getLogger(__name__)

_UNANSWERED = -1
_READ_BYTES = 8192

Value = TypeVar("Value")


class Journal:
    """The answers of a job with ``rows`` rows; 8 bytes of memory a row. One owner writes it, under the job's lock.

    Not thread-safe: one thread at a time appends and reads lines; others may look at the counters.
    """

    def __init__(self, path: Path, rows: int, fd: int) -> None:
        self.path = path
        self.rows = rows
        #: Rows answered, and those of them in which every recording failed, with all its channels.
        self.answered = 0
        self.failed = 0
        #: Failed recordings and channels by the type of their failure, those of partly failed rows too.
        self.reasons: Counter[str] = Counter()
        #: Length of the transcribed recordings; of reused answers it was counted when they were made.
        self.audio_seconds = 0.0
        #: Rows whose answer was taken from an earlier step (`producer.reuse`).
        self.reused = 0
        self._fd = fd
        self._size = 0
        #: Whether a write that failed may have left something behind that.
        self._untidy = False
        self._offsets = array("q", [_UNANSWERED]) * rows

    @classmethod
    def open(cls, path: Path, rows: int, stopped: Stopped = never) -> Journal:
        """Open or create the journal at ``path`` and read what is there.

        A last line that a crash cut off is removed. Raises FleetError that names the line for any other damage, and
        for rows that the input does not have, and StoppedError soon after ``stopped``.
        """
        with disk_errors(path):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            journal = cls(path, rows, fd)
            try:
                for answer, offset, size in while_wanted(_answers(path, rows, read_answer), stopped):
                    if answer.row not in journal:
                        journal._count(answer.figures(), offset)
                    journal._size = offset + size
                if os.fstat(fd).st_size > journal._size:
                    logger.warning("%s: the last line was cut off by a crash and is removed", path)
                    os.ftruncate(fd, journal._size)
                os.fsync(fd)
                fsync_folder(path.parent)
            except BaseException:
                os.close(fd)
                raise
        return journal

    @staticmethod
    def read_answered(path: Path, rows: int, known: Answered | None = None) -> Answered:
        """The rows answered so far, for a process that does not own the journal: changes nothing, one bit a row.

        ``known`` is what an earlier call gave: only what has come since is read, and added to it.
        """
        answered = Answered(rows) if known is None else known
        if path.exists():
            if path.stat().st_size < answered.read_bytes:  # what was read was taken back: the disk was full
                answered.clear()
            for row, offset, size in _answers(path, rows, row_of, answered.read_bytes):
                answered.add(row)
                answered.read_bytes = offset + size
        return answered

    @staticmethod
    def read_answers(path: Path, rows: int) -> Iterator[Answer]:
        """The answers so far, of each row the one that counts, for a process that does not own the journal."""
        seen = Answered(rows)
        for answer, _, _ in _answers(path, rows, read_answer) if path.exists() else ():
            if answer.row not in seen:
                seen.add(answer.row)
                yield answer

    def append(self, results: Iterable[bytes]) -> int:
        """Put answers (`RowResult` as JSON) on the disk and return how many were new.

        What is no answer to a row of this job is logged and left out. Raises FleetError where the disk is full or
        fails: then none of them counts, and a later call may succeed.
        """
        fresh: dict[int, tuple[Figures, bytes]] = {}
        for raw in results:
            try:
                answer = read_answer(raw, self.rows)
            except ValueError as error:
                logger.warning("%s: an answer is ignored: %s", self.path, error)
                continue
            if answer.row not in self and answer.row not in fresh:
                # A foreign worker may indent its JSON; here a line is an answer.
                line = raw.strip() if b"\n" not in raw.strip() else json.dumps(answer.as_dict()).encode()
                fresh[answer.row] = (answer.figures(), line + b"\n")
        if fresh:
            self._write(b"".join(line for _, line in fresh.values()))
        for figures, line in fresh.values():
            self._count(figures, self._size)
            self._size += len(line)
        return len(fresh)

    def __contains__(self, row: int) -> bool:
        return self._offsets[row] != _UNANSWERED

    def __len__(self) -> int:
        return self.answered

    def line(self, row: int) -> bytes:
        """The answer of ``row`` as it was received, without newline. Raises FleetError where there is none."""
        offset = self._offsets[row]
        if offset == _UNANSWERED:
            raise FleetError(f"{self.path}: row {row} has no answer yet: run the same command again")
        parts: list[bytes] = []
        while block := os.pread(self._fd, _READ_BYTES, offset):
            end = block.find(b"\n")
            if end >= 0:
                return b"".join((*parts, block[:end]))
            parts.append(block)
            offset += len(block)
        raise FleetError(f"{self.path}: row {row} is cut off: the journal was changed by another program")

    def items(self, row: int) -> list[dict[str, Any]]:
        """The items of the answer of ``row``: the fields of a `Transcript`, `Failure` or `ChannelTranscripts` each.

        Raises FleetError where there is none, or another's.
        """
        try:
            answer = read_answer(self.line(row), self.rows)
        except ValueError:
            answer = None
        if answer is None or answer.row != row:
            raise self._written_elsewhere()
        return answer.items

    def unanswered(self) -> Iterator[int]:
        """The rows without an answer, in order."""
        return (row for row, offset in enumerate(self._offsets) if offset == _UNANSWERED)

    def close(self) -> None:
        """Close the file; all that was appended is on the disk already."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write(self, data: bytes) -> None:
        with disk_errors(self.path):
            try:
                there = os.fstat(self._fd).st_size
                if self._untidy:  # an earlier failure may have left something behind the last good line
                    os.ftruncate(self._fd, self._size)
                elif there != self._size:
                    raise self._written_elsewhere()
                self._untidy = True
                written = 0
                while written < len(data):  # one write; another only where the disk took a part
                    written += os.pwrite(self._fd, data[written:], self._size + written)
                os.fsync(self._fd)
                self._untidy = False
            except OSError:
                os.ftruncate(self._fd, self._size)
                self._untidy = False
                raise

    def _written_elsewhere(self) -> FleetError:
        return FleetError(
            f"{self.path}: changed by another program: if that is a second collector, locks do not work on this file "
            "system: end one of the two"
        )

    def _count(self, answer: Figures, offset: int) -> None:
        self._offsets[answer.row] = offset
        self.answered += 1
        self.failed += answer.failed
        self.reasons.update(answer.reasons)
        if answer.reused:
            self.reused += 1
            return
        self.audio_seconds += answer.audio_seconds


@dataclass(slots=True)
class Answered:
    """A set of row numbers below ``rows``, one bit each."""

    rows: int
    count: int = 0
    #: How much of the journal they were read from.
    read_bytes: int = 0
    bits: bytearray = field(init=False)

    def __post_init__(self) -> None:
        self.bits = bytearray((self.rows + 7) // 8)

    def add(self, row: int) -> None:
        """Add a row; again does nothing."""
        if row not in self:
            self.bits[row >> 3] |= 1 << (row & 7)
            self.count += 1

    def clear(self) -> None:
        """No row is in it, and nothing was read."""
        self.bits[:] = bytes(len(self.bits))
        self.count = self.read_bytes = 0

    def __contains__(self, row: int) -> bool:
        return bool(self.bits[row >> 3] & 1 << (row & 7))

    def __len__(self) -> int:
        return self.count


def _answers(
    path: Path, rows: int, read: Callable[[bytes, int], Value], start: int = 0
) -> Iterator[tuple[Value, int, int]]:
    """What ``read`` makes of each whole line from byte ``start`` on, with offset and size.

    A last line that a crash spoiled is left out.
    """
    offset = start
    spoiled: str | None = None
    with path.open("rb", buffering=2**18) as handle:
        handle.seek(start)
        for line in handle:
            if spoiled:
                break
            if not line.endswith(b"\n"):
                return
            try:
                value = read(line, rows)
            except UnicodeDecodeError as error:
                spoiled = f"{_place(path, offset)}: not valid UTF-8 ({error.reason})"
            except json.JSONDecodeError as error:
                spoiled = f"{_place(path, offset)}: not valid JSON ({error.msg})"
            except ValueError as error:
                raise FleetError(f"{_place(path, offset)}: {error}: start over with --force") from None
            else:
                yield value, offset, len(line)
                offset += len(line)
        else:
            return  # at most the last line was spoiled: blocks of a batch may reach the disk out of order
    raise FleetError(f"{spoiled}: delete this line to have its row done again, or start over with --force")


def _place(path: Path, offset: int) -> str:
    """The file and the number of the line at ``offset``."""
    number = 1
    with path.open("rb") as handle:
        while offset > 0 and (block := handle.read(min(offset, 2**18))):
            number += block.count(b"\n")
            offset -= len(block)
    return f"{path}:{number}"
