"""Windows from random speech: nothing lost, nothing twice, never over 30 s, however the blocks fall."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.audio import FRAME_SAMPLES, SAMPLE_RATE_HZ, Block
from workers.settings import load_settings
from workers.silence import real_start
from workers.speech_spans import Span, WindowOptions
from workers.windows import Window, WindowCutter, speech_windows

FRAME_S = FRAME_SAMPLES / SAMPLE_RATE_HZ


def recording(probabilities: list[float], last_samples: int = FRAME_SAMPLES) -> tuple[np.ndarray, np.ndarray]:
    """Samples that tell their own position, and one probability per frame; the last frame may be partial."""
    count = max(0, len(probabilities) - 1) * FRAME_SAMPLES + (last_samples if probabilities else 0)
    return np.arange(count, dtype=np.float32), np.array(probabilities, dtype=np.float32)


def blocks(samples: np.ndarray, speech: np.ndarray, sizes: list[int]) -> list[Block]:
    """Blocks as a decode process cuts them: each has the probabilities of the frames that became full with it."""
    made, position, frames = [], 0, 0
    while position < samples.size:
        end = min(samples.size, position + sizes[len(made) % len(sizes)])
        made.append(Block(samples[position:end], speech[frames : end // FRAME_SAMPLES]))
        position, frames = end, end // FRAME_SAMPLES
    return [*made, Block(samples[:0], speech[frames:])]


def cut(
    probabilities: list[float], options: WindowOptions, sizes: list[int], last: int = FRAME_SAMPLES
) -> list[Window]:
    samples, speech = recording(probabilities, last)
    return list(speech_windows(blocks(samples, speech, sizes), options))


def reference_spans(probabilities: list[float], options: WindowOptions) -> list[Span]:
    """Silero's hysteresis over the whole recording, without any limit on length."""
    spans: list[Span] = []
    start = pause = None
    for frame, probability in enumerate(probabilities):
        if probability >= options.vad_threshold:
            start = frame if start is None else start
            pause = None
        elif start is not None and probability < options.neg_threshold:
            pause = frame if pause is None else pause
            if (frame - pause) * FRAME_S >= options.min_silence_seconds:
                spans.append(Span(start, pause))
                start = pause = None
    if start is not None:
        spans.append(Span(start, len(probabilities) if pause is None else pause))
    return [span for span in spans if (span.end - span.start) * FRAME_S > options.min_speech_seconds]


def borders(window: Window) -> list[int]:
    """The samples of a window around those places where something is left out, its first and its last."""
    cuts = [round(at * SAMPLE_RATE_HZ) for at, _ in window.cuts]
    return [0, *(sample for at in cuts for sample in (at - 1, at)), window.samples.size - 1]


runs = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.34, 0.4, 0.5, 0.9, 1.0]), st.integers(1, 150)), min_size=0, max_size=25
)
noisy = st.lists(st.floats(0, 1, width=32), max_size=400)
probability_lists = st.one_of(runs.map(lambda items: [level for level, size in items for _ in range(size)]), noisy)
option_sets = st.builds(
    WindowOptions,
    min_silence_seconds=st.sampled_from([0.0, 0.16, 0.5]),
    min_speech_seconds=st.sampled_from([0.0, 0.1, 0.25]),
    speech_pad_seconds=st.sampled_from([0.0, 0.1, 0.3, 5.0]),
    window_seconds=st.sampled_from([1.0, 2.5, 10.0]),
)
size_lists = st.lists(
    st.integers(1, 30_000).map(lambda size: size if size > 300 else 300 + size), min_size=1, max_size=5
)


@settings(max_examples=150)
@given(probability_lists, option_sets, size_lists, st.integers(1, FRAME_SAMPLES))
def test_every_speech_frame_is_in_exactly_one_window(
    probabilities: list[float], options: WindowOptions, sizes: list[int], last: int
) -> None:
    probabilities = [float(np.float32(value)) for value in probabilities]
    windows = cut(probabilities, options, sizes, last)
    samples, _ = recording(probabilities, last)
    covered = np.zeros(samples.size, dtype=int)
    for window in windows:
        assert 0 < window.samples.size <= options.window_samples
        # The samples are the recording's own from start_s on, but for the middle of long silences.
        begin = round(window.start_s * SAMPLE_RATE_HZ)
        places = [
            begin + round(real_start(at / SAMPLE_RATE_HZ, window.cuts) * SAMPLE_RATE_HZ) for at in borders(window)
        ]
        np.testing.assert_array_equal(window.samples[borders(window)], places)
        covered[window.samples.astype(int)] += 1
        assert 0 < window.speech_s <= window.samples.size / SAMPLE_RATE_HZ + 1e-9
    assert covered.max(initial=0) <= 1
    spans = reference_spans(probabilities, options)
    for span in spans:
        assert covered[span.start * FRAME_SAMPLES : span.end * FRAME_SAMPLES].all()
    assert [window.index for window in windows] == list(range(len(windows)))
    assert all(before.end_s <= after.start_s + 1e-9 for before, after in pairwise(windows))
    assert bool(windows) == bool(spans)
    wanted = sum(min(span.end * FRAME_SAMPLES, samples.size) - span.start * FRAME_SAMPLES for span in spans)
    # A cut inside a last pause leaves at most that pause's half on the speech side.
    surplus = len(windows) * (options.min_silence_seconds + 2 * FRAME_S)
    assert wanted / SAMPLE_RATE_HZ - 1e-6 <= sum(window.speech_s for window in windows)
    assert sum(window.speech_s for window in windows) <= wanted / SAMPLE_RATE_HZ + surplus


@settings(max_examples=100)
@given(probability_lists, option_sets, size_lists, st.integers(1, FRAME_SAMPLES))
def test_block_sizes_do_not_matter(
    probabilities: list[float], options: WindowOptions, sizes: list[int], last: int
) -> None:
    one = cut(probabilities, options, [10**9], last)
    many = cut(probabilities, options, sizes, last)
    assert [(w.index, w.start_s, w.samples.size, w.speech_s) for w in one] == [
        (w.index, w.start_s, w.samples.size, w.speech_s) for w in many
    ]


@settings(max_examples=50)
@given(probability_lists, option_sets, size_lists)
def test_memory_is_two_windows_and_a_block(
    probabilities: list[float], options: WindowOptions, sizes: list[int]
) -> None:
    cutter = WindowCutter(options)
    for block in blocks(*recording(probabilities), sizes):
        list(cutter.feed(block))
        pad_and_frame = options.pad_samples + 2 * FRAME_SAMPLES
        assert cutter.held_samples <= 2 * options.window_samples + pad_and_frame


def test_silence_gives_no_window() -> None:
    assert cut([0.01] * 1000, WindowOptions(), [160_000]) == []
    assert cut([], WindowOptions(), [160_000]) == []


def test_pauses_stay_inside_a_window_and_padding_goes_around_it() -> None:
    # Given two seconds of speech, a pause of two, and two more of speech, after ten seconds of silence
    silence, talk = [0.0] * 312, [1.0] * 62
    window, _ = cut(silence + talk + [0.0] * 62 + talk + 3 * silence + 12 * talk, WindowOptions(), [160_000])
    # Then one window spans all of it, with 0.3 s on each side
    assert window.start_s == pytest.approx(312 * FRAME_S - 0.3)
    assert window.samples.size == 186 * FRAME_SAMPLES + 2 * 4800
    assert window.speech_s == pytest.approx(124 * FRAME_S)


def test_windows_are_filled_greedily() -> None:
    # Given 8 stretches of 10 s, with a second between them: two and their pauses fit into 30 s, three do not
    probabilities = ([1.0] * 312 + [0.0] * 32) * 8
    windows = cut(probabilities, WindowOptions(), [160_000])
    assert [round(window.speech_s, 1) for window in windows] == [20.0] * 4


def test_short_noise_is_no_speech() -> None:
    assert cut([0.0] * 50 + [1.0] * 3 + [0.0] * 50, WindowOptions(), [160_000]) == []
    assert len(cut([0.0] * 50 + [1.0] * 4 + [0.0] * 50, WindowOptions(), [160_000])) == 1


def test_long_speech_is_cut_at_its_longest_late_pause() -> None:
    # Given 50 s of speech; a longer dip at 10 s, short ones at 22 s and 25 s, the longest late one at 24 s
    probabilities = [0.95] * round(50 / FRAME_S)
    for second, frames in ((10, 5), (22, 2), (24, 4), (25, 2)):
        first = round(second / FRAME_S)
        probabilities[first : first + frames] = [0.1] * frames
    first, second = cut(probabilities, WindowOptions(), [160_000])
    assert first.end_s == second.start_s
    assert 24.0 <= first.end_s <= 24.0 + 4 * FRAME_S


def test_speech_without_any_pause_is_cut_where_it_is_least_certain() -> None:
    probabilities = [1.0] * 1500
    probabilities[800] = 0.7
    first, second = cut(probabilities, WindowOptions(), [160_000])
    assert first.end_s == second.start_s == pytest.approx(800 * FRAME_S)


def test_hours_of_speech_without_a_pause_stay_bounded() -> None:
    probabilities = [1.0] * round(600 / FRAME_S)
    windows = cut(probabilities, WindowOptions(), [160_000])
    assert sum(window.samples.size for window in windows) == len(probabilities) * FRAME_SAMPLES
    assert max(window.samples.size for window in windows) <= 480_000


def test_window_comes_before_the_recording_ends() -> None:
    finder_input = blocks(*recording([1.0] * 60 + [0.0] * 2000), [160_000])
    cutter = WindowCutter(WindowOptions())
    seen = [len(list(cutter.feed(block))) for block in finder_input]
    assert sum(seen[:5]) == 1
    assert cutter.held_samples < SAMPLE_RATE_HZ


def test_options_come_from_the_settings() -> None:
    options = WindowOptions.from_settings(load_settings(vad_threshold=0.3, speech_pad_seconds=0.2))
    assert (options.vad_threshold, options.pad_samples, options.window_samples) == (0.3, 3200, 480_000)
    assert options.neg_threshold == pytest.approx(0.15)
    with pytest.raises(ValueError, match="window_seconds=31"):
        WindowOptions(window_seconds=31.0)


def test_short_recording_keeps_three_seconds_around_its_speech() -> None:
    # Given two seconds of speech in a recording that fits into one window
    silence, talk = [0.0] * 312, [1.0] * 62
    (window,) = cut(silence + talk + silence, WindowOptions(), [7_000])
    # Then soft beginnings and ends stay with it
    assert window.start_s == pytest.approx(312 * FRAME_S - 3)
    assert window.end_s == pytest.approx(374 * FRAME_S + 3)
    ((start, end),) = window.speech
    assert (window.start_s + start, window.start_s + end) == pytest.approx((312 * FRAME_S, 374 * FRAME_S))


def test_full_window_ends_at_its_longest_late_pause() -> None:
    # Given speech with pauses of 0.2 s, one of 0.5 s after 24 s, and more speech after 29 s
    talk, short, long = [1.0] * 140, [0.0] * 7, [0.0] * 16
    probabilities = talk + short + talk + short + talk + short + talk + short + talk + long + talk + short + talk + talk
    windows = cut(probabilities, WindowOptions(), [50_000])
    # Then the first window ends in the long pause, although more would have fitted
    pause_start = (5 * 140 + 4 * 7) * FRAME_S
    assert pause_start < windows[0].end_s < pause_start + 16 * FRAME_S


def seconds(*lengths: float) -> list[float]:
    """Speech and pauses by turns, so many seconds each."""
    return [float(number % 2 == 0) for number, length in enumerate(lengths) for _ in range(round(length / FRAME_S))]


def test_what_follows_a_window_that_is_cut_early_is_cut_again_where_it_does_not_fit() -> None:
    # Given a window that ends in its long pause, and what is left of it is too long together with the next stretch
    probabilities = seconds(19, 1, 9, 0.3, 28)
    windows = cut(probabilities, WindowOptions(), [160_000])
    # Then the rest is a window of its own, and no speech is lost
    assert [round(window.speech_s) for window in windows] == [19, 9, 28]
    covered = np.concatenate([window.samples for window in windows]).astype(int)
    spoken = np.flatnonzero(np.repeat(probabilities, FRAME_SAMPLES))
    assert np.isin(spoken, covered).all()


def test_windows_share_a_short_pause_and_do_not_overlap() -> None:
    before, after = cut(seconds(19, 0.3, 20), WindowOptions(), [160_000])
    assert before.end_s <= after.start_s
    assert before.end_s == pytest.approx((before.speech[-1][1] + after.start_s + after.speech[0][0]) / 2, abs=1e-3)


def test_of_equal_pauses_a_full_window_ends_in_the_last() -> None:
    first, *_ = cut(seconds(20, 0.2, 4, 0.2, 3, 0.2, 10), WindowOptions(), [160_000])
    assert len(first.speech) == 3
