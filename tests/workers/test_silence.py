"""Long silences lose their middle, nothing else goes, and times lead back to the real recording."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.test_windows import FRAME_S, blocks, cut, recording, size_lists
from workers.audio import FRAME_SAMPLES, SAMPLE_RATE_HZ
from workers.settings import Settings, load_settings
from workers.silence import KEPT_SECONDS, LONG_SECONDS, Timeline, real_end, real_start, shortened
from workers.speech_spans import WindowOptions

KEPT = round(KEPT_SECONDS / FRAME_S)
LONG = round(LONG_SECONDS / FRAME_S)
THRESHOLD = 0.35

stretches = st.lists(
    st.tuples(st.sampled_from([0.0, 0.34, 0.36, 1.0]), st.sampled_from([1, 5, KEPT, LONG - 1, LONG, LONG + 1, 400])),
    max_size=12,
).map(lambda items: [level for level, size in items for _ in range(size)])


def kept_frames(probabilities: list[float]) -> list[int]:
    """The slow way: which frames stay."""
    kept: list[int] = []
    start = 0
    while start < len(probabilities):
        end = start
        while end < len(probabilities) and probabilities[end] < THRESHOLD:
            end += 1
        run = list(range(start, end))
        if len(run) <= LONG:
            kept += run
        elif end == len(probabilities):
            kept += run[: 2 * KEPT] if start else []
        else:
            kept += run[:KEPT] + run[-KEPT:] if start else run[-2 * KEPT :]
        if end < len(probabilities):
            kept.append(end)
        start = end + 1
    return kept


@settings(max_examples=100)
@given(stretches, size_lists, st.integers(1, FRAME_SAMPLES))
def test_only_the_middle_of_long_silences_goes(probabilities: list[float], sizes: list[int], last: int) -> None:
    # Given samples that tell their own position
    samples, speech = recording(probabilities, last)
    timeline = Timeline()
    out = list(shortened(blocks(samples, speech, sizes), THRESHOLD, timeline))
    # Then what is left is what the slow way leaves, with its probabilities
    frames = kept_frames(probabilities)
    wanted = [samples[frame * FRAME_SAMPLES : (frame + 1) * FRAME_SAMPLES] for frame in frames]
    found = np.concatenate([block.samples for block in out]) if out else samples[:0]
    np.testing.assert_array_equal(found, np.concatenate(wanted) if wanted else samples[:0])
    assert [float(level) for block in out for level in block.speech] == [float(speech[frame]) for frame in frames]
    # And the timeline knows the real place of each frame
    for at in range(0, found.size, FRAME_SAMPLES):
        assert at + timeline.missing_before(at) == found[at]


def test_nothing_is_left_of_hours_of_silence() -> None:
    assert list(shortened(blocks(*recording([0.0] * 20_000), [160_000]), THRESHOLD, Timeline())) == []


def test_speech_with_long_pauses_shares_a_window() -> None:
    # Given ten seconds of speech in all, in three parts, and twenty seconds of silence between them
    talk, pause = [1.0] * 104, [0.0] * 625
    (window,) = cut(talk + pause + talk + pause + talk, WindowOptions(), [50_000])
    # Then they are one window, and what is left out is known
    assert window.samples.size / SAMPLE_RATE_HZ == pytest.approx(312 * FRAME_S + 4 * KEPT * FRAME_S)
    assert window.end_s == pytest.approx((3 * 104 + 2 * 625) * FRAME_S)
    assert [missing for _, missing in window.cuts] == pytest.approx([(625 - 2 * KEPT) * FRAME_S] * 2)
    # And speech starts where it did
    starts = [window.start_s + real_start(start, window.cuts) for start, _ in window.speech]
    assert starts == pytest.approx([0.0, 729 * FRAME_S, 1458 * FRAME_S])
    ends = [window.start_s + real_end(start, end, window.cuts, window.speech) for start, end in window.speech]
    assert ends == pytest.approx([104 * FRAME_S, 833 * FRAME_S, 1562 * FRAME_S])


def test_a_shortened_silence_is_as_long_as_any_pause_that_ends_speech() -> None:
    # Given the longest pause that the settings allow
    (most_s,) = [limit.le for limit in Settings.model_fields["min_silence_seconds"].metadata if hasattr(limit, "le")]
    options = WindowOptions.from_settings(load_settings(min_silence_seconds=most_s))
    # When a silence that is shortened lies between two stretches of speech
    (window,) = cut([1.0] * 104 + [0.0] * (LONG + 1) + [1.0] * 104, options, [50_000])
    # Then it still ends the first: what is left out of it lies in no stretch
    assert [(start, end) for start, end in window.speech] == [
        pytest.approx((0.0, 104 * FRAME_S)),
        pytest.approx(((104 + 2 * KEPT) * FRAME_S, (208 + 2 * KEPT) * FRAME_S)),
    ]
    assert most_s < 2 * KEPT_SECONDS


def test_an_end_that_comes_late_stays_before_what_is_left_out() -> None:
    # Given speech until 2 s and from 5 s on, and a minute left out at 3.5 s
    cuts, speech = [(3.5, 60.0)], [(0.0, 2.0), (5.0, 7.0)]
    assert real_end(0.0, 3.0, cuts, speech) == 3.0
    assert real_end(0.0, 4.0, cuts, speech) == 3.5
    assert real_end(0.0, 6.0, cuts, speech) == 66.0
    assert real_end(3.6, 4.0, cuts, speech) == 64.0, "a word after it that voice activity does not hear"
    assert real_start(3.0, cuts) == 3.0
    assert real_start(4.0, cuts) == 64.0
