"""A track's packets as frames, and its frames in pieces that are alike. Runs in a decode process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import av
import av.error
import numpy as np

from workers.decode_job import LENGTH_TOLERANCE_SECONDS, DecodeJob, piece_frames
from workers.mp3 import SYNC_BYTE, Tags
from workers.pcm import Floats
from workers.track_times import MOST_PAUSE_SECONDS, PAUSE_SECONDS


class Packets:
    """A track's packets. ``byte``: where the last one began that was given with all before it.

    Of joined MP4s in fragments ffmpeg marks some in the middle to be left out.
    """

    def __init__(self, packets: Iterable[av.Packet[av.AudioStream]]) -> None:
        self.byte = 0
        self._packets = packets

    def __iter__(self) -> Iterator[av.Packet[av.AudioStream]]:
        all_given = True
        for packet in self._packets:
            if packet.is_discard:  # an encoder's delay, where none was given yet
                all_given = not self.byte
            elif all_given:
                self.byte = packet.pos or self.byte  # the last one is empty and lies nowhere
            yield packet


def sound_frames(
    packets: Iterable[av.Packet[av.AudioStream]], tags: Tags | None, job: DecodeJob, *, flac: bool = False
) -> Iterator[av.AudioFrame]:
    """The track's frames. A packet that cannot be decoded is left out, as every player does.

    ``tags`` is for an MP3: what lies between its frames comes as a part of the next, and is damage unless it is a tag.
    """
    good = 0
    last: av.error.FFmpegError | None = None
    for packet in packets:
        frames, fault = decode(packet)
        if tags is not None and packet.size and (fault or memoryview(packet)[0] != SYNC_BYTE):
            if tags.hold(bytes(packet), packet.pos or 0):
                fault = None
            else:
                job.flags.add("damaged")
        if flac and len(frames) > 1:  # what lay before damage comes with the frame behind it, whose time this is
            frames[-1].pts, frames[0].pts = frames[0].pts, None
        last = fault or last
        for frame in frames:
            good += 1
            yield frame
    if last is not None:
        if not good:
            raise last
        job.flags.add("damaged")


def pause(position_s: float, time_s: float | None, until_s: float, rate: int) -> Iterator[Floats]:
    """Silence up to the next frame where the file says that there is none: a recorder was paused, packets were lost.

    Else all that follows would be heard too early, but for what is sought: speech around a cut would come twice. A time
    beyond the file's own length (``until_s``; 0: not known) is no time.
    """
    pause_s = 0.0 if time_s is None else time_s - position_s
    most_s = until_s + LENGTH_TOLERANCE_SECONDS - position_s if until_s else MOST_PAUSE_SECONDS
    if not PAUSE_SECONDS <= pause_s <= most_s:
        return
    left = round(pause_s * rate)
    while left > 0:
        yield np.zeros(min(left, rate), dtype=np.float32)
        left -= rate


def alike(frames: Iterator[av.AudioFrame], job: DecodeJob, *, timed: bool = False) -> Iterator[list[av.AudioFrame]]:
    """The frames in pieces of one rate, layout and sample format. Before a fault comes what was held.

    ``timed``: the frames' times can be trusted, and none follows a pause in its piece.
    """
    held: list[av.AudioFrame] = []
    kind, room = None, 0
    try:
        for frame in frames:
            own = (frame.sample_rate, frame.layout.nb_channels, frame.format.name)
            if held and (own != kind or room <= 0 or (timed and _is_late(held[-1], frame))):
                yield held
                held = []
            if not held:
                job.check_rate(frame.sample_rate)
                job.found_channels(frame.layout.nb_channels)
                kind, room = own, piece_frames(frame.sample_rate, frame.layout.nb_channels)
            held.append(frame)
            room -= frame.samples
    except Exception:
        if held:
            yield held
        raise
    if held:
        yield held


def _is_late(last: av.AudioFrame, frame: av.AudioFrame) -> bool:
    if last.time is None or frame.time is None:
        return False
    return float(frame.time - last.time) - last.samples / last.sample_rate >= PAUSE_SECONDS


def decode(packet: av.Packet[av.AudioStream]) -> tuple[list[av.AudioFrame], av.error.FFmpegError | None]:
    try:
        return packet.decode(), None
    except av.error.FFmpegError as error:
        if isinstance(error, MemoryError):
            raise
        return [], error
