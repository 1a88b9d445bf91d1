"""Pauses: where a timestamp may mean one, and segments that start and end where speech does."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.interface import WindowSegment
from workers.pauses import SNAP_SECONDS, next_utterance, pauses_after, snapped, taken_up

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


@pytest.mark.parametrize(
    ("said", "speech", "moved"),
    [
        # The model's first timestamp is at most 1 s: speech after more silence starts where it does.
        ([(0.9, 6.0)], [(3.0, 6.0)], [(3.0, 6.0)]),
        # It goes on where it stopped, or ends where it goes on: the pause belongs to neither segment.
        ([(0.0, 5.0), (5.0, 28.0)], [(0.0, 5.0), (8.0, 28.0)], [(0.0, 5.0), (8.0, 28.0)]),
        ([(0.0, 8.1), (8.1, 28.0)], [(0.0, 5.0), (8.0, 28.0)], [(0.0, 5.0), (8.0, 28.0)]),
        ([(0.0, 7.0)], [(0.0, 5.0)], [(0.0, 5.0)]),
        # A timestamp a little before a pause means it.
        ([(0.0, 4.8), (4.8, 28.0)], [(0.0, 5.0), (8.0, 28.0)], [(0.0, 5.0), (8.0, 28.0)]),
        ([(0.0, 4.6), (4.6, 28.0)], [(0.0, 5.0), (8.0, 28.0)], [(0.0, 4.6), (4.6, 28.0)]),
        # A short answer after a pause, whose end comes early too.
        ([(0.0, 5.0), (5.0, 8.2)], [(0.0, 5.0), (8.0, 8.6)], [(0.0, 5.0), (8.0, 8.6)]),
        # What lies in a pause as a whole was heard by the model alone: it stays.
        ([(0.0, 5.0), (6.0, 7.0), (8.0, 9.0)], [(0.0, 5.0), (8.0, 9.0)], [(0.0, 5.0), (6.0, 7.0), (8.0, 9.0)]),
        # A word between two pauses has its own end.
        ([(0.0, 8.15)], [(0.0, 5.0), (8.0, 8.15), (9.0, 12.0)], [(0.0, 8.15)]),
    ],
)
def test_silence_is_at_no_segments_start_or_end(
    said: list[tuple[float, float]], speech: list[tuple[float, float]], moved: list[tuple[float, float]]
) -> None:
    found = snapped([WindowSegment(start, end, "x") for start, end in said], speech)
    assert [(one.start, one.end) for one in found] == moved


@pytest.mark.parametrize(
    ("until_s", "from_s"),
    [
        (4.0, 4.0),  # within speech
        (4.8, 7.0),  # the end of the last word before the pause, and after it
        (5.0, 7.0),
        (6.5, 7.0),
        (7.5, 7.5),
        (8.1, 7.7),  # the start of the first word after it
        (8.5, 8.5),
        (27.9, 27.9),  # no pause comes
    ],
)
def test_what_is_taken_up_begins_with_a_word(until_s: float, from_s: float) -> None:
    assert taken_up([(0.0, 5.0), (8.0, 28.0)], until_s) == pytest.approx(from_s)


def test_a_short_pause_is_left_out_no_farther_than_it_lasts() -> None:
    assert taken_up([(0.0, 5.0), (5.5, 9.0)], 4.9) == 5.0
    assert taken_up([(0.0, 5.0), (5.2, 9.0)], 4.9) == 4.9, "no pause at all"


def test_the_next_utterance_comes_after_a_pause() -> None:
    speech = [(0.0, 2.0), (2.1, 5.0), (8.0, 9.0)]
    assert [next_utterance(speech, time_s) for time_s in (0.0, 5.0, 8.1, 8.5)] == [8.0, 8.0, 8.0, None]


def test_without_speech_nothing_moves() -> None:
    said = (WindowSegment(0.0, 1.0, "a"),)
    assert snapped(said, []) == said


@pytest.mark.parametrize(
    ("said", "speech", "moved"),
    [
        # Short answers without a pause between them.
        ([(0.3, 0.9), (0.9, 1.5)], [(0.3, 1.5)], [(0.3, 0.9), (0.9, 1.5)]),
        ([(0.3, 0.9), (0.9, 1.6)], [(0.3, 1.5)], [(0.3, 0.9), (0.9, 1.5)]),
        ([(2.0, 2.6), (2.6, 3.2)], [(0.0, 1.6), (2.1, 3.2)], [(2.1, 2.6), (2.6, 3.2)]),
        # A word that voice activity does not hear.
        ([(2.0, 2.4), (2.6, 5.0)], [(2.6, 5.0)], [(2.0, 2.4), (2.6, 5.0)]),
    ],
)
def test_a_short_utterance_is_swallowed_by_no_other(
    said: list[tuple[float, float]], speech: list[tuple[float, float]], moved: list[tuple[float, float]]
) -> None:
    found = snapped([WindowSegment(start, end, "x") for start, end in said], speech)
    assert [(one.start, one.end) for one in found] == moved


steps = st.integers(50, 1500).flatmap(
    lambda most: st.lists(st.integers(0, most), min_size=2, max_size=24, unique=True).map(sorted)
)


def pairs(times: list[int]) -> list[tuple[float, float]]:
    return [(start / 50, end / 50) for start, end in zip(times[::2], times[1::2], strict=False)]


@given(segments=steps, speech=steps, apart=st.booleans())
def test_order_and_length_are_kept_and_nothing_moves_far_over_speech(
    segments: list[int], speech: list[int], apart: bool
) -> None:
    # One utterance mostly begins where the model has the one before end.
    times = pairs(segments) if apart else [(start / 50, end / 50) for start, end in pairwise(segments)]
    said = [WindowSegment(start, end, str(start)) for start, end in times]
    moved = snapped(said, pairs(speech))

    assert [one.text for one in moved] == [one.text for one in said]
    now = 0.0
    for before, after in zip(said, moved, strict=True):
        assert now <= after.start < after.end
        now = after.end
        first, last = sorted((before.start, after.start))
        over_speech = sum(max(0.0, min(end, last) - max(start, first)) for start, end in pairs(speech))
        assert min(last - first, over_speech) <= SNAP_SECONDS + 1e-9
