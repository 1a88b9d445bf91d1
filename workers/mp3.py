"""What an MP3 file holds besides sound: a header that may tell its length, and tags anywhere. Bytes only."""

from __future__ import annotations

import os
import re
import sys
from bisect import bisect_right
from dataclasses import dataclass, field

#: The largest frame, and so the longest length header: 320 kbit/s at 32 kHz, with its padding byte.
MAX_FRAME_BYTES = 1441
#: The lowest bit rate, 8 kbit/s (ISO/IEC 13818-3, 2.4.2.3).
MIN_BYTES_PER_SECOND = 1000
#: A frame begins with eleven set bits (ISO/IEC 11172-3, 2.4.1.3).
SYNC_BYTE = 0xFF
#: How far apart places are that are remembered: a frame is passed over in 25 us.
PLACES_APART_SECONDS = 30.0
#: An ID3v1 tag.
ID3V1_BYTES = 128

#: Bytes of a tag can look like a frame's header, and what they promise reaches into the first frames behind the tag.
_RESYNC_BYTES = 4 * MAX_FRAME_BYTES
#: Written by Xing's encoder and all since: a name, flags (bit 0: the number of frames follows), the number of frames.
_LENGTH_HEADER = re.compile(rb"(?:Xing|Info)\0\0\0([\0-\x0f])(.{4})", re.DOTALL)
#: id3.org, id3v2.4.0-structure, 3.1: version, flags, size without these ten bytes in sevens of bits.
_ID3V2 = re.compile(rb"ID3[\2-\4]..([\0-\x7f]{4})", re.DOTALL)
#: wiki.hydrogenaud.io, APE Tags Header: version, size without these 32 bytes.
_APE = re.compile(rb"APETAGEX\xd0\x07\0\0(.{4}).{16}", re.DOTALL)
#: Tags that tell their size at their end or not at all. They are short and look like no frame.
_OTHER_TAGS = (b"APETAGEX", b"LYRICSBEGIN")


def told_frames(descriptor: int, sound_begin: int) -> int:
    """How many frames the length header right before byte ``sound_begin`` tells of; 0 where there is none."""
    begin = max(0, sound_begin - MAX_FRAME_BYTES)
    found = _LENGTH_HEADER.search(os.pread(descriptor, sound_begin - begin, begin))
    return int.from_bytes(found[2], "big") if found and found[1][0] & 1 else 0


def longest_s(descriptor: int) -> float:
    """The most seconds that a file of this size can hold, whatever a damaged header tells."""
    return os.fstat(descriptor).st_size / MIN_BYTES_PER_SECOND


def id3v2_bytes(content: bytes, at: int = 0) -> int:
    """The size of the ID3v2 tag that begins at byte ``at``, of which the first ten bytes are enough; 0 without one."""
    found = _ID3V2.match(content, at)
    if found is None:
        return 0
    size = found.end() - at
    for place, value in enumerate(reversed(found[1])):
        size += (value & 0x7F) << 7 * place
    return size


@dataclass(slots=True)
class Tags:
    """The tags between the frames of files that were joined, and behind the last. ``end`` is the byte after them."""

    end: int = 0

    def hold(self, content: bytes, begin: int) -> bool:
        """Whether tags explain why ``content``, at byte ``begin``, is no frame or has something before its frame."""
        behind_a_tag = bool(self.end) and begin < self.end + _RESYNC_BYTES
        at = max(0, self.end - begin)
        while at < len(content):
            if size := id3v2_bytes(content, at):
                at += size
            elif found := _APE.match(content, at):
                at = found.end() + int.from_bytes(found[1], "little")
            elif content.startswith(b"TAG", at):
                at += ID3V1_BYTES
            else:
                break
        if at:
            self.end = begin + at
        return at > 0 or behind_a_tag or any(tag in content for tag in _OTHER_TAGS)


@dataclass(slots=True)
class Places:
    """Where frames of an MP3 lie: the seconds of sound before each and its byte, in order, some way apart.

    Nothing in the file tells that; who has come by once need not read all that is before it again.
    """

    found: list[tuple[float, int]] = field(default_factory=list)

    def note(self, seconds: float, byte: int | None) -> None:
        """A frame that begins at ``byte`` and needs none before it to be told apart."""
        last_s = self.found[-1][0] if self.found else 0.0
        if byte is not None and seconds >= last_s + PLACES_APART_SECONDS:
            self.found.append((seconds, byte))

    def before(self, seconds: float) -> tuple[float, int] | None:
        """The last place that is not behind ``seconds``."""
        count = bisect_right(self.found, (seconds, sys.maxsize))
        return self.found[count - 1] if count else None
