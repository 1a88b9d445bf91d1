"""Small files that would decode to days, to gigabytes or for ever: they end at a limit that their error names."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile

from rows import convert
from workers.audio import AudioLimits, DecodePool
from workers.audio_decode import open_audio
from workers.errors import TranscriptionError

MINUTE_SAMPLES = 60 * 16_000


def error_of(path: Path, limits: AudioLimits) -> TranscriptionError:
    with pytest.raises(TranscriptionError) as caught:
        for _ in open_audio(str(path), limits):
            pass
    return caught.value


@pytest.fixture(scope="module")
def bomb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A click and five minutes of nothing in a few kilobytes. They say 1 kHz, so it is 80 minutes, and no length."""
    path = tmp_path_factory.mktemp("bomb") / "bomb.flac"
    with soundfile.SoundFile(path, "w", 16_000, 1, "PCM_16") as file:
        for minute in range(5):
            samples = np.zeros(MINUTE_SAMPLES, dtype=np.int16)
            samples[:100] = 0 if minute else 10_000  # what is quiet throughout is held back (workers/quiet.py)
            file.write(samples)
    content = bytearray(path.read_bytes())
    # STREAMINFO begins at byte 8 (RFC 9639, 8.2): from byte 18 on 20 bits of rate, from 21 on 36 bits of samples.
    content[18:21] = (1000 << 4 | content[20] & 0xF).to_bytes(3, "big")
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    path.write_bytes(content)
    return path


def test_bomb_ends_at_the_longest_recording_in_little_memory(bomb: Path) -> None:
    assert bomb.stat().st_size < 10**5
    others = set(psutil.Process().children())
    pool = DecodePool(1, AudioLimits(max_audio_seconds=600))
    try:
        (child,) = set(psutil.Process().children()) - others
        before = child.memory_info().rss
        seconds = 0.0
        with pytest.raises(TranscriptionError) as caught, pool.open(str(bomb)) as stream:  # noqa: PT012
            for block in stream:
                seconds += block.samples.size / 16_000
        assert caught.value.type == "too_long"
        assert "the limit is 600 s (WHISPER_MAX_AUDIO_SECONDS)" in caught.value.message
        assert 500 < seconds <= 601
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{child.pid}/status").read_text())
        assert peak is not None
        assert int(peak[1]) * 1024 - before < 200 * 2**20
    finally:
        pool.close()


def test_recording_that_costs_too_much_time(bomb: Path) -> None:
    error = error_of(bomb, AudioLimits(decode_cpu_seconds=1e-6))
    assert error.type == "decode_timeout"
    assert "WHISPER_DECODE_CPU_SECONDS" in error.message
    audio = convert_to_m4a(bomb.parent)
    assert error_of(audio, AudioLimits(decode_cpu_seconds=1e-6)).type == "decode_timeout"


def convert_to_m4a(folder: Path) -> Path:
    soundfile.write(folder / "a.wav", np.zeros(MINUTE_SAMPLES), 16_000)
    return convert(folder / "a.wav", folder / "a.m4a")


@pytest.mark.parametrize("name", ["a.wav", "a.m4a"])
def test_sample_rate_has_a_limit(tmp_path: Path, name: str) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(48_000), 48_000)
    path = tmp_path / name if name == "a.wav" else convert(tmp_path / "a.wav", tmp_path / name)
    error = error_of(path, AudioLimits(max_sample_rate_hz=44_100))
    assert error.type == "not_audio"
    assert "a sample rate of 48000 Hz, the limits are 1000 and 44100 (WHISPER_MAX_SAMPLE_RATE_HZ)" in error.message


def test_a_thousand_channels_are_only_many(tmp_path: Path) -> None:
    wide = np.zeros((16_000, 1024), dtype=np.int16)
    wide[:, 0] = np.resize([16_384, -16_384], 16_000)
    soundfile.write(tmp_path / "a.wav", wide, 16_000)
    audio = np.concatenate(list(open_audio(str(tmp_path / "a.wav"), AudioLimits())))
    np.testing.assert_allclose(np.abs(audio), 0.5, atol=1e-6)  # the loudest: a mean would leave nothing of it
