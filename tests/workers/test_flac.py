"""The frames of a FLAC file: where each ends, and by the first one's number whether it was cut out of a longer file."""

from __future__ import annotations

import os
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from workers.flac import HEADER, begins_late, frame_end, told_samples

ID3V2 = b"ID3\x04\0\0\0\0\x01\x00" + bytes(128)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[bytes]]:
    """The metadata and the frames of a file."""
    path = tmp_path_factory.mktemp("flac") / "a.flac"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 160_000).astype(np.float32), 16_000)
    content = path.read_bytes()
    with av.open(str(path)) as container:
        places = [packet.pos for packet in container.demux(audio=0) if packet.size and packet.pos is not None]
    return content[: places[0]], [content[a:b] for a, b in zip(places, [*places[1:], len(content)], strict=True)]


def late(path: Path, content: bytes) -> bool:
    path.write_bytes(content)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return begins_late(descriptor)
    finally:
        os.close(descriptor)


def test_a_file_that_was_cut_out_begins_late(tmp_path: Path, parts: tuple[bytes, list[bytes]]) -> None:
    metadata, frames = parts
    for tag in (b"", ID3V2):
        assert not late(tmp_path / "a.flac", tag + metadata + b"".join(frames))
        assert late(tmp_path / "a.flac", tag + metadata + b"".join(frames[3:]))


def test_a_file_with_damage_at_its_beginning_does_not(tmp_path: Path, parts: tuple[bytes, list[bytes]]) -> None:
    metadata, frames = parts
    assert not late(tmp_path / "a.flac", metadata + bytes(1000) + b"".join(frames[3:]))
    assert not late(tmp_path / "a.flac", metadata)


@pytest.mark.parametrize("content", [b"", b"fLaC", b"fLaC\x00\x00", b"RIFF" + bytes(100), ID3V2, b"ID3"])
def test_what_is_no_whole_file_does_not(tmp_path: Path, content: bytes) -> None:
    assert not late(tmp_path / "a.flac", content)


@pytest.mark.parametrize(("rate_hz", "seconds"), [(16_000, 20), (44_100, 300), (48_000, 2), (11_025, 10)])
def test_each_frame_ends_where_the_next_begins(tmp_path: Path, rate_hz: int, seconds: int) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, rate_hz * seconds).astype(np.float32), rate_hz)
    content = path.read_bytes()
    header = content[:HEADER]
    with av.open(str(path)) as container:
        found = [
            (packet.pos, packet.pts + packet.duration)
            for packet in container.demux(audio=0)
            if packet.size and packet.pos is not None and packet.pts is not None and packet.duration is not None
        ]
    assert len(found) > 20 or seconds == 2
    assert [frame_end(content, at, header) for at, _ in found] == [end for _, end in found]
    assert told_samples(header) == rate_hz * seconds == found[-1][1]
    assert frame_end(content, found[1][0] + 1, header) is None
    assert frame_end(content[: found[1][0] + 3], found[1][0], header) is None
