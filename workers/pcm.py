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
#: Two channels are each other's opposites (a crossed wire) where their mean has a smaller share of the loudest one's
#: power than this: a voice in one of them alone keeps four times as much.
CANCELLED = 1 / 16
#: More than two are where nothing is left: two of them may be opposites, and the voice in a third.
NOTHING_LEFT = 1 / 400
#: Of opposite channels the one that was heard before is heard on unless another has so many times its power: elsewhere
#: in the wave, the other one's sound would begin with a click.
CLEARLY_LOUDER = 2.0
#: No file has a larger sample, be it one of floats as large as integers of 32 bits: what is larger is damage.
LOUDEST = 2.0**31

Floats = npt.NDArray[np.float32]
#: A rate in Hz and mono samples at that rate.
Piece = tuple[int, Floats]


class Mixer:
    """Makes one channel of a recording's, piece by piece: ``channel`` (from 0), or the mean of all. One a recording."""

    def __init__(self, channel: int | None = None) -> None:
        self._channel = channel
        # Which one was heard last where the mean was not.
        self._heard: int | None = None

    def mono(self, alike: Sequence[av.AudioFrame]) -> Floats:
        """Successive frames of one layout and one sample format, whichever, as float32[n].

        Several at once cost little more than one: most codecs have 20 ms in a frame.
        """
        values: npt.NDArray[Any] = np.concatenate([frame.to_ndarray() for frame in alike], axis=1)
        channels = alike[0].layout.nb_channels
        frames: npt.NDArray[Any] = values.T if alike[0].format.is_planar else values.reshape(-1, channels)
        if frames.dtype == np.uint8:
            frames = (frames.astype(np.float32) - 128) / 128
        elif frames.dtype.kind == "i":
            frames = frames.astype(np.float32) / -float(np.iinfo(frames.dtype).min)
        return self.picked(frames)

    def picked(self, frames: npt.NDArray[Any]) -> Floats:
        """Frames of float[n, channels] as float32[n].

        A stream may change its channels on the way: a mono stretch is part of every channel, others are silent where
        they are not there.
        """
        channel, count = self._channel, frames.shape[1]
        if channel is None or count == 1:
            return self.mean(frames)
        return self.mean(frames[:, channel : channel + 1]) if channel < count else np.zeros(len(frames), np.float32)

    def mean(self, frames: npt.NDArray[Any]) -> Floats:
        """Frames of float[n, channels] as float32[n]; one channel where its opposites leave nothing of it in the mean.

        What both of two channels share is in the mean: less than 12 dB below their opposites, or louder, it is heard
        instead of them, and more than that below, they are heard instead of it.
        """
        if frames.shape[1] == 1:  # ten times as fast as a mean of one
            means: Floats = frames[:, 0].astype(np.float32)
        else:
            with np.errstate(over="ignore", invalid="ignore"):
                means = frames.mean(axis=1, dtype=np.float32)
                opposite = self._opposite(frames, means)
            if opposite is not None:
                means = frames[:, opposite].astype(np.float32)
        # Float files may hold anything; one such sample would spoil the resampler's rest, or with another become NaN.
        if not np.abs(means).max(initial=0.0) <= LOUDEST:
            means = np.where(np.abs(frames) <= LOUDEST, frames, 0.0).mean(axis=1, dtype=np.float32)
        return means

    def _opposite(self, frames: npt.NDArray[Any], means: Floats) -> int | None:
        """The channel to hear where they cancel each other, None where they do not. A constant part is no sound."""
        least = CANCELLED if frames.shape[1] == 2 else NOTHING_LEFT
        heard = means - means.mean() if means.size else means
        power = np.dot(heard, heard)
        # With its constant part a channel has no less power: what is enough of that need not be looked at again.
        if power >= least * np.einsum("ij,ij->j", frames, frames).max():
            return None
        powers = []
        for channel in frames.T:
            heard = channel - channel.mean()
            powers.append(np.dot(heard, heard))
        loudest = int(np.argmax(powers))
        if not power < least * powers[loudest]:
            return None
        before = self._heard
        if before is None or before >= len(powers) or powers[loudest] > CLEARLY_LOUDER * powers[before]:
            self._heard = loudest
        return self._heard


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
