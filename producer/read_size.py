"""How many answers a collector reads at once: hundreds of short ones, a few of recordings of hours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

#: At most so many entries of each stream, and about so many bytes of all streams together.
READ_COUNT = 500
READ_BYTES = 16 * 2**20
#: Where nothing is known of the answers that wait, and how fast that is left behind.
FIRST_COUNT = 4
GROWTH = 4


class ReadSize:
    """``count``: the most entries of a stream that the next read takes, by what the last one gave."""

    def __init__(self) -> None:
        self.count = FIRST_COUNT

    def begin_small(self) -> None:
        """Nothing is known of a new stream: it may hold all that came while nobody collected."""
        self.count = min(self.count, FIRST_COUNT)

    def learn(self, streams: Iterable[Sequence[int]]) -> None:
        """A read gave entries of these sizes, in bytes, of each stream that had any."""
        bytes_each = sum(sum(sizes) / len(sizes) for sizes in streams if sizes)
        if bytes_each:
            self.count = max(1, min(READ_COUNT, GROWTH * self.count, int(READ_BYTES / bytes_each)))
