"""What the header and the frames of a FLAC file say (RFC 9639). Bytes only."""

from __future__ import annotations

import os

from workers.mp3 import id3v2_bytes

MARK = b"fLaC"
#: Of the first byte of a metadata block's header: no other block follows.
LAST_BLOCK = 0x80
#: A frame begins with one of these (fixed and variable block size), two bytes of facts, and its number.
FIXED, VARIABLE = b"\xff\xf8", b"\xff\xf9"
SYNCS = (FIXED, VARIABLE)
NUMBER_AT = 4
#: The longest header of a frame: a number of seven bytes, block size and rate of two each, and the checksum.
LONGEST_HEADER = 16
#: The file's mark, and STREAMINFO with its own header: a frame's most samples, and how many there are in all.
HEADER = 42
_BLOCK_SIZE, _SAMPLES, _SAMPLE_BITS = slice(10, 12), slice(21, 26), 36


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


def told_samples(header: bytes) -> int:
    """How many samples a channel has, by the first `HEADER` bytes of the file; 0 where it does not say."""
    return int.from_bytes(header[_SAMPLES], "big") & (1 << _SAMPLE_BITS) - 1


def frame_end(content: bytes, at: int, header: bytes) -> int | None:
    """How many samples lie before the end of the frame that begins at byte ``at``; None where none does.

    ``header``: the first `HEADER` bytes of the file. Bytes of sound look like a frame once in some thousand times that
    they begin like one.
    """
    frame = content[at : at + LONGEST_HEADER]
    if len(frame) < LONGEST_HEADER or not frame.startswith(SYNCS) or frame[3] & 1:
        return None
    # Its number, as UTF-8 of up to seven bytes (9.1.5).
    length = 8 - (frame[NUMBER_AT] ^ 0xFF).bit_length()
    end = NUMBER_AT + max(1, length)
    rest = frame[NUMBER_AT + 1 : end]
    if length in (1, 8) or any(byte & 0xC0 != 0x80 for byte in rest):
        return None
    number = frame[NUMBER_AT] & (0x7F >> length)
    for byte in rest:
        number = number << 6 | byte & 0x3F
    kind, rate = frame[2] >> 4, frame[2] & 0x0F
    own = {6: 1, 7: 2}.get(kind, 0)
    samples = _block_size(kind, frame[end : end + own])
    end += own + {12: 1, 13: 2, 14: 2}.get(rate, 0)
    if not samples or rate == 15 or _crc8(frame[:end]) != frame[end]:
        return None
    return (number if frame.startswith(VARIABLE) else number * int.from_bytes(header[_BLOCK_SIZE], "big")) + samples


def _block_size(kind: int, own: bytes) -> int:
    """9.1.1; 0 where it is reserved."""
    if own:
        return int.from_bytes(own, "big") + 1
    return 192 if kind == 1 else 144 << kind if 2 <= kind <= 5 else 1 << kind if kind >= 8 else 0


def _crc8(content: bytes) -> int:
    """The polynomial x^8 + x^2 + x + 1 (9.1.8)."""
    value = 0
    for byte in content:
        value ^= byte
        for _ in range(8):
            value = value << 1 ^ (0x107 if value & 0x80 else 0)
    return value
