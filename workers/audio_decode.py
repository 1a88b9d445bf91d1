"""Whatever people call audio, decoded: libsndfile first, ffmpeg's libraries for the rest. Runs in a decode process.

libsndfile is exact and quick for wav, flac, ogg and opus. PyAV opens what it does not know (m4a, mp4, webm, wma, the
sound of a video), and what it does not always read in full: mp3, and ogg of several streams. Each has a second try at
what the other cannot read. Everything is a stream: memory is a few blocks, however long the recording.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Generator, Iterator

import soundfile

from workers.audio import BEYOND_END, SAMPLE_RATE_HZ, AudioLimits
from workers.audio_source import LocalFile, local_file
from workers.behind import another_begins
from workers.decode_job import (
    LENGTH_TOLERANCE_SECONDS,
    RUN_UP_SECONDS,
    AudioEnd,
    DecodeJob,
    FaultError,
    NothingDecodedError,
    piece_frames,
)
from workers.download import Progress
from workers.errors import TranscriptionError
from workers.ffmpeg import ffmpeg_pieces
from workers.joined import is_joined
from workers.pcm import BLOCK_SECONDS, Floats, Mixer, Piece, blocks, resampled
from workers.source_errors import os_error, shown

#: libsndfile says SF_COUNT_MAX (2**63 - 1) for a length that it cannot know.
UNKNOWN_FRAMES = 2**62
#: SF_ERR_SYSTEM of sndfile.h.
LIBSNDFILE_SYSTEM_ERROR = 2
#: SFE_BAD_FILE of its common.h, "File does not exist": it means mp3 files without a whole frame; ours is there.
LIBSNDFILE_BAD_FILE = 7
#: What it says of the size of the sound in WAV, AIFF, W64, RF64 and AU files that hold less.
_DATA_BYTES = re.compile(r"^data : (\d+)$", re.MULTILINE)
#: What may come behind a recording's sound.
MORE_BYTES = 2**20
_TOLD_BYTES = re.compile(r"^\s*(?:data|SSND|riff|Riff size|Data Size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)


class _Sequential(soundfile.SoundFile):  # type: ignore[misc]  # it has no types
    """A file read from front to back.

    soundfile seeks to where it is after every read of a seekable file. That costs an mp3 decoder its bit reservoir:
    a tenth of a second of noise or silence per read.
    """

    def seekable(self) -> bool:
        return False


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

    Raises TranscriptionError ``file_not_found``, ``not_a_file``, ``no_permission``, ``not_allowed``, ``not_audio``,
    ``no_audio_track``, ``too_large``, ``too_long``, ``too_many_channels`` (only with ``channel``), ``decode_timeout``,
    ``unsupported_source``, ``fetch_failed`` (the address is wrong), ``fetch_timeout``; TransientError
    ``fetch_failed``, ``read_failed`` (the network or the storage is).
    """
    job = DecodeJob(source, limits, progress, start_s or 0.0, float("inf") if end_s is None else end_s, channel)
    with local_file(source, limits, progress) as file:
        return (yield from decoded(file, job))


def decoded(file: LocalFile, job: DecodeJob) -> Generator[Floats, None, AudioEnd]:
    """`open_audio` for a file that is open."""
    count = 0
    for block in blocks(resampled(_decoded(file, job))):
        count += block.size
        job.check_length(job.start_s + count / SAMPLE_RATE_HZ - LENGTH_TOLERANCE_SECONDS)
        yield block
    return AudioEnd(count / SAMPLE_RATE_HZ, tuple(sorted(job.flags)), max(1, job.channels))


def _decoded(file: LocalFile, job: DecodeJob) -> Iterator[Piece]:
    """The pieces of whichever decoder gets further into the file's first seconds."""
    sound, container = _libsndfile(file, job), ffmpeg_pieces(file, job)
    container_first = _is_mp3(file.path) or is_joined(file.descriptor)
    first, second = (container, sound) if container_first else (sound, container)
    head, reason = _head(first)
    if reason is None and (head or BEYOND_END in job.flags):
        yield from head
        yield from _until_fault(first, job)
        return
    # The first does not know it, stumbles, or sees nothing in it. Its flags do not hold for the other decoder.
    flags = set(job.flags)
    job.flags.clear()
    try:
        other, other_reason = _head(second)
    except (TranscriptionError, MemoryError):
        if reason is not None and not head:
            raise
        other, other_reason = [], FaultError("no audio")
    if other_reason is None and (other or reason is not None):
        yield from other
        yield from _until_fault(second, job)
    elif head or other:
        job.flags.add("truncated")
        yield from max(head, other, key=lambda pieces: sum(piece.size / rate for rate, piece in pieces))
    elif reason is not None or isinstance(other_reason, NothingDecodedError):
        reason = reason or FaultError("no sound in it")
        by_sound, by_container = (other_reason, reason) if container_first else (reason, other_reason)
        why = f"libsndfile: {by_sound}; ffmpeg: {by_container}"
        raise TranscriptionError("not_audio", f"{shown(job.source)}: cannot be read as audio ({why})")
    elif flags:  # neither has a sample of this part, and the first knows why
        job.flags.clear()
        job.flags.update(flags)


def _is_mp3(path: str) -> bool:
    """Whether libsndfile takes it for an MP3. There it reads as far as the first header says, or its own estimate.

    Both are wrong for joined files and changing bit rates, and it ends at the first damage; ffmpeg reads to the end.
    """
    try:
        with soundfile.SoundFile(path) as sound:
            return bool(sound.format == "MP3")
    except soundfile.LibsndfileError:
        return False


def _head(pieces: Iterator[Piece]) -> tuple[list[Piece], FaultError | None]:
    """The first ten seconds, and why they are fewer if that is a fault."""
    taken: list[Piece] = []
    seconds = 0.0
    try:
        for rate, piece in pieces:
            taken.append((rate, piece))
            seconds += piece.size / rate
            if seconds >= BLOCK_SECONDS:
                break
    except FaultError as fault:
        return taken, fault
    return taken, None


def _until_fault(pieces: Iterator[Piece], job: DecodeJob) -> Iterator[Piece]:
    try:
        yield from pieces
    except FaultError:
        job.flags.add("truncated")


def _libsndfile(file: LocalFile, job: DecodeJob) -> Iterator[Piece]:
    try:
        with _Sequential(file.path) as sound:
            rate, total = sound.samplerate, sound.frames
            job.check_rate(rate)
            job.found_channels(sound.channels)
            known = total < UNKNOWN_FRAMES
            if known:
                job.check_length(total / rate)
            start = round(job.start_s * rate)
            if start >= total > 0:
                job.flags.add(BEYOND_END)
                return
            position = max(0, start - round(RUN_UP_SECONDS * rate))
            if position:
                sound.seek(position)
            stop = min(total, round(job.end_s * rate)) if job.end_s < float("inf") else total
            step = piece_frames(rate, sound.channels)
            damaged, mixer = False, Mixer(job.channel)
            while position < stop:
                try:
                    frames = sound.read(min(step, stop - position), dtype="float32", always_2d=True)
                except soundfile.LibsndfileError as error:
                    if not position or sound.format != "FLAC" or error.code == LIBSNDFILE_SYSTEM_ERROR:
                        raise
                    damaged = True
                    position = max(start, position)
                    position += yield from _behind_damage(file, job, position, rate)
                    break
                if not len(frames):
                    break
                position += len(frames)
                job.advance()
                if position > start:
                    yield rate, mixer.picked(frames[-(position - start) :])
            short = known and stop - position > LENGTH_TOLERANCE_SECONDS * rate
            if short or _cut_short(sound) or (position >= total and _goes_on(sound, file.descriptor)):
                job.flags.add("truncated")
            elif damaged:
                job.flags.add("damaged")
    except soundfile.LibsndfileError as error:
        if error.code == LIBSNDFILE_SYSTEM_ERROR:  # a read failed: the storage's fault, not the format's
            raise os_error(OSError(errno.EIO, error.error_string), job.source) from None
        reason = (
            "no whole frame"
            if error.code == LIBSNDFILE_BAD_FILE
            else error.error_string.strip().removeprefix("Error : ").rstrip(".")
        )
        raise FaultError(reason) from None


def _behind_damage(file: LocalFile, job: DecodeJob, position: int, rate: int) -> Generator[Piece, None, int]:
    """What follows the frame ``position`` of a FLAC file, at which libsndfile has ended; returns how many frames.

    One wrong byte is enough for that. ffmpeg gives silence in the place of what it is in. Raises FaultError.
    """
    count = 0
    rest = job.part(position / rate, job.end_s)
    for _, piece in ffmpeg_pieces(file, rest):
        count += piece.size
        yield rate, piece
    return count


def _goes_on(sound: soundfile.SoundFile, descriptor: int) -> bool:
    """Whether a file has far more than its header says: in one that was streamed that is about the most it can say.

    And whether another file follows.
    """
    if another_begins(descriptor):
        return True
    size_bytes = os.fstat(descriptor).st_size
    told = _DATA_BYTES.search(sound.extra_info)
    if told is None or int(told[1]) >= size_bytes - MORE_BYTES:
        return False
    return any(most - 0xFFFF <= int(told[1]) <= most for most in (0x7FFFFFFF, 0xFFFFFFFF))


def _cut_short(sound: soundfile.SoundFile) -> bool:
    """Whether a file holds fewer bytes than its header says; recorders that stream say 0 or about 2**31 or 2**32."""
    told = _TOLD_BYTES.search(sound.extra_info)
    return told is not None and int(told[2]) < int(told[1]) < 0x7FFF0000
