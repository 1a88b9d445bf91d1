"""What the first frame of a FLAC file says (RFC 9639). Bytes only."""

from __future__ import annotations

import os

from workers.mp3 import id3v2_bytes

MARK = b"fLaC"
#: Of the first byte of a metadata block's header: no other block follows.
LAST_BLOCK = 0x80
#: A frame begins with one of these (fixed and variable block size), two bytes of facts, and its number.
SYNCS, NUMBER_AT = (b"\xff\xf8", b"\xff\xf9"), 4


def begins_late(descriptor: int) -> bool:
    """Whether the file was cut out of a longer one as it is: its first frame is whole, and not the first by number."""
    at = id3v2_bytes(os.pread(descriptor, 10, 0))
    if os.pread(descriptor, len(MARK), at) != MARK:
        return False
    at += len(MARK)
    while len(header := os.pread(descriptor, 4, at)) == 4:
        at += 4 + int.from_bytes(header[1:], "big")
        if header[0] & LAST_BLOCK:
            break
    frame = os.pread(descriptor, NUMBER_AT + 1, at)
    return frame.startswith(SYNCS) and frame[NUMBER_AT:] not in (b"", b"\0")
