"""Where a long recording is cut, and that it is the same recording then. Real files, real voice activity."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.recordings import write_recording
from workers.audio import FRAME_SAMPLES, SAMPLE_RATE_HZ, AudioLimits, AudioStream, DecodePool
from workers.audio_source import local_file
from workers.cuts import LONG_PAUSE_SECONDS, MOST_REMOTE_SPANS, MOST_SPANS, NEAR_SECONDS, best_pause, find_cuts, marks
from workers.decode_job import DecodeJob
from workers.errors import TranscriptionError

SECONDS = 140
SPAN_SECONDS = 40.0
LIMITS = AudioLimits(span_seconds=SPAN_SECONDS)
FRAMES_PER_SECOND = SAMPLE_RATE_HZ / FRAME_SAMPLES


# Marks.


def test_marks_lie_a_span_apart_and_the_last_span_is_at_least_half_of_one() -> None:
    assert marks(0.0, 7200.0, 600.0, 24) == [600.0 * number for number in range(1, 12)]
    assert marks(0.0, 1499.0, 600.0, 24) == [600.0]
    assert marks(100.0, 1600.0, 600.0, 24) == [700.0, 1300.0]
    assert marks(0.0, 899.0, 600.0, 24) == []
    assert marks(50.0, 40.0, 600.0, 24) == []


@given(st.floats(0, 1e5), st.floats(0, 1e5), st.floats(10, 1e4), st.integers(1, 30))
def test_spans_are_never_more_than_the_most_and_never_short(
    start: float, length: float, span: float, most: int
) -> None:
    cuts = [start, *marks(start, start + length, span, most), start + length]
    assert len(cuts) - 1 <= most
    if len(cuts) > 2:
        assert all(stop - begin >= span - 0.02 for begin, stop in pairwise(cuts[:-1]))
        assert cuts[-1] - cuts[-2] >= span / 2 - 0.02


# The best pause.


def frames(*stretches: tuple[float, float]) -> list[float]:
    """Speech probabilities of stretches given as (seconds, probability)."""
    return [probability for seconds, probability in stretches for _ in range(round(seconds * FRAMES_PER_SECOND))]


def test_the_middle_of_the_longest_pause_is_best() -> None:
    found = best_pause(frames((10, 0.9), (0.5, 0.1), (4, 0.9), (1, 0.1), (10, 0.9)), mark=0.0)
    assert found / FRAMES_PER_SECOND == pytest.approx(15.0, abs=0.1)


def test_of_long_pauses_the_one_nearest_to_the_mark_is_best() -> None:
    pause = LONG_PAUSE_SECONDS
    near = frames((2, 0.9), (pause + 3, 0.1), (8, 0.9), (pause + 1, 0.1), (8, 0.9))
    assert best_pause(near, mark=15 * FRAMES_PER_SECOND) / FRAMES_PER_SECOND == pytest.approx(16.5, abs=0.1)


def test_without_a_pause_the_least_likely_speech_is_cut() -> None:
    assert best_pause([0.9, 0.8, 0.5, 0.9, 0.5], mark=4.0) == 4.5


@given(st.lists(st.floats(0, 1), min_size=1, max_size=200), st.floats(0, 200))
def test_a_cut_is_always_found_and_within(probabilities: list[float], mark: float) -> None:
    assert 0 < best_pause(probabilities, mark) < len(probabilities)


# Files.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("recordings")
    for ending in ("flac", "mp3", "m4a"):
        write_recording(made / f"long.{ending}", SECONDS)
    return made


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    made = DecodePool(2, LIMITS)
    yield made
    made.close()


def cuts_of(path: Path | str, start_s: float = 0.0, end_s: float = float("inf"), **limits: float) -> list[float]:
    all_limits = AudioLimits(**{"span_seconds": SPAN_SECONDS, **limits})  # type: ignore[arg-type]
    job = DecodeJob(str(path), all_limits, lambda: None, start_s, end_s, None)
    with local_file(str(path), job.limits, job.progress) as file:
        return find_cuts(file, job)[1]


def heard(stream: AudioStream) -> tuple[np.ndarray, np.ndarray]:
    """Samples and speech probabilities up to the next cut."""
    blocks = list(stream)
    return np.concatenate([one.samples for one in blocks]), np.concatenate([one.speech for one in blocks])


@pytest.mark.parametrize("ending", ["flac", "mp3", "m4a"])
def test_cuts_lie_in_pauses_near_the_marks(folder: Path, ending: str) -> None:
    path = folder / f"long.{ending}"
    found = cuts_of(path)
    assert found == pytest.approx([40.0, 80.0, 120.0], abs=SPAN_SECONDS / 4)
    whole, rate = soundfile.read(folder / "long.flac")
    for cut in found:
        around = whole[round((cut - 0.1) * rate) : round((cut + 0.1) * rate)]
        assert np.sqrt(np.mean(around**2)) < 0.01, "nobody speaks where it is cut"


@pytest.mark.parametrize("ending", ["flac", "m4a"])
def test_a_span_alone_is_the_span_of_the_whole(folder: Path, pool: DecodePool, ending: str) -> None:
    # Given a recording that is read span by span
    path = str(folder / f"long.{ending}")
    with pool.open(path, cut=True) as stream:
        spans = [heard(stream)]
        while stream.next_span():
            spans.append(heard(stream))
    assert (len(spans), stream.told_s) == (4, pytest.approx(SECONDS, abs=0.1))
    assert stream.duration_s == pytest.approx(SECONDS, abs=0.1)
    # When each is read on its own
    for number, (begin, end) in enumerate(pairwise((None, *stream.cuts, None))):
        with pool.open(path, begin, end, later=number > 0) as alone:
            samples, speech = heard(alone)
        # Then it is the same to the last sample
        assert np.array_equal(samples, spans[number][0])
        assert np.array_equal(speech, spans[number][1])
    # and together they are the recording
    with pool.open(path) as uncut:
        samples, _ = heard(uncut)
    together = np.concatenate([one for one, _ in spans])
    assert together.size == pytest.approx(samples.size, abs=0.02 * SAMPLE_RATE_HZ)
    if ending == "flac":
        assert np.array_equal(together, samples)
    assert uncut.cuts == ()


def test_a_span_that_is_not_wanted_ends_the_recording_and_spares_the_process(folder: Path, pool: DecodePool) -> None:
    with pool.open(str(folder / "long.flac"), cut=True) as stream:
        heard(stream)
        assert stream.next_span(wanted=False) is False
    assert stream.finished
    assert stream.duration_s == pytest.approx(stream.cuts[0])
    with pool.open(str(folder / "long.flac"), end_s=5.0) as again:
        assert heard(again)[0].size == 5 * SAMPLE_RATE_HZ


def test_a_short_recording_is_not_cut_nor_is_a_short_part_of_a_long_one(folder: Path, samples: Path) -> None:
    assert cuts_of(samples / "en_weather.wav") == []
    assert cuts_of(folder / "long.flac", 30.0, 60.0) == []
    assert cuts_of(folder / "long.flac", 55.0, 130.0) == pytest.approx([95.0], abs=SPAN_SECONDS / 4)


def test_a_span_is_longer_where_there_would_be_too_many(folder: Path) -> None:
    job = DecodeJob("s3://bucket/long.flac", AudioLimits(span_seconds=10.0), lambda: None, 0.0, 1e9, None)
    with local_file(str(folder / "long.flac"), job.limits, job.progress) as file:
        _, cuts = find_cuts(file, job)
    assert len(cuts) == MOST_REMOTE_SPANS - 1 < len(cuts_of(folder / "long.flac", span_seconds=10.0)) < MOST_SPANS
    assert cuts == pytest.approx([35.0, 70.0, 105.0], abs=NEAR_SECONDS)


def test_the_limit_is_that_of_the_whole(folder: Path) -> None:
    with pytest.raises(TranscriptionError) as caught:
        cuts_of(folder / "long.flac", max_audio_seconds=100.0)
    assert caught.value.type == "too_long"


def test_a_file_that_ends_early_is_cut_where_there_is_audio(folder: Path, tmp_path: Path, pool: DecodePool) -> None:
    # Given a FLAC file of which the second half is lost
    path = tmp_path / "half.flac"
    content = (folder / "long.flac").read_bytes()
    path.write_bytes(content[: len(content) // 2])
    # When
    with pool.open(str(path), cut=True) as stream:
        spans = [heard(stream)[0]]
        while stream.next_span():
            spans.append(heard(stream)[0])
    # Then what is there is heard, and that it is not all is said
    assert {"truncated", "damaged"} & set(stream.flags)
    assert 50.0 < stream.duration_s < 90.0
    assert sum(one.size for one in spans) == round(stream.duration_s * SAMPLE_RATE_HZ)


def test_a_later_span_without_anything_is_no_error(folder: Path, pool: DecodePool) -> None:
    path = str(folder / "long.m4a")
    with pool.open(path, 500.0, later=True) as stream:
        assert list(stream) == []
    assert (stream.flags, stream.duration_s) == (("truncated",), 0.0)
    with pool.open(path, 500.0) as stream:
        assert list(stream) == []
    assert stream.flags == ("span_beyond_end",)
