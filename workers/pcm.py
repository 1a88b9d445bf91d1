"""What becomes of decoded samples: one channel, 16 kHz, between -1 and 1, in blocks. numpy and soxr only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import soxr

from workers.audio import SAMPLE_RATE_HZ

if TYPE_CHECKING:
    import av

BLOCK_SECONDS = 10
#: Channels whose mean has a smaller share of the loudest one's power are each other's opposites (a crossed wire).
CANCELLED = 1 / 400
#: No file has a larger sample, be it one of floats as large as integers of 32 bits: what is larger is damage.
LOUDEST = 2.0**31

Floats = npt.NDArray[np.float32]
#: A rate in Hz and mono samples at that rate.
Piece = tuple[int, Floats]


def mono(alike: Sequence[av.AudioFrame], channel: int | None = None) -> Floats:
    """Successive frames of one layout and one sample format, whichever, as float32[n]: one channel, or the mean of all.

    Several at once cost little more than one: most codecs have 20 ms in a frame.
    """
    values: npt.NDArray[Any] = np.concatenate([frame.to_ndarray() for frame in alike], axis=1)
    channels = alike[0].layout.nb_channels
    frames: npt.NDArray[Any] = values.T if alike[0].format.is_planar else values.reshape(-1, channels)
    if frames.dtype == np.uint8:
        frames = (frames.astype(np.float32) - 128) / 128
    elif frames.dtype.kind == "i":
        frames = frames.astype(np.float32) / -float(np.iinfo(frames.dtype).min)
    return picked(frames, channel)


def picked(frames: npt.NDArray[Any], channel: int | None) -> Floats:
    """Frames of float[n, channels] as float32[n]: one channel (from 0), or the mean of all.

    A stream may change its channels on the way: a mono stretch is part of every channel, others are silent where they
    are not there.
    """
    count = frames.shape[1]
    if channel is None or count == 1:
        return mean(frames)
    return mean(frames[:, channel : channel + 1]) if channel < count else np.zeros(len(frames), dtype=np.float32)


def mean(frames: npt.NDArray[Any]) -> Floats:
    """Frames of float[n, channels] as float32[n]; the loudest channel where nothing is left of it in the mean."""
    if frames.shape[1] == 1:  # ten times as fast as a mean of one
        means: Floats = frames[:, 0].astype(np.float32)
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            means = frames.mean(axis=1, dtype=np.float32)
            powers = np.einsum("ij,ij->j", frames, frames)
            loudest = int(np.argmax(powers))
            if np.dot(means, means) < CANCELLED * powers[loudest]:
                means = frames[:, loudest].astype(np.float32)
    # Float files may hold anything; one such sample would spoil the resampler's rest, or with another one become NaN.
    if not np.abs(means).max(initial=0.0) <= LOUDEST:
        means = np.where(np.abs(frames) <= LOUDEST, frames, 0.0).mean(axis=1, dtype=np.float32)
    return means


def resampled(pieces: Iterator[Piece]) -> Iterator[Floats]:
    """The pieces at 16 kHz, clipped. A stream may change its rate on the way (chained ogg, aac)."""
    rate_now = SAMPLE_RATE_HZ
    resampler: soxr.ResampleStream | None = None
    nothing = np.zeros(0, dtype=np.float32)
    for rate, piece in pieces:
        if rate != rate_now:
            if resampler is not None:
                yield _clip(resampler.resample_chunk(nothing, last=True))
            same = rate == SAMPLE_RATE_HZ
            resampler = None if same else soxr.ResampleStream(rate, SAMPLE_RATE_HZ, 1, dtype="float32", quality="HQ")
            rate_now = rate
        yield _clip(piece if resampler is None else resampler.resample_chunk(piece))
    if resampler is not None:
        yield _clip(resampler.resample_chunk(nothing, last=True))


def _clip(samples: Floats) -> Floats:
    return np.clip(samples, -1.0, 1.0)


def blocks(chunks: Iterator[Floats]) -> Iterator[Floats]:
    """Chunks of any size as blocks of 10 s; the last is what is left."""
    held: list[Floats] = []
    size, wanted = 0, BLOCK_SECONDS * SAMPLE_RATE_HZ
    for chunk in chunks:
        held.append(chunk)
        size += chunk.size
        while size >= wanted:
            joined = np.concatenate(held)
            yield joined[:wanted]
            held, size = [joined[wanted:]], size - wanted
    if size:
        yield np.concatenate(held)
