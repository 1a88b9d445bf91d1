"""How many rows a message of a job has, and how many rows of it are on their way.

A message is what a worker's thread takes: small ones give every thread work and end together, large ones cost the
broker and the worker's main loop less a row (about a millisecond a message).

- Every thread of the fleet gets a message before any message has a second row.
- Then messages grow until the threads together hold twice the windows that the engines decode at once, so that
  these never run dry (of a short row a thread has one window in the engine, and of a message, in the mean, no more than
  two thirds of its rows: it takes the next one when the last row is done).
- They grow further, to 64 rows, as far as each thread gets eight of them and they stay below about 60 s of audio.
  A row's length is known from its ``end_s`` and from a column ``duration``; the others count as the rows that are
  answered so far did on average.
- The last quarter of a job goes in smaller and smaller ones, down to what fills the engines, so that all workers end
  together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from workers.messages import MAX_SOURCES_CHARACTERS, Record
from workers.presence import Presence

MOST_ROWS = 64
MOST_SECONDS = 60.0
#: A thread gets so many large messages of a job: the last ones do not wait behind one worker's hoard.
MESSAGES_A_THREAD = 8
#: Windows that the threads hold, for each that the engines decode at once.
FULL = 2.0
#: Whisper's window. Messages of longer rows need not have several to fill the engine.
WINDOW_SECONDS = 30.0
#: Rows between sent and journaled: two messages for each thread, within these bounds. A row takes Redis about half a
#: kilobyte, sent or answered.
LEAST_WINDOW_ROWS, MOST_WINDOW_ROWS = 2000, 40_000
#: Taken where no worker is live yet: threads, and windows decoded at once.
UNKNOWN_FLEET = (8, 16)


@dataclass(frozen=True, slots=True)
class ChunkLimits:
    """The most rows, and about the most seconds of audio, of a message. A single row may be longer.

    ``threads``: those of the fleet, to end together; 0: messages do not become smaller. ``fill``: the smallest then.
    So many rows may be longer together, up to a window each: they fill the engines.
    """

    rows: int
    seconds: float = math.inf
    threads: int = 0
    fill: int = 1

    @classmethod
    def of(
        cls, job_rows: int, present: Sequence[Presence], *, rows: int | None = None, window_rows: int | None = None
    ) -> ChunkLimits:
        """The limits for a job of ``job_rows`` rows on these workers; ``rows``, ``window_rows``: the user's own."""
        if rows is not None:
            return cls(rows)
        threads, seats = _fleet(present)
        fill = _fill(threads, seats)
        at_once = MOST_WINDOW_ROWS if window_rows is None else window_rows
        few = min(fill, min(job_rows, at_once) // threads)
        many = min(MOST_ROWS, job_rows // (MESSAGES_A_THREAD * threads), at_once // (2 * threads))
        most = max(1, few, many)
        return cls(most, MOST_SECONDS, threads, min(fill, most))

    def seconds_with(self, rows: int) -> float:
        """The most seconds of audio of a message that has so many rows."""
        return max(self.seconds, WINDOW_SECONDS * self.fill) if rows <= self.fill else self.seconds

    def towards_end(self, rows_left: int) -> ChunkLimits:
        """The limits of the next message of a job of which so many rows are left: half of a thread's part of them."""
        if not self.threads or rows_left >= 2 * self.threads * self.rows:
            return self
        return replace(self, rows=max(self.fill, rows_left // (2 * self.threads)))


@dataclass(slots=True)
class Chunk:
    """A message's rows as they come together."""

    limits: ChunkLimits
    records: list[Record] = field(default_factory=list)
    _seconds: float = 0.0
    _characters: int = 0

    def has_room(self, seconds: float) -> bool:
        """Whether a row of this length belongs to it."""
        rows = len(self.records) + 1
        return rows == 1 or (rows <= self.limits.rows and self._seconds + seconds <= self.limits.seconds_with(rows))

    def add(self, record: Record, seconds: float) -> None:
        """Add a row."""
        self.records.append(record)
        self._seconds += seconds
        self._characters += sum(map(len, record.sources)) + len(record.prompt or "")

    @property
    def is_full(self) -> bool:
        """Whether no row belongs to it any more."""
        rows = len(self.records)
        # Each character may take 12 bytes in JSON: two such rows are within `workers.messages.MAX_MESSAGE_BYTES`.
        is_long = self._characters >= MAX_SOURCES_CHARACTERS
        return rows >= self.limits.rows or self._seconds >= self.limits.seconds_with(rows + 1) or is_long

    def take(self) -> list[Record]:
        """The rows; none are left."""
        records, self.records, self._seconds, self._characters = self.records, [], 0.0, 0
        return records


def window_rows_for(present: Sequence[Presence], limits: ChunkLimits) -> int:
    """Most rows of a job between sent and journaled."""
    threads, _ = _fleet(present)
    return max(LEAST_WINDOW_ROWS, min(MOST_WINDOW_ROWS, 2 * threads * limits.rows))


def _fleet(present: Sequence[Presence]) -> tuple[int, int]:
    """All workers' threads, and the windows that their engines decode at once."""
    if not present:
        return UNKNOWN_FLEET
    return sum(max(1, one.threads) for one in present), sum(max(1, one.max_num_seqs) for one in present)


def _fill(threads: int, seats: int) -> int:
    """Rows of one window each that a thread has to hold for full engines."""
    return max(1, min(MOST_ROWS, math.ceil(FULL * seats / threads)))
