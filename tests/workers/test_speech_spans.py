"""Where speech starts and ends, and where too much of it is cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workers.speech_spans import Span, SpanFinder, WindowOptions, best_cut


def test_span_finder_says_where_the_next_span_can_start() -> None:
    finder = SpanFinder(WindowOptions())
    assert list(finder.feed([0.0, 0.0, 0.0])) == []
    assert finder.earliest_next == 3
    assert list(finder.feed([1.0] * 10)) == []
    assert finder.earliest_next == 3
    assert list(finder.feed([0.0] * 20)) == [Span(3, 13)]
    assert list(finder.finish()) == []


@given(st.lists(st.floats(0, 1), min_size=2, max_size=100))
def test_best_cut_leaves_something_on_both_sides(probabilities: list[float]) -> None:
    assert 0 < best_cut(probabilities, 0.35) < len(probabilities)
