"""Whether files were joined into one (``cat a.ogg b.ogg``): their numbering starts again within it. Bytes only.

libsndfile ends with the first and tells its length as the file's; where it seeks, it may find itself in another. A few
places of the file are looked at, not all of it: it may be long, and far away.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from workers.flac import HEADER, MARK, SYNCS, frame_end, told_samples
from workers.mp3 import id3v2_bytes

#: Of an Ogg page (RFC 3533): what it begins with, its header's size, in it its stream's serial number and its own.
OGG_PAGE, OGG_PAGE_HEADER, OGG_SERIAL, OGG_NUMBER = b"OggS", 27, slice(14, 18), slice(18, 22)
#: No page and hardly a frame is longer, so that in so much of the file one begins.
LONGEST_BYTES = 65_307
#: Places that are looked at beside the end, as shares of the file. Multiples of the golden ratio: evenly spread ones
#: could lie, each in its copy of nine equal parts, a little farther than the one before.
PLACES = sorted(number * 0.6180339887 % 1 for number in range(8))


@dataclass(frozen=True, slots=True)
class Numbered:
    """A page or frame: the byte at which it begins, the stream that it belongs to, and its number in it."""

    at: int
    stream: bytes
    number: int


def is_joined(descriptor: int) -> bool:
    """Whether an Ogg or FLAC file holds more than one stream, most often one behind the other. False for others."""
    try:
        begin = os.pread(descriptor, HEADER, id3v2_bytes(os.pread(descriptor, 10, 0)))
        if begin.startswith(OGG_PAGE):
            found = _found(descriptor, _page)
            return any(one.stream != begin[OGG_SERIAL] for one in found) or not _goes_on(found)
        if begin.startswith(MARK) and len(begin) == HEADER:
            found = _found(descriptor, partial(_frame, header=begin))
            return not _goes_on(found) or (bool(found) and found[-1].number > told_samples(begin) > 0)
    except OSError:  # whoever decodes it says what is the matter with the storage
        pass
    return False


def _goes_on(found: list[Numbered]) -> bool:
    return all(one.number < following.number for one, following in pairwise(found))


def _found(descriptor: int, read: Callable[[bytes, int], Iterator[Numbered]]) -> list[Numbered]:
    """The first page or frame behind each place, and the file's last, in order."""
    size = os.fstat(descriptor).st_size
    found: dict[int, Numbered] = {}
    for at, following in pairwise([*(int(share * size) for share in PLACES), size]):
        # What begins behind the next place is found there.
        content = os.pread(descriptor, min(following - at, LONGEST_BYTES) + OGG_PAGE_HEADER, at)
        first = next(read(content, at), None)
        if first is not None and first.at < following:
            found[first.at] = first
    end = max(0, size - LONGEST_BYTES - OGG_PAGE_HEADER)
    last = deque(read(os.pread(descriptor, LONGEST_BYTES + OGG_PAGE_HEADER, end), end), maxlen=1)
    found |= {one.at: one for one in last}
    return [found[at] for at in sorted(found)]


def _page(content: bytes, place: int) -> Iterator[Numbered]:
    """The Ogg pages that begin in ``content``, which lies at byte ``place``."""
    for found in re.finditer(re.escape(OGG_PAGE), content):
        page = content[found.start() : found.start() + OGG_PAGE_HEADER]
        if len(page) == OGG_PAGE_HEADER:
            yield Numbered(place + found.start(), page[OGG_SERIAL], int.from_bytes(page[OGG_NUMBER], "little"))


def _frame(content: bytes, place: int, header: bytes) -> Iterator[Numbered]:
    """The FLAC frames that begin in ``content``; the number of each is that of its last sample."""
    for found in re.finditer(b"|".join(SYNCS), content):
        end = frame_end(content, found.start(), header)
        if end is not None:
            yield Numbered(place + found.start(), MARK, end)
