"""What ffmpeg's libraries (PyAV) make of a file. Runs in a decode process."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain

import av
import av.error
from av.stream import Discard

from workers.audio import BEYOND_END
from workers.audio_source import LocalFile
from workers.behind import another_begins
from workers.decode_job import (
    LENGTH_TOLERANCE_SECONDS,
    RUN_UP_SECONDS,
    DecodeJob,
    FaultError,
    NothingDecodedError,
)
from workers.errors import TranscriptionError
from workers.flac import begins_late
from workers.frames import Packets, alike, decode, pause, sound_frames
from workers.mp3 import SYNC_BYTE, Places, Tags, longest_s, told_frames
from workers.pcm import Mixer, Piece
from workers.source_errors import os_error, shown
from workers.track_times import (
    EXACT_CONTAINERS,
    MATROSKA,
    TIMED_CONTAINERS,
    recording_begin_s,
    track_begin_s,
    written_seconds,
)
from workers.tracks import has_other_tracks, heard_track

#: The encoder's delay, of at most 4095 samples, is within these packets of at least 576.
START_PACKETS = 9

av.logging.set_level(None)


def ffmpeg_pieces(file: LocalFile, job: DecodeJob) -> Iterator[Piece]:
    """The pieces of ``file``. Raises FaultError where it cannot go on; TranscriptionError as `open_audio` does."""
    with _container(file, job.source) as container:
        yield from _audio_track(container, file, job)


@contextmanager
def _container(file: LocalFile, source: str) -> Iterator[av.container.InputContainer]:
    is_open = False
    try:
        # Play lists and the like name other files and addresses to open. This one is open already, no other will be.
        options = {"protocol_whitelist": "none"}
        with file.open() as opened, av.open(opened, "r", options=options, metadata_errors="ignore") as container:
            is_open = True
            yield container
    except av.error.FFmpegError as error:
        if is_open and isinstance(error, MemoryError):  # of a file that it cannot open ENOMEM may mean nonsense in it
            raise
        # "no such file" and "not permitted" too are what it makes of bad content
        raise FaultError(error.strerror or type(error).__name__) from None
    except OSError as error:  # Python's own, of reading the file
        if error.errno == errno.EINVAL:  # the content asks for a place before the file's start
            raise FaultError("it refers to a place outside the file") from None
        raise os_error(error, source) from None


def told_seconds(file: LocalFile) -> float:
    """How long ``file`` says it is, 0.0 where it does not say it for certain. Raises as `ffmpeg_pieces` does."""
    with _container(file, file.path) as container:
        stream = heard_track(container)
        if stream is None:
            return 0.0
        names = container.format.name.split(",")
        if not MATROSKA.isdisjoint(names) and len(container.streams) > 1:
            return 0.0  # its index, if it has one, is of the video: to find a place all before it is read
        if not EXACT_CONTAINERS.isdisjoint(names):
            return written_seconds(container, stream)
        if container.format.name == "mp3":
            told_s = _told_seconds(file, stream.codec_context, next(container.demux(stream)))
            return min(told_s, longest_s(file.descriptor))
    return 0.0


def _audio_track(container: av.container.InputContainer, file: LocalFile, job: DecodeJob) -> Iterator[Piece]:
    name = container.format.name
    stream = heard_track(container)
    if stream is None and container.streams.best("audio") is not None:
        raise FaultError(f"{name} with a codec that it does not know")
    if stream is None:
        # ffmpeg takes a text file for terminal art, which it plays as a video.
        if container.streams.video and name != "tty":
            raise TranscriptionError(
                "no_audio_track", f"{shown(job.source)}: a video or picture without an audio track"
            )
        raise FaultError(f"{name} without audio")
    stream.codec_context.thread_count = 1
    if has_other_tracks(container, stream):
        job.flags.add("other_tracks")
    for other in container.streams:
        if other.index != stream.index:  # a video is not read for its sound
            other.discard = Discard.all
    tick_s = stream.time_base or Fraction(1, av.time_base)
    exact = not EXACT_CONTAINERS.isdisjoint(name.split(","))
    timed = not TIMED_CONTAINERS.isdisjoint(name.split(","))
    known_s = written_seconds(container, stream) if exact else 0.0
    # What writes Matroska may give a late track's length for its end, and fragments theirs: the file's own is no less.
    until_s = max(known_s, (container.duration or 0) / av.time_base)
    job.check_length(known_s)
    packets: Iterator[av.Packet[av.AudioStream]] = container.demux(stream)
    tags: Tags | None = None
    first_s = recording_begin_s(container, stream) if exact else track_begin_s(stream)
    if (
        first_s and name == "flac" and not begins_late(file.descriptor)
    ):  # what comes before the first whole frame is lost
        first_s = 0.0
        job.flags.add("damaged")
    position_s: float | None = 0.0
    if exact and job.start_s > RUN_UP_SECONDS:
        if _sought(container, stream, round((job.start_s - RUN_UP_SECONDS + first_s) / tick_s)):
            position_s = None  # the first frame tells
    elif name == "mp3":
        tags = Tags()
        first = next(packets)
        packets = chain([first], packets)
        known_s = _told_seconds(file, stream.codec_context, first)
        job.check_length(min(known_s, longest_s(file.descriptor)))
        if job.start_s > RUN_UP_SECONDS:  # a place to seek would be a guess, but for one where it was read before
            run_up_s = job.start_s - RUN_UP_SECONDS
            # Only from the file's start ffmpeg takes off what an encoder has put behind the sound.
            to_the_end = bool(known_s) and job.end_s > known_s - LENGTH_TOLERANCE_SECONDS
            place = None if to_the_end else file.places.before(run_up_s)
            if place is not None:
                container.seek(place[1], unsupported_byte_offset=True)
                packets = container.demux(stream)
            position_s = _passed_over(packets, place, run_up_s, float(tick_s), file.places, job)
    ahead_s = 0.0
    read, mixer = Packets(packets), Mixer(job.channel)
    for frames in alike(sound_frames(read, tags, job, flac=name == "flac"), job, timed=timed):
        rate = frames[0].sample_rate
        time_s = None if not timed or frames[0].time is None else float(frames[0].time) - first_s
        if position_s is None:
            # Where the run-up lies in a pause, what is found comes after it.
            position_s = min(time_s or 0.0, job.start_s)
        if exact and time_s is not None:
            # More sound than its times have room for (parts of a live stream, put together as they were): all of it
            # before the end by these times is before the end, or it would be in no span.
            ahead_s = max(0.0, position_s - time_s)
        end_s = job.end_s + ahead_s
        pieces = chain(pause(position_s, time_s, until_s, rate), (mixer.mono(frames) for _ in range(1)))
        for samples in pieces:
            begin = max(0, round((job.start_s - position_s) * rate))
            stop = samples.size if end_s == float("inf") else max(0, round((end_s - position_s) * rate))
            position_s += samples.size / rate
            job.advance()
            if begin < samples.size:
                yield rate, samples[begin:stop]
            if position_s >= end_s:
                return
    told_s = float(stream.duration * tick_s) if stream.duration else 0.0
    if not job.start_s and not position_s and told_s > LENGTH_TOLERANCE_SECONDS:
        raise NothingDecodedError(f"{name} of which nothing can be decoded")
    if not job.channels:  # no frame told
        job.found_channels(stream.codec_context.channels)
    if job.start_s and (position_s or 0.0) <= job.start_s:
        job.flags.add(BEYOND_END)
    elif known_s - (position_s or 0.0) > LENGTH_TOLERANCE_SECONDS or another_begins(file.descriptor, read.byte):
        job.flags.add("truncated")


def _sought(container: av.container.InputContainer, stream: av.AudioStream, ticks: int) -> bool:
    """Seek, False where there is no such place: it is before the first that is known. Then all is read from the start.

    Of sound that begins late no place may be known before its own. Raises FFmpegError.
    """
    try:
        container.seek(ticks, stream=stream)
    except av.error.FFmpegError as error:
        if isinstance(error, MemoryError):
            raise
        container.seek(container.start_time or 0)
        return False
    return True


def _told_seconds(file: LocalFile, codec: av.AudioCodecContext, first: av.Packet[av.AudioStream]) -> float:
    """The length that an MP3's header tells, 0.0 where it has none. ffmpeg's own is a guess where it has none."""
    frames = told_frames(file.descriptor, first.pos or 0)
    return frames * codec.frame_size / codec.sample_rate if codec.sample_rate else 0.0


def _passed_over(
    packets: Iterator[av.Packet[av.AudioStream]],
    place: tuple[float, int] | None,
    until_s: float,
    tick_s: float,
    places: Places,
    job: DecodeJob,
) -> float:
    """Take an MP3's packets up to ``until_s``; the seconds of sound before there, as if all had been decoded.

    ``place``: the first packet's, None at the file's start. Most packets are not decoded, which takes a tenth of the
    time. The others may hold less sound than they say: the encoder's delay at the start, its padding at the end of the
    first of joined files, and what has something before its frame.
    """
    passed_s = 0.0 if place is None else place[0]
    for number, packet in enumerate(packets):
        job.advance()
        begin = bytes(memoryview(packet)[:2]) if packet.size else b""
        # Two bytes of ones begin a frame of layer I, or a hole.
        odd = not begin or begin[0] != SYNC_BYTE or begin[-1] == SYNC_BYTE or packet.has_sidedata("skip_samples")
        # At a place ffmpeg takes the first frame for the file's, and would have a delay taken off it.
        plain = number == 0 or not odd if place is not None else number >= START_PACKETS and not odd
        if plain:
            places.note(passed_s, packet.pos)
            passed_s += (packet.duration or 0) * tick_s
        else:
            passed_s += sum(frame.samples / frame.sample_rate for frame in decode(packet)[0])
        if passed_s >= until_s:
            break
    return passed_s
