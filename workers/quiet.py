"""Voice activity for spans that are too quiet for it: it hears a louder copy. Runs in a decode process.

Silero goes by loudness too. Of speech with a peak of 0.005 it misses 4 % of what it hears at 0.5, at 0.0025 it misses
17 %, at 0.0016 61 % and at 0.0006 all; raised to 0.01 these are 3, 3, 4 and 5 %. Noise is no speech to it at any level
(white, pink and brown noise, hum and fans at -60 to -90 dB, raised or not).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from workers.audio import SAMPLE_RATE_HZ
from workers.decode_job import DecodeJob
from workers.silero import Floats
from workers.voice_activity import VoiceActivity

#: What has no louder sample is raised to this peak.
QUIET_PEAK = 0.01
#: Without a louder one there is nothing but what makes 16 bits of silence: three of their steps.
DITHER_PEAK = 1e-4
#: So much is held back until it is known how loud it gets: a span as `workers.cuts` mostly makes them, 58 MB.
MOST_HELD_SECONDS = 900.0


def raised(samples: Floats) -> Floats:
    """All ``samples`` of a stretch, float32[n], as voice activity is to hear them: loud ones as they are."""
    return samples * np.float32(_gain(_peak(samples)))


def may_raise(job: DecodeJob) -> bool:
    """Whether a quiet span is raised: what is quiet in one of several channels is often a voice of another."""
    return job.channel is None or job.channels == 1


class QuietVoice:
    """Blocks of one span in, the same with speech probabilities out (see `VoiceActivity`). One object a span.

    Nothing comes out before there is a sample that is not quiet, or all is in: with such a sample all is heard as it
    is. What is quiet for longer than `MOST_HELD_SECONDS` is raised by its peak until then, and on to such a sample.
    ``may_raise``: see the function.
    """

    def __init__(self) -> None:
        self._voice = VoiceActivity()
        # None: how loud to hear it is decided.
        self._held: list[Floats] | None = []
        self._gain = 1.0

    def add(self, block: Floats, *, may_raise: bool) -> Iterator[tuple[Floats, Floats]]:
        """Blocks that are certain now, float32[n] samples and float32[k] probabilities each."""
        if self._held is None:
            yield self._heard(block)
            return
        self._held.append(block)
        held_seconds = sum(one.size for one in self._held) / SAMPLE_RATE_HZ
        if _peak(block) >= QUIET_PEAK or held_seconds >= MOST_HELD_SECONDS:
            yield from self._let_go(may_raise=may_raise)

    def finish(self, *, may_raise: bool) -> Iterator[tuple[Floats, Floats]]:
        """What is left at the end."""
        yield from self._let_go(may_raise=may_raise)
        last = self._voice.finish()
        if last.size:
            yield last[:0], last

    def _let_go(self, *, may_raise: bool) -> Iterator[tuple[Floats, Floats]]:
        held, self._held = self._held or [], None
        if may_raise and held:
            self._gain = _gain(max(_peak(block) for block in held))
        yield from map(self._heard, held)

    def _heard(self, block: Floats) -> tuple[Floats, Floats]:
        if self._gain == 1.0 or _peak(block) >= QUIET_PEAK:
            self._gain = 1.0
            return block, self._voice.probabilities(block)
        return block, self._voice.probabilities(block * np.float32(self._gain))


def _peak(samples: Floats) -> float:
    return float(np.abs(samples).max(initial=0.0))


def _gain(peak: float) -> float:
    return QUIET_PEAK / peak if DITHER_PEAK <= peak < QUIET_PEAK else 1.0
