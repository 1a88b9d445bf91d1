"""Whether files were joined: what a few places of the file say, and that damage and odd files say nothing."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from workers.joined import LONGEST_BYTES, is_joined

RATE_HZ = 16_000
ID3V2 = b"ID3\x04\0\0\0\0\x01\x00" + bytes(128)


def made(path: Path, seconds: float, format: str, seed: int = 0) -> bytes:
    noise = np.random.default_rng(seed).normal(0, 0.1, int(seconds * RATE_HZ)).astype(np.float32)
    with soundfile.SoundFile(path, "w", RATE_HZ, 1, format=format) as file:
        for first in range(0, noise.size, RATE_HZ):
            file.write(noise[first : first + RATE_HZ])
    return path.read_bytes()


def joined(path: Path, content: bytes) -> bool:
    path.write_bytes(content)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return is_joined(descriptor)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("format", ["FLAC", "OGG"])
def test_files_that_were_joined(tmp_path: Path, format: str) -> None:
    one, short = made(tmp_path / "one", 90, format), made(tmp_path / "short", 20, format, 1)
    assert not joined(tmp_path / "a", one)
    assert not joined(tmp_path / "a", short)
    for content in (one + one, one + short, short + one, short + one + short, 3 * one, 9 * short):
        assert joined(tmp_path / "a", content)


@pytest.mark.parametrize("format", ["FLAC", "OGG"])
@pytest.mark.parametrize("seconds", [3, 5, 9])
def test_short_files_that_were_joined(tmp_path: Path, format: str, seconds: int) -> None:
    """Voice notes."""
    notes = [made(tmp_path / str(number), seconds + number, format, number) for number in range(3)]
    for note in notes:
        assert not joined(tmp_path / "a", note)
    for content in (notes[0] + notes[1], notes[2] + notes[0], notes[0] + notes[0], b"".join(notes)):
        assert joined(tmp_path / "a", content)


@pytest.mark.parametrize("format", ["FLAC", "OGG"])
def test_a_moment_of_sound_is_one_file(tmp_path: Path, format: str) -> None:
    for samples in (1, 100, 2000, 5000, 20_000):
        assert not joined(tmp_path / "a", made(tmp_path / "one", samples / RATE_HZ, format))


@pytest.mark.parametrize("format", ["FLAC", "OGG"])
def test_damage_is_no_other_file(tmp_path: Path, format: str) -> None:
    whole = made(tmp_path / "one", 90, format)
    assert not joined(tmp_path / "a", whole[: len(whole) // 2])
    assert not joined(tmp_path / "a", ID3V2 + whole)
    for share in range(10):
        at = len(whole) * share // 10 + 1000
        assert not joined(tmp_path / "a", whole[:at] + bytes(LONGEST_BYTES) + whole[at + LONGEST_BYTES :])


@pytest.mark.parametrize("content", [b"", b"fLaC", b"fLaC" + bytes(200), b"OggS", b"RIFF" + bytes(200), ID3V2, b"ID3"])
def test_what_is_no_whole_file_is_not_joined(tmp_path: Path, content: bytes) -> None:
    assert not joined(tmp_path / "a", content)


def test_storage_that_fails_is_no_joined_file() -> None:
    assert not is_joined(-1)
