"""The rows of a job between sent and journaled."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from producer.window import Window

ROWS = st.integers(0, 30)


@given(st.integers(1, 40), st.lists(st.tuples(st.sampled_from(["sent", "answered", "look"]), ROWS)))
def test_it_knows_what_is_on_its_way_as_of_the_last_look(limit: int, happens: list[tuple[str, int]]) -> None:
    journaled: set[int] = set()
    window = Window(limit, lambda: frozenset(journaled))
    sent, seen = set[int](), frozenset[int]()
    for what, row in happens:
        if what == "sent" and window.lacks(row):
            window.add([row])
            sent.add(row)
        elif what == "answered":
            journaled.add(row)
        elif what == "look":
            window.look()
            seen = frozenset(journaled)
            sent -= seen
    assert len(window) == len(sent)
    assert window.free == limit - len(sent)
    assert {row for row in range(31) if not window.lacks(row)} == sent | seen
    # What may come free is never less than what does.
    room = len(sent & journaled) + window.free
    assert room <= window.free or window.may_free(room)


@given(st.sets(ROWS), st.sets(ROWS), st.sets(ROWS))
def test_what_is_neither_there_nor_journaled_is_lost(sent: set[int], there: set[int], journaled: set[int]) -> None:
    window = Window(100, lambda: frozenset(journaled))
    window.look()
    # (rows that were journaled as they were sent again are in the window, and no new answer: a look passes them by)
    window.add(sent)
    window.look()
    assert len(window) == len(sent)
    assert window.lost(there) == sent - there - journaled
    assert len(window) == len(sent - journaled)


def test_a_journal_that_shrank_is_looked_at() -> None:
    """Somebody removed it, and its rows are sent again."""
    journaled = {1, 2}
    window = Window(10, lambda: frozenset(journaled))
    window.look()
    window.add([3])
    journaled = {3}
    window.look()
    assert len(window) == 0
    assert window.lacks(1)
