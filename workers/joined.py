"""Whether files were joined into one (``cat a.ogg b.ogg``): their numbering starts again within it. Bytes only.

libsndfile ends with the first and tells its length as the file's; where it seeks, it may find itself in another. A few
places of the file are looked at, not all of it: it may be long, and far away.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from itertools import pairwise

from workers.flac import HEADER, MARK, SYNCS, frame_end, told_samples
from workers.mp3 import id3v2_bytes

#: Of an Ogg page (RFC 3533): what it begins with, its header's size, in it its stream's serial number and its own.
OGG_PAGE, OGG_PAGE_HEADER, OGG_SERIAL, OGG_NUMBER = b"OggS", 27, slice(14, 18), slice(18, 22)
#: No page and hardly a frame is longer, so that in so much of the file one begins.
LONGEST_BYTES = 65_307
#: Places that are looked at, evenly spread, the end among them.
PLACES = 8

#: A page or frame: the stream that it belongs to, and its number in it.
Numbered = tuple[bytes, int]


def is_joined(descriptor: int) -> bool:
    """Whether an Ogg or FLAC file holds more than one stream, most often one behind the other. False for others."""
    try:
        begin = os.pread(descriptor, HEADER, id3v2_bytes(os.pread(descriptor, 10, 0)))
        if begin.startswith(OGG_PAGE):
            found = _found(descriptor, _page)
            return any(stream != begin[OGG_SERIAL] for stream, _ in found) or not _goes_on(found)
        if begin.startswith(MARK) and len(begin) == HEADER:
            found = _found(descriptor, partial(_frame, header=begin))
            return not _goes_on(found) or (bool(found) and found[-1][1] > told_samples(begin) > 0)
    except OSError:  # whoever decodes it says what is the matter with the storage
        pass
    return False


def _goes_on(found: list[Numbered]) -> bool:
    return all(one[1] < following[1] for one, following in pairwise(found))


def _found(descriptor: int, read: Callable[[bytes, bool], Numbered | None]) -> list[Numbered]:
    """What ``read`` makes of each place, in order; of places that lie upon each other only the later."""
    length = LONGEST_BYTES + OGG_PAGE_HEADER
    end = max(0, os.fstat(descriptor).st_size - length)
    places = [end * number // (PLACES - 1) for number in range(PLACES)]
    apart = [at for at, following in pairwise(places) if following - at >= length] + [end]
    read_at = (read(os.pread(descriptor, length, at), at == end) for at in apart)
    return [one for one in read_at if one is not None]


def _page(content: bytes, is_end: bool) -> Numbered | None:
    """The first Ogg page that begins in ``content``, at the file's end the last."""
    until = len(content) - OGG_PAGE_HEADER + len(OGG_PAGE)
    at = content.rfind(OGG_PAGE, 0, until) if is_end else content.find(OGG_PAGE, 0, until)
    page = content[at:]
    return None if at < 0 else (page[OGG_SERIAL], int.from_bytes(page[OGG_NUMBER], "little"))


def _frame(content: bytes, is_end: bool, header: bytes) -> Numbered | None:
    """The first FLAC frame that begins in ``content``, at the file's end the last; its number is that of its end."""
    places = [found.start() for found in re.finditer(b"|".join(SYNCS), content)]
    ends = (frame_end(content, at, header) for at in (reversed(places) if is_end else places))
    return next(((MARK, end) for end in ends if end is not None), None)
