"""FLAC files whose headers are wrong: all of the sound is read, or the row says that none can be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_audio_decode import assert_sounds_like, error_of, read, tone, write

from workers.audio import SAMPLE_RATE_HZ

#: Where STREAMINFO's 36 bits of the number of samples begin, after 4 bits of something else (RFC 9639, 8.2).
TOTAL_AT = 4 + 4 + 13
SECOND_BLOCK_AT = 4 + 4 + 34
#: An empty padding block, and that no other comes behind it.
LAST_BLOCK = b"\x81\0\0\0"


def noisy(seconds: float) -> np.ndarray:
    """A tone that FLAC cannot shorten much, so that its file is long."""
    sound = tone(seconds)
    return (sound + np.random.default_rng(1).normal(0, 0.02, sound.size).astype(np.float32)).clip(-1, 1)


def flac(path: Path, sound: np.ndarray, told_samples: int) -> Path:
    """``sound`` as a FLAC file whose header tells of so many samples."""
    content = bytearray(write(path, sound, SAMPLE_RATE_HZ, format="FLAC").read_bytes())
    first = content[TOTAL_AT] & 0xF0 | told_samples >> 32
    content[TOTAL_AT : TOTAL_AT + 5] = bytes([first]) + (told_samples & 0xFFFFFFFF).to_bytes(4, "big")
    path.write_bytes(content)
    return path


def test_sound_behind_the_length_that_a_header_tells_is_read(tmp_path: Path) -> None:
    sound = noisy(5)
    audio, end = read(flac(tmp_path / "short.flac", sound, SAMPLE_RATE_HZ))
    assert end.duration_s == pytest.approx(5, abs=0.01)
    assert end.flags == ()
    assert_sounds_like(audio, sound)


def test_a_long_file_that_goes_on_behind_its_length_is_flagged(tmp_path: Path) -> None:
    _, end = read(flac(tmp_path / "long.flac", noisy(14), 12 * SAMPLE_RATE_HZ))
    assert (end.duration_s, end.flags) == (12, ("truncated",))


def test_a_true_length_and_tags_behind_the_sound_are_no_fault(tmp_path: Path) -> None:
    sound = noisy(5)
    path = flac(tmp_path / "whole.flac", sound, sound.size)
    path.write_bytes(path.read_bytes() + b"TAG".ljust(128, b"\0"))
    assert read(path)[1].flags == ()
    # A span that ends before the file does is none either.
    assert read(path, 1.0, 2.0)[1].duration_s == 1


def test_a_file_of_which_nothing_can_be_decoded_is_not_silence(tmp_path: Path) -> None:
    path = flac(tmp_path / "broken.flac", noisy(5), 5 * SAMPLE_RATE_HZ)
    content = path.read_bytes()
    content = content[:SECOND_BLOCK_AT] + LAST_BLOCK + bytes(len(content))
    path.write_bytes(content)

    error = error_of(path)
    assert error.type == "not_audio"
    assert "ffmpeg: flac of which nothing can be decoded" in error.message
