"""Pauses: where a timestamp may mean one, and segments that start and end where speech does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.interface import WindowSegment
from workers.pauses import SNAP_SECONDS, pauses_after, snapped

#: Speech with a short breath at 2 s, and pauses of 0.6 s at 5 s and of 1 s at 9 s.
SPEECH = [(0.5, 2.0), (2.1, 5.0), (5.6, 9.0), (10.0, 14.0)]


def test_pauses_lie_between_stretches_of_speech_with_some_slack() -> None:
    assert pauses_after(SPEECH, 0.0) == (pytest.approx((4.7, 5.8)), pytest.approx((8.7, 10.2)))


def test_pauses_count_from_where_decoding_goes_on() -> None:
    assert pauses_after(SPEECH, 5.2) == (pytest.approx((0.0, 0.6)), pytest.approx((3.5, 5.0)))
    assert pauses_after(SPEECH, 12.0) == ()


def test_segments_start_and_end_with_the_speech_nearby() -> None:
    # Given what the model says of its times: late, early, and far from any pause
    said = [WindowSegment(0.0, 5.4, "a"), WindowSegment(5.4, 7.3, "b"), WindowSegment(7.3, 9.5, "c")]
    # When they are moved
    moved = snapped(said, SPEECH)
    # Then those near a pause lie around it, and the border within speech stays
    assert [(one.start, one.end, one.text) for one in moved] == [(0.5, 5.0, "a"), (5.6, 7.3, "b"), (7.3, 9.0, "c")]


def test_a_segment_that_started_too_late_takes_its_start_from_the_one_before() -> None:
    moved = snapped([WindowSegment(0.5, 6.0, "a"), WindowSegment(6.0, 9.0, "b")], SPEECH)
    assert [(one.start, one.end) for one in moved] == [(0.5, 5.6), (5.6, 9.0)]


def test_without_speech_nothing_moves() -> None:
    said = (WindowSegment(0.0, 1.0, "a"),)
    assert snapped(said, []) == said


steps = st.lists(st.integers(0, 1500), min_size=2, max_size=24, unique=True).map(sorted)


def pairs(times: list[int]) -> list[tuple[float, float]]:
    return [(start / 50, end / 50) for start, end in zip(times[::2], times[1::2], strict=False)]


@given(segments=steps, speech=steps)
def test_order_and_length_are_kept_and_nothing_moves_far(segments: list[int], speech: list[int]) -> None:
    said = [WindowSegment(start, end, str(start)) for start, end in pairs(segments)]
    moved = snapped(said, pairs(speech))

    assert [one.text for one in moved] == [one.text for one in said]
    now = 0.0
    for before, after in zip(said, moved, strict=True):
        assert now <= after.start <= after.end
        now = after.end
        assert abs(after.start - before.start) <= SNAP_SECONDS + 1e-9
