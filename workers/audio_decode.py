"""Whatever people call audio, decoded: libsndfile first, ffmpeg's libraries for the rest. Runs in a decode process.

libsndfile is exact and quick for wav, flac, ogg, opus and mp3. PyAV opens what it does not know (m4a, mp4, webm, wma,
the sound of a video) and has a second try at what it cannot read. Everything is a stream: memory is a few blocks,
however long the recording.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import cast

import av
import av.error
import soundfile

from workers.audio import SAMPLE_RATE_HZ, AudioLimits
from workers.audio_source import Progress, local_file, os_error, shown
from workers.errors import TranscriptionError
from workers.pcm import BLOCK_SECONDS, Floats, Piece, blocks, mono, picked, resampled

#: What libsndfile reads at once. A fault loses the whole read, so it is short.
PIECE_SECONDS = 0.5
#: Most values (frames times channels) of one read: a header may claim a thousand channels.
MAX_PIECE_VALUES = 2**22
#: Below lies nothing that is speech, above nothing that is sound; broken headers claim anything.
SAMPLE_RATES_HZ = (1_000, 1_000_000)
#: libsndfile says SF_COUNT_MAX (2**63 - 1) for a length that it cannot know.
UNKNOWN_FRAMES = 2**62
#: SF_ERR_SYSTEM of sndfile.h.
LIBSNDFILE_SYSTEM_ERROR = 2
#: A header's length may be off by as much without the file being cut short (mp3 padding, rounded container times).
LENGTH_TOLERANCE_SECONDS = 1.0
#: Containers whose durations and time stamps are written, not guessed: these can be trusted and sought in.
EXACT_CONTAINERS = frozenset({"mov", "mp4", "matroska", "webm"})
#: Decoding starts this long before the wanted span, because lossy codecs need a run-up.
RUN_UP_SECONDS = 1.0

av.logging.set_level(None)


class _Sequential(soundfile.SoundFile):  # type: ignore[misc]  # it has no types
    """A file read from front to back.

    soundfile seeks to where it is after every read of a seekable file. That costs an mp3 decoder its bit reservoir:
    a tenth of a second of noise or silence per read.
    """

    def seekable(self) -> bool:
        return False


class _FaultError(Exception):
    """A decoder cannot go on; the text is its reason in one line."""


@dataclass(frozen=True, slots=True)
class AudioEnd:
    """What is known at the end: seconds decoded, flags, channels (see `workers.audio.AudioStream`)."""

    duration_s: float
    flags: tuple[str, ...]
    channels: int = 1


@dataclass(slots=True)
class _Job:
    """One recording's wishes and findings, shared by the steps below."""

    source: str
    limits: AudioLimits
    progress: Progress
    start_s: float
    end_s: float
    channel: int | None
    #: How many the recording has, as far as is known.
    channels: int = 0
    flags: set[str] = field(default_factory=set)

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
        if not SAMPLE_RATES_HZ[0] <= rate_hz <= SAMPLE_RATES_HZ[1]:
            raise _FaultError(f"a sample rate of {rate_hz} Hz")


def open_audio(
    source: str,
    limits: AudioLimits,
    start_s: float | None = None,
    end_s: float | None = None,
    progress: Progress = lambda: None,
    channel: int | None = None,
) -> Generator[Floats, None, AudioEnd]:
    """Yield ``source`` (path or URL) as float32[n] blocks, 16 kHz, mono, in [-1, 1], 10 s each; return its AudioEnd.

    ``start_s`` and ``end_s`` (seconds) take a span, ``channel`` (from 0) one channel alone instead of the mean of all.
    ``progress`` is called while work goes on between blocks.
    A recording without a sample gives no block and no error; one that is cut short gives what can be read, and a flag.

    Raises TranscriptionError ``file_not_found``, ``not_a_file``, ``no_permission``, ``not_audio``, ``no_audio_track``,
    ``too_large``, ``too_long``, ``too_many_channels`` (only with ``channel``), ``unsupported_source``, ``fetch_failed``
    (the address is wrong); TransientError ``fetch_failed``, ``read_failed`` (the network or the storage is).
    """
    job = _Job(source, limits, progress, start_s or 0.0, float("inf") if end_s is None else end_s, channel)
    with local_file(source, limits, progress) as path:
        count = 0
        for block in blocks(resampled(_decoded(path, job))):
            count += block.size
            job.check_length(job.start_s + count / SAMPLE_RATE_HZ - LENGTH_TOLERANCE_SECONDS)
            yield block
    return AudioEnd(count / SAMPLE_RATE_HZ, tuple(sorted(job.flags)), max(1, job.channels))


def _decoded(path: str, job: _Job) -> Iterator[Piece]:
    """The pieces of whichever decoder gets further into the file's first seconds."""
    sound = _libsndfile(path, job)
    head, reason = _head(sound)
    if reason is None and (head or job.start_s):
        yield from head
        yield from _until_fault(sound, job)
        return
    # libsndfile does not know it, stumbles, or sees nothing in it. Its flags do not hold for the other decoder.
    job.flags.clear()
    container = _ffmpeg(path, job)
    try:
        other, other_reason = _head(container)
    except TranscriptionError:
        if reason is not None and not head:
            raise
        other, other_reason = [], "no audio"
    if other_reason is None and (other or reason is not None):
        yield from other
        yield from _until_fault(container, job)
    elif head or other:
        job.flags.add("truncated")
        yield from max(head, other, key=lambda pieces: sum(piece.size / rate for rate, piece in pieces))
    elif reason is not None:
        name = shown(job.source)
        message = f"{name}: cannot be read as audio (libsndfile: {reason}; ffmpeg: {other_reason})"
        raise TranscriptionError("not_audio", message)


def _head(pieces: Iterator[Piece]) -> tuple[list[Piece], str | None]:
    """The first ten seconds, and the reason why they are fewer if that is a fault."""
    taken: list[Piece] = []
    seconds = 0.0
    try:
        for rate, piece in pieces:
            taken.append((rate, piece))
            seconds += piece.size / rate
            if seconds >= BLOCK_SECONDS:
                break
    except _FaultError as fault:
        return taken, str(fault)
    return taken, None


def _until_fault(pieces: Iterator[Piece], job: _Job) -> Iterator[Piece]:
    try:
        yield from pieces
    except _FaultError:
        job.flags.add("truncated")


def _libsndfile(path: str, job: _Job) -> Iterator[Piece]:
    try:
        with _Sequential(path) as sound:
            rate, total = sound.samplerate, sound.frames
            job.check_rate(rate)
            job.found_channels(sound.channels)
            known = total < UNKNOWN_FRAMES
            if known:
                job.check_length(total / rate)
            start = round(job.start_s * rate)
            if start >= total > 0:
                job.flags.add("span_beyond_end")
                return
            position = max(0, start - round(RUN_UP_SECONDS * rate))
            if position:
                sound.seek(position)
            stop = min(total, round(job.end_s * rate)) if job.end_s < float("inf") else total
            step = max(1, min(int(rate * PIECE_SECONDS), MAX_PIECE_VALUES // sound.channels))
            while position < stop:
                frames = sound.read(min(step, stop - position), dtype="float32", always_2d=True)
                if not len(frames):
                    break
                position += len(frames)
                job.progress()
                if position > start:
                    yield rate, picked(frames[-(position - start) :], job.channel)
            if (known and stop - position > LENGTH_TOLERANCE_SECONDS * rate) or _wav_cut_short(sound):
                job.flags.add("truncated")
    except soundfile.LibsndfileError as error:
        if error.code == LIBSNDFILE_SYSTEM_ERROR:  # a read failed: the storage's fault, not the format's
            raise os_error(OSError(errno.EIO, error.error_string), job.source) from None
        raise _FaultError(error.error_string.strip().rstrip(".")) from None


def _wav_cut_short(sound: soundfile.SoundFile) -> bool:
    """Whether a WAV file holds fewer bytes than it says; recorders that stream say 0 or about 2**31 or 2**32."""
    told = re.search(r"^data : (\d+) \(should be (\d+)\)", sound.extra_info, re.MULTILINE)
    return told is not None and int(told[2]) < int(told[1]) < 0x7FFF0000


def _ffmpeg(path: str, job: _Job) -> Iterator[Piece]:
    try:
        # Play lists and the like may name other things to open: no network from here.
        with av.open(path, options={"protocol_whitelist": "file"}, metadata_errors="ignore") as container:
            yield from _audio_track(container, job)
    except av.error.FFmpegError as error:
        if isinstance(error, OSError):
            raise os_error(error, job.source) from None
        raise _FaultError(error.strerror or type(error).__name__) from None


def _audio_track(container: av.container.InputContainer, job: _Job) -> Iterator[Piece]:
    name = container.format.name
    track = container.streams.best("audio")
    if track is None:
        # ffmpeg takes a text file for terminal art, which it plays as a video.
        if container.streams.video and name != "tty":
            raise TranscriptionError(
                "no_audio_track", f"{shown(job.source)}: a video or picture without an audio track"
            )
        raise _FaultError(f"{name} without audio")
    if track.codec_context is None:
        raise _FaultError(f"{name} with a codec that it does not know")
    stream = cast(av.AudioStream, track)
    stream.codec_context.thread_count = 1
    tick_s = stream.time_base or Fraction(1, av.time_base)
    exact = not EXACT_CONTAINERS.isdisjoint(name.split(","))
    known_s = float(stream.duration * tick_s) if exact and stream.duration else 0.0
    job.check_length(known_s)
    first_s = float(stream.start_time * tick_s) if stream.start_time else 0.0
    position_s: float | None = 0.0
    if exact and job.start_s > RUN_UP_SECONDS:
        container.seek(round((job.start_s - RUN_UP_SECONDS + first_s) / tick_s), stream=stream)
        position_s = None  # the first frame tells
    for frame in _frames(container, stream, job):
        rate = frame.sample_rate
        job.check_rate(rate)
        if position_s is None:
            position_s = float(frame.time or 0.0) - first_s
        job.found_channels(frame.layout.nb_channels)
        samples = mono(frame, job.channel)
        begin = max(0, round((job.start_s - position_s) * rate))
        stop = samples.size if job.end_s == float("inf") else max(0, round((job.end_s - position_s) * rate))
        position_s += samples.size / rate
        job.progress()
        if begin < samples.size:
            yield rate, samples[begin:stop]
        if position_s >= job.end_s:
            return
    if not job.channels:  # no frame told
        job.found_channels(stream.codec_context.channels)
    if job.start_s and (position_s or 0.0) <= job.start_s:
        job.flags.add("span_beyond_end")
    elif known_s - (position_s or 0.0) > LENGTH_TOLERANCE_SECONDS:
        job.flags.add("truncated")


def _frames(container: av.container.InputContainer, stream: av.AudioStream, job: _Job) -> Iterator[av.AudioFrame]:
    """The track's frames. A packet that cannot be decoded is left out, as every player does."""
    good = 0
    last: av.error.FFmpegError | None = None
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.FFmpegError as error:
            if isinstance(error, OSError | MemoryError):
                raise
            last = error
            continue
        for frame in frames:
            good += 1
            yield frame
    if last is not None:
        if not good:
            raise last
        job.flags.add("damaged")
