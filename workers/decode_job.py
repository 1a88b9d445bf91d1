"""One recording's decoding: what is wished, what is found, and what it may cost. Shared by both decoders."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from workers.audio import AudioLimits
from workers.download import Progress
from workers.errors import TranscriptionError
from workers.source_errors import shown

#: Below lies nothing that is speech; broken headers claim anything.
MIN_SAMPLE_RATE_HZ = 1_000
#: A header's length may be off by as much without the file being cut short (mp3 padding, rounded container times).
LENGTH_TOLERANCE_SECONDS = 1.0
#: What is read or decoded at once. A fault may lose all of it, so it is short.
PIECE_SECONDS = 0.5
#: And its most values (frames times channels): a header may claim a thousand channels.
MAX_PIECE_VALUES = 2**22
#: Decoding starts this long before the wanted span, because lossy codecs need a run-up.
RUN_UP_SECONDS = 1.0


def piece_frames(rate_hz: int, channels: int) -> int:
    """How many frames of a stream are read or decoded at once."""
    return max(1, min(int(rate_hz * PIECE_SECONDS), MAX_PIECE_VALUES // max(1, channels)))


class FaultError(Exception):
    """A decoder cannot go on; the text is its reason in one line."""


class NothingDecodedError(FaultError):
    """The file tells a length, and no sound comes of it."""


@dataclass(frozen=True, slots=True)
class AudioEnd:
    """What is known at the end: seconds decoded, flags, channels (see `workers.audio.AudioStream`)."""

    duration_s: float
    flags: tuple[str, ...]
    channels: int = 1


@dataclass(slots=True)
class DecodeJob:
    """One recording's wishes and findings. ``start_s`` and ``end_s`` are seconds, ``channel`` counts from 0."""

    source: str
    limits: AudioLimits
    progress: Progress
    start_s: float
    end_s: float
    channel: int | None
    #: How many the recording has, as far as is known.
    channels: int = 0
    started_cpu_s: float = field(default_factory=time.process_time)
    flags: set[str] = field(default_factory=set)

    def part(self, start_s: float, end_s: float) -> DecodeJob:
        """The same for another stretch of the recording; what it costs adds up, what it finds is its own."""
        return replace(self, start_s=start_s, end_s=end_s, flags=set())

    def check_length(self, duration_s: float) -> None:
        """Raises ``too_long`` when the asked span of ``duration_s`` seconds is longer than the limit."""
        wanted_s = min(duration_s, self.end_s) - self.start_s
        if wanted_s > self.limits.max_audio_seconds:
            limit = f"the limit is {self.limits.max_audio_seconds:g} s (WHISPER_MAX_AUDIO_SECONDS)"
            raise TranscriptionError("too_long", f"{shown(self.source)}: {wanted_s:.0f} s, {limit}")

    def found_channels(self, count: int) -> None:
        """Raises ``too_many_channels`` where each would be taken alone."""
        self.channels = max(self.channels, count)
        if self.channel is not None and self.channels > self.limits.max_channels:
            limit = f"at most {self.limits.max_channels} are split (WHISPER_MAX_CHANNELS)"
            raise TranscriptionError("too_many_channels", f"{shown(self.source)}: {self.channels} channels, {limit}")

    def check_rate(self, rate_hz: int) -> None:
        """Raises FaultError for a rate that no sound has, or that is above the limit."""
        if not MIN_SAMPLE_RATE_HZ <= rate_hz <= self.limits.max_sample_rate_hz:
            limits = f"the limits are {MIN_SAMPLE_RATE_HZ} and {self.limits.max_sample_rate_hz}"
            raise FaultError(f"a sample rate of {rate_hz} Hz, {limits} (WHISPER_MAX_SAMPLE_RATE_HZ)")

    def advance(self) -> None:
        """Something was decoded. Raises ``decode_timeout`` when that cost more processor time than is allowed."""
        if time.process_time() - self.started_cpu_s > self.limits.decode_cpu_seconds:
            limit = f"{self.limits.decode_cpu_seconds:g} s of processor time (WHISPER_DECODE_CPU_SECONDS)"
            raise TranscriptionError("decode_timeout", f"{shown(self.source)}: not decoded within {limit}")
        self.progress()
