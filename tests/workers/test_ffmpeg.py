"""Frames are taken together where they are alike, and none is lost or moved."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.ffmpeg import PIECE_SECONDS, _alike
from workers.pcm import mean, mono

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


def kind_of(one: av.AudioFrame) -> tuple[int, str, str]:
    return one.sample_rate, one.layout.name, one.format.name


frames = st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from((1, 160, 576, 1152, 9_000))), max_size=30)


@given(frames)
def test_groups_hold_every_sample_in_order_and_only_what_is_alike(
    asked: list[tuple[tuple[int, str, str], int]],
) -> None:
    starts = [sum(size for _, size in asked[:at]) % 10_000 for at in range(len(asked))]
    given_frames = [frame(kind, size, start) for (kind, size), start in zip(asked, starts, strict=True)]

    groups = list(_alike(iter(given_frames)))

    assert [one for group in groups for one in group] == given_frames
    for group in groups:
        assert len({kind_of(one) for one in group}) == 1
        # Full before its last frame, no more.
        assert sum(one.samples for one in group[:-1]) < PIECE_SECONDS * group[0].sample_rate
        np.testing.assert_array_equal(mono(group), np.concatenate([mono([one]) for one in group]))
    for group, following in pairwise(groups):
        if kind_of(group[0]) == kind_of(following[0]):
            assert sum(one.samples for one in group) >= PIECE_SECONDS * group[0].sample_rate


def test_a_fault_comes_after_the_frames_before_it() -> None:
    first = frame(KINDS[0], 160, 0)

    def breaking() -> Iterator[av.AudioFrame]:
        yield first
        raise av.error.InvalidDataError(1, "broken")

    groups = _alike(breaking())

    assert next(groups) == [first]
    with pytest.raises(av.error.InvalidDataError):
        next(groups)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_channel_is_taken_as_it_is(dtype: type) -> None:
    values = np.random.default_rng(0).normal(0, 1, (500, 1)).astype(dtype)
    values[7] = np.nan

    found = mean(values)

    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.nan_to_num(values[:, 0], nan=0.0).astype(np.float32))
