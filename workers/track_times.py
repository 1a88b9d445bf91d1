"""What a container that can be trusted says of its sound: when it begins, and how long it is. For decode processes."""

from __future__ import annotations

import re

import av

#: Containers whose durations and time stamps are written, not guessed: these can be trusted and sought in.
MATROSKA = frozenset({"matroska", "webm"})
EXACT_CONTAINERS = MATROSKA | {"mov", "mp4"}
#: And the time stamps of these, which count what each frame says that it is: damage that is left out shows in them.
TIMED_CONTAINERS = EXACT_CONTAINERS | {"flac"}
#: Less than this between two frames is an inexact time.
PAUSE_SECONDS = 0.25
#: More than this is no pause where the length of the file is not known.
MOST_PAUSE_SECONDS = 3600.0
#: 01:59:59.980000000
_MATROSKA_END = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)")


def track_begin_s(stream: av.AudioStream) -> float:
    """When the track begins, by the clock of its times."""
    return float((stream.start_time or 0) * (stream.time_base or 0))


def recording_begin_s(container: av.container.InputContainer, stream: av.AudioStream) -> float:
    """When a recording in an exact container begins, by the clock of the track's times: with its first track.

    What differs less than a pause is an encoder's delay; what differs more than the longest one, another clock.
    """
    begin_s = track_begin_s(stream)
    if container.start_time is None:
        return begin_s
    origin_s = container.start_time / av.time_base
    return origin_s if PAUSE_SECONDS <= begin_s - origin_s <= MOST_PAUSE_SECONDS else begin_s


def written_seconds(container: av.container.InputContainer, stream: av.AudioStream) -> float:
    """How long the recording is from its start (`recording_begin_s`) to the track's end by an exact container.

    0.0 where it does not say.
    """
    begin_s, origin_s = track_begin_s(stream), recording_begin_s(container, stream)
    if not MATROSKA.isdisjoint(container.format.name.split(",")):
        # It tells the whole file's length, and most who write it where each track ends.
        ends = _MATROSKA_END.fullmatch(stream.metadata.get("DURATION", ""))
        if ends is not None:
            hours, minutes, seconds = ends.groups()
            return max(0.0, int(hours) * 3600 + int(minutes) * 60 + float(seconds) - origin_s)
    elif stream.duration and stream.time_base:
        told_s = float(stream.duration * stream.time_base)
        # Of an MP4 in fragments, which have no table of frames, this is its end by the clock of the stream that it was
        # cut from.
        length_s = told_s - begin_s if not stream.frames and 0 < begin_s < told_s else told_s
        return length_s + begin_s - origin_s
    return (container.duration or 0) / av.time_base if len(container.streams) == 1 else 0.0
