"""Long silences shortened before windows are cut: a window full of silence costs as much as one full of speech.

The middle of a silence is left out of the stream of blocks as it passes, in bounded memory, and `Timeline` leads from
the shortened recording back to the real one. (faster-whisper's `vad_filter` goes further and joins all speech.)
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from workers.audio import FRAME_SAMPLES, SAMPLE_RATE_HZ, Block

Floats = npt.NDArray[np.float32]

#: A silence that lasts longer is shortened to twice `KEPT_SECONDS`: as much as a recording keeps around its speech.
LONG_SECONDS = 5.0
KEPT_SECONDS = 1.5

_LONG = round(LONG_SECONDS * SAMPLE_RATE_HZ / FRAME_SAMPLES)
_KEPT = round(KEPT_SECONDS * SAMPLE_RATE_HZ / FRAME_SAMPLES)


@dataclass(slots=True)
class Timeline:
    """Where a shortened recording's samples lie in the real one. Positions count from the start of either."""

    #: Positions in the shortened recording before which something was left out, and how much was until then.
    _cuts: list[int] = field(default_factory=list)
    _left_out: list[int] = field(default_factory=list)

    def leave_out(self, position: int, samples: int) -> None:
        """Note that ``samples`` are missing before ``position``, which is after all that were noted."""
        self._cuts.append(position)
        self._left_out.append((self._left_out[-1] if self._left_out else 0) + samples)

    def missing_before(self, position: int) -> int:
        """How many samples are left out before the sample at ``position``."""
        count = bisect_right(self._cuts, position)
        return self._left_out[count - 1] if count else 0

    def between(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The positions after ``start`` and before ``end`` where something is missing, and how many samples there."""
        for index in range(bisect_right(self._cuts, start), bisect_left(self._cuts, end)):
            yield self._cuts[index], self._left_out[index] - (self._left_out[index - 1] if index else 0)


#: Where silence is left out of a window: in seconds from its start, and how many seconds of it.
Cuts = Sequence[tuple[float, float]]


def real_start(start: float, cuts: Cuts) -> float:
    """Where something that starts ``start`` seconds into a shortened window starts in the real one."""
    return start + sum(missing for at, missing in cuts if at <= start)


def real_end(start: float, end: float, cuts: Cuts, speech: Sequence[tuple[float, float]]) -> float:
    """Where something from ``start`` to ``end`` ends in the real window.

    That is before what is left out of it, unless somebody speaks again after that.
    """
    passed = [(at, missing) for at, missing in cuts if at < end]
    if passed and start < passed[-1][0] and not any(passed[-1][0] <= begin < end for begin, _ in speech):
        end = passed.pop()[0]
    return end + sum(missing for _, missing in passed)


@dataclass(slots=True)
class _Silence:
    """The silence that a recording is in, frame by frame."""

    #: How many of its first frames, and of its last ones, stay if it is long: none and twice as many at the start.
    first: int
    last: int
    frames: int = 0
    #: Frames that may be left out: the second stretch of KEPT_SECONDS, and all later ones or at least the last.
    early: list[tuple[Floats, float]] = field(default_factory=list)
    late: list[tuple[Floats, float]] = field(default_factory=list)
    left_out: int = 0  #: samples

    def add(self, frame: Floats, probability: float) -> bool:
        """Take one frame; whether it is out already, as it stays in any case."""
        self.frames += 1
        if self.frames <= self.first:
            return True
        # Copies: what is kept must not keep whole blocks alive.
        (self.early if self.frames <= 2 * self.first else self.late).append((frame.copy(), probability))
        if self.frames > _LONG:
            gone = len(self.late) - self.last
            self.left_out += sum(samples.size for samples, _ in self.late[:gone])
            del self.late[:gone]
        return False

    def rest(self) -> list[tuple[Floats, float]]:
        """What stays of the frames that are not out yet, now that somebody speaks."""
        if self.frames <= _LONG:
            return self.early + self.late
        self.left_out += sum(samples.size for samples, _ in self.early)
        return self.late


def shortened(blocks: Iterable[Block], neg_threshold: float, timeline: Timeline) -> Iterator[Block]:
    """The blocks without the middle of long silences (frames of 512 samples below ``neg_threshold``).

    Of silence at the start and at the end, twice KEPT_SECONDS next to the speech stay. ``timeline`` knows what is
    missing as soon as the block after it is out. Holds a block and LONG_SECONDS at most.
    """
    undecided: Floats = np.zeros(0, dtype=np.float32)  # the start of a frame
    silence: _Silence | None = _Silence(first=0, last=2 * _KEPT)
    position = 0
    for block in blocks:
        samples = np.concatenate((undecided, block.samples))
        out: list[tuple[Floats, float]] = []
        for at, probability in enumerate(block.speech.tolist()):
            frame = samples[at * FRAME_SAMPLES : (at + 1) * FRAME_SAMPLES]
            if probability < neg_threshold:
                silence = silence or _Silence(first=_KEPT, last=_KEPT)
                if silence.add(frame, probability):
                    out.append((frame, probability))
                continue
            if silence is not None:
                rest = silence.rest()
                if silence.left_out:
                    timeline.leave_out(position + sum(part.size for part, _ in out), silence.left_out)
                out += rest
                silence = None
            out.append((frame, probability))
        undecided = samples[block.speech.size * FRAME_SAMPLES :].copy()
        if out:
            position += sum(part.size for part, _ in out)
            yield _block(out)
    if silence is not None:
        end = silence.early + silence.late if silence.frames <= _LONG else silence.early
        if end:
            yield _block(end)


def _block(frames: Sequence[tuple[Floats, float]]) -> Block:
    samples = np.concatenate([frame for frame, _ in frames])
    return Block(samples, np.array([probability for _, probability in frames], dtype=np.float32))
