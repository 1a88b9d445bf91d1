"""Frames are taken together where they are alike, and none is lost or moved."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.audio import AudioLimits
from workers.decode_job import MAX_PIECE_VALUES, DecodeJob, FaultError, piece_frames
from workers.errors import TranscriptionError
from workers.frames import alike
from workers.pcm import Mixer
from workers.settings import load_settings

#: Sample rate, layout and sample format.
KINDS = ((8_000, "mono", "s16"), (8_000, "stereo", "s16"), (8_000, "stereo", "fltp"), (16_000, "mono", "s16"))


def frame(kind: tuple[int, str, str], size: int, first: int) -> av.AudioFrame:
    """So many samples, each 1/32768 above the one before, on all channels alike."""
    rate, layout, form = kind
    channels = 2 if layout == "stereo" else 1
    values = np.repeat(np.arange(first, first + size, dtype=np.int16)[:, None], channels, axis=1)
    planes = np.ascontiguousarray(values.T.astype(np.float32) / 32768)
    made = av.AudioFrame.from_ndarray(planes if form == "fltp" else values.reshape(1, -1), format=form, layout=layout)
    made.sample_rate = rate
    return made


def job(**limits: int) -> DecodeJob:
    """One that asks for the first channel of a whole recording."""
    return DecodeJob(
        "a.mp3", replace(AudioLimits.from_settings(load_settings()), **limits), lambda: None, 0.0, math.inf, 0
    )


def kind_of(one: av.AudioFrame) -> tuple[int, str, str]:
    return one.sample_rate, one.layout.name, one.format.name


frames = st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from((1, 160, 576, 1152, 9_000))), max_size=30)


@given(frames)
def test_groups_hold_every_sample_in_order_and_only_what_isalike(
    asked: list[tuple[tuple[int, str, str], int]],
) -> None:
    starts = [sum(size for _, size in asked[:at]) % 10_000 for at in range(len(asked))]
    given_frames = [frame(kind, size, start) for (kind, size), start in zip(asked, starts, strict=True)]

    groups = list(alike(iter(given_frames), job()))

    assert [one for group in groups for one in group] == given_frames
    for group in groups:
        assert len({kind_of(one) for one in group}) == 1
        # Full before its last frame, no more.
        assert sum(one.samples for one in group[:-1]) < piece_frames(group[0].sample_rate, group[0].layout.nb_channels)
        np.testing.assert_array_equal(Mixer().mono(group), np.concatenate([Mixer().mono([one]) for one in group]))
    for group, following in pairwise(groups):
        if kind_of(group[0]) == kind_of(following[0]):
            assert sum(one.samples for one in group) >= piece_frames(group[0].sample_rate, group[0].layout.nb_channels)


def test_a_fault_comes_after_the_frames_before_it() -> None:
    first = frame(KINDS[0], 160, 0)

    def breaking() -> Iterator[av.AudioFrame]:
        yield first
        raise av.error.InvalidDataError(1, "broken")

    groups = alike(breaking(), job())

    assert next(groups) == [first]
    with pytest.raises(av.error.InvalidDataError):
        next(groups)


def test_frames_of_a_rate_that_no_sound_has_are_not_gathered() -> None:
    """A header may claim anything: half a second of it could be the whole file."""
    good, odd = frame(KINDS[0], 160, 0), frame(KINDS[0], 160, 0)
    odd.sample_rate = 2_000_000_000
    taken: list[av.AudioFrame] = []

    def frames() -> Iterator[av.AudioFrame]:
        for one in (good, odd, odd, odd):
            taken.append(one)
            yield one

    groups = alike(frames(), job())

    assert next(groups) == [good]
    with pytest.raises(FaultError, match="a sample rate of 2000000000 Hz"):
        next(groups)
    assert len(taken) == 2


def test_frames_of_too_many_channels_are_refused_before_they_are_gathered() -> None:
    groups = alike(iter([frame(KINDS[1], 160, 0)] * 3), job(max_channels=1))

    with pytest.raises(TranscriptionError, match="2 channels, at most 1"):
        next(groups)


def test_a_piece_is_bounded_by_time_and_by_values() -> None:
    assert piece_frames(16_000, 1) == 8_000
    assert piece_frames(768_000, 1024) == MAX_PIECE_VALUES // 1024
    assert piece_frames(1, 2) == piece_frames(1_000, 2**30) == 1
