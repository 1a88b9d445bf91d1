"""Whether another file of its kind lies behind what is heard of a file (``cat a.wav b.wav``). Bytes only.

Decoders end with the first one. Joined Ogg, FLAC and MP3 files are read to the end (`workers.joined`), these are not.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Literal

#: What begins WAV and AIFF files, and what they are behind its size.
RIFF, FORM = (b"RIFF", b"RF64", b"BW64", b"RIFX"), (b"FORM",)
IFF_KINDS = (b"WAVE", b"AIFF", b"AIFC")
#: AU files, in both orders of bytes, and CAF files.
AU: dict[bytes, Literal["big", "little"]] = {b".snd": "big", b"dns.": "little"}
CAF = b"caff"
#: What an MP4 or QuickTime file may begin with.
MP4_BEGINS = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
#: The header of a Matroska file (RFC 8794): its mark, and in it the name of what it is.
EBML = b"\x1a\x45\xdf\xa3"
MATROSKA_HEADER = re.compile(re.escape(EBML) + rb".{1,64}?\x42\x82.(?:webm|matroska)", re.DOTALL)
#: Its index and its tags are no longer than this, nor what lies there of another track: so far is looked.
MOST_BEHIND_BYTES = 2**24
#: An MP4 in fragments has two boxes for each.
MOST_CHUNKS = 200_000

#: The byte at which a chunk begins, and its first bytes: name, size and the bytes behind them.
Chunk = tuple[int, bytes]


def another_begins(descriptor: int, heard_byte: int = 0) -> bool:
    """Whether a file of the same kind follows.

    ``heard_byte``: where the last packet begins that was heard, for MP4 and Matroska files. False for kinds that are
    not known here, for files that do not tell where they end, and where the storage fails: who decodes the file says
    what is the matter with it. What many files have behind their sound (tags, lists, an index, zeros) is no other file.
    """
    try:
        size = os.fstat(descriptor).st_size
        begin = os.pread(descriptor, 24, 0)
        mark, kind = begin[:4], begin[8:12]
        if mark in RIFF + FORM and kind in IFF_KINDS:
            chunks = _iff_chunks(descriptor, size, big=mark in (b"FORM", b"RIFX"))
            return any(head[:4] in RIFF + FORM and head[8:12] in IFF_KINDS for _, head in chunks)
        if mark in AU:
            sizes = [int.from_bytes(begin[at : at + 4], AU[mark]) for at in (4, 8)]
            return any(os.pread(descriptor, 4, sum(sizes) + pad) in AU for pad in range(1 + sizes[1] % 2))
        if mark == CAF:
            return any(head.startswith(CAF) for _, head in _caf_chunks(descriptor, size))
        if begin[4:8] in MP4_BEGINS:
            return _another_mp4(list(_boxes(descriptor, size)), heard_byte)
        if mark == EBML and heard_byte:
            return MATROSKA_HEADER.search(os.pread(descriptor, MOST_BEHIND_BYTES, heard_byte)) is not None
    except OSError:
        pass
    return False


def _iff_chunks(descriptor: int, size: int, *, big: bool) -> Iterator[Chunk]:
    """The chunks behind the first 12 bytes of a WAV or AIFF file, on behind its end; none behind sound of no length."""
    at, long_bytes = 12, 0
    for _ in range(MOST_CHUNKS):
        head = os.pread(descriptor, 12, at) if at < size else b""
        if not _named(head[:4]):
            return
        yield at, head
        name, length = head[:4], int.from_bytes(head[4:8], "big" if big else "little")
        if name == b"ds64":  # of a file of more than 4 GiB, EBU 3306
            long_bytes = int.from_bytes(os.pread(descriptor, 8, at + 16), "little")
        if name in (b"data", b"SSND"):
            length = long_bytes if length == 0xFFFFFFFF and long_bytes else length
            if not length:
                return
        at += 8 + length
        # Not all who write them fill up odd ones.
        if length % 2 and at < size and os.pread(descriptor, 4, at) not in RIFF + FORM:
            at += 1


def _caf_chunks(descriptor: int, size: int) -> Iterator[Chunk]:
    at = 8
    for _ in range(MOST_CHUNKS):
        head = os.pread(descriptor, 12, at) if at < size else b""
        if not _named(head[:4]):
            return
        yield at, head
        at += 12 + int.from_bytes(head[4:12], "big")  # -1: up to the end


def _boxes(descriptor: int, size: int) -> Iterator[Chunk]:
    """The boxes of an MP4 (ISO/IEC 14496-12, 4.2), the name of each and what follows it."""
    at = 0
    for _ in range(MOST_CHUNKS):
        head = os.pread(descriptor, 16, at) if at < size else b""
        if not _named(head[4:8]):
            return
        yield at, head[4:]
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length < 8:  # 0: up to the end
            return
        at += length


def _another_mp4(boxes: list[Chunk], heard_byte: int) -> bool:
    """Whether there is another one's head behind what was heard; of old QuickTime files, which have none, its index.

    Parts of a stream that were put together may each have a head, and are heard.
    """
    indexes = sum(head.startswith(b"moov") for _, head in boxes)
    behind = {head[:4] for at, head in boxes if at > heard_byte > 0}
    sound = not behind.isdisjoint((b"mdat", b"moof"))
    return sound and (b"ftyp" in behind or (indexes > 1 and b"moov" in behind))


def _named(name: bytes) -> bool:
    return len(name) == 4 and all(0x20 <= byte < 0x7F for byte in name)
