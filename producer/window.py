"""A job's rows between sent and journaled: how many they are, and may be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set

from producer.follow import RowSet


class Window:
    """The rows on their way, of which there may be ``limit``. What is lost on its way counts until `lost` finds it.

    ``answered`` gives the rows that are in the journal.
    """

    def __init__(self, limit: int, answered: Callable[[], RowSet]) -> None:
        self.limit = limit
        self.answered = answered
        self._on_their_way: set[int] = set()
        #: The rows that were journaled when last looked, and how many, as their number may grow meanwhile.
        self._done: RowSet = ()
        self._looked_at = 0

    def __len__(self) -> int:
        return len(self._on_their_way)

    @property
    def free(self) -> int:
        """How many rows more may be sent, by the last look at the journal; negative where the limit has shrunk."""
        return self.limit - len(self._on_their_way)

    def lacks(self, row: int) -> bool:
        """Whether a row was neither answered nor on its way when last looked."""
        return row not in self._done and row not in self._on_their_way

    def add(self, rows: Iterable[int]) -> None:
        """These are on their way now."""
        self._on_their_way.update(rows)

    def may_free(self, rows: int) -> bool:
        """Whether a `look` may leave room for ``rows``: it costs more than this one at the number of answers."""
        return len(self.answered()) - self._looked_at >= rows - self.free

    def look(self) -> None:
        """Take out what is journaled by now."""
        self._done = done = self.answered()
        if len(done) != self._looked_at:
            self._looked_at = len(done)
            self._take_out(done)

    def lost(self, there: Set[int]) -> set[int]:
        """The rows that should be on their way and are not ``there``, after a look at each of them.

        A row that was answered as it was sent again is in the window, and no new answer.
        """
        self._done = done = self.answered()
        self._looked_at = len(done)
        self._take_out(done)
        return self._on_their_way - there

    def _take_out(self, done: RowSet) -> None:
        self._on_their_way = {row for row in self._on_their_way if row not in done}
