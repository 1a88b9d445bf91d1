"""Quiet recordings: their speech is heard, silence stays silence, and all others are heard as they always were."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.audio import FRAME_SAMPLES, SAMPLE_RATE_HZ, AudioLimits, DecodePool
from workers.audio_decode import open_audio
from workers.decode_job import DecodeJob
from workers.quiet import MOST_HELD_SECONDS, QUIET_PEAK, QuietVoice, may_raise, raised
from workers.silero import Floats
from workers.voice_activity import VoiceActivity

SAMPLES = Path(__file__).parent.parent / "samples" / "audio"
CORPUS = Path(os.environ.get("WHISPER_BENCH_AUDIO") or Path(__file__).parents[3] / "shared" / "audio")
SPEECH = 0.5
#: One step of samples of 16 bits.
STEP = 2.0**-15


@pytest.fixture(scope="module")
def speech() -> Floats:
    """With a peak of 1."""
    audio = np.concatenate(list(open_audio(str(SAMPLES / "en_weather.wav"), AudioLimits())))
    return audio / np.abs(audio).max()


def in_16_bits(audio: Floats) -> Floats:
    return (np.round(audio / STEP) * STEP).astype(np.float32)


def heard(audio: Floats, size: int = 10 * SAMPLE_RATE_HZ, whole: bool = True) -> tuple[Floats, Floats]:
    voice = QuietVoice()
    found = [
        one for first in range(0, audio.size, size) for one in voice.add(audio[first : first + size], may_raise=whole)
    ]
    found += voice.finish(may_raise=whole)
    nothing = np.zeros(0, dtype=np.float32)
    return np.concatenate([nothing, *(one for one, _ in found)]), np.concatenate([nothing, *(one for _, one in found)])


def plain(audio: Floats, size: int = 10 * SAMPLE_RATE_HZ) -> Floats:
    voice = VoiceActivity()
    found = [voice.probabilities(audio[first : first + size]) for first in range(0, audio.size, size)]
    return np.concatenate([*found, voice.finish()])


@pytest.mark.parametrize("decibels", [-46, -52, -58, -64])
def test_speech_is_heard_however_quiet_it_is(speech: Floats, decibels: float) -> None:
    quiet = in_16_bits(speech * 10 ** (decibels / 20))
    loud = plain(speech) >= SPEECH

    samples, found = heard(quiet)

    np.testing.assert_array_equal(samples, quiet)  # only voice activity hears it louder
    assert (found[loud] >= SPEECH).mean() > 0.85
    assert (found[~loud] >= SPEECH).mean() < 0.15
    if decibels < -55:
        assert (plain(quiet)[loud] >= SPEECH).mean() < 0.5


@settings(max_examples=20)
@given(peak=st.floats(QUIET_PEAK * 1.001, 1.0), size=st.integers(4_000, 40_000), lead=st.integers(0, 60_000))
def test_what_is_not_quiet_is_heard_to_the_last_bit_as_it_is(speech: Floats, peak: float, size: int, lead: int) -> None:
    """Also behind any stretch that is quiet."""
    whisper = np.random.default_rng(0).normal(0, 1e-3, lead).astype(np.float32)
    audio = np.concatenate((whisper, (speech[:40_000] / np.abs(speech[:40_000]).max() * peak).astype(np.float32)))
    samples, found = heard(audio, size)
    np.testing.assert_array_equal(samples, audio)
    np.testing.assert_array_equal(found, plain(audio, size))
    assert raised(audio).tobytes() == audio.tobytes()


def test_blocks_wait_only_until_something_is_loud(speech: Floats) -> None:
    voice, second = QuietVoice(), np.full(SAMPLE_RATE_HZ, 1e-3, dtype=np.float32)
    assert not list(voice.add(second, may_raise=True))
    assert not list(voice.add(second, may_raise=True))
    assert [samples.size for samples, _ in voice.add(speech[:SAMPLE_RATE_HZ], may_raise=True)] == [SAMPLE_RATE_HZ] * 3
    assert [samples.size for samples, _ in voice.add(second, may_raise=True)] == [SAMPLE_RATE_HZ]


def test_a_recording_that_is_quiet_for_long_is_not_held_in_memory(speech: Floats) -> None:
    """It is heard as loud as it was until then, and what is loud behind that as it is."""
    voice = QuietVoice()
    minute = np.resize(in_16_bits(speech * 1e-3), 60 * SAMPLE_RATE_HZ)
    spoken = (plain(np.resize(speech, 60 * SAMPLE_RATE_HZ), minute.size) >= SPEECH).mean()
    for _ in range(int(MOST_HELD_SECONDS / 60) - 1):
        assert not list(voice.add(minute, may_raise=True))
    held = list(voice.add(minute, may_raise=True))
    assert len(held) == MOST_HELD_SECONDS / 60
    ((_, later),) = voice.add(minute, may_raise=True)
    for found in (held[0][1], later):
        assert (found >= SPEECH).mean() > 0.85 * spoken
    ((samples, found),) = voice.add(speech, may_raise=True)
    np.testing.assert_array_equal(samples, speech)
    ((_, quiet),) = voice.add(minute, may_raise=True)
    assert (found >= SPEECH).mean() > 0.85 * spoken
    assert not (quiet >= SPEECH).mean() > 0.5 * spoken, "as the rest of a span with a louder sample"


def test_a_recording_of_nothing_has_no_frames() -> None:
    assert [part.size for part in heard(np.zeros(0, dtype=np.float32))] == [0, 0]
    assert heard(np.zeros(FRAME_SAMPLES + 1, dtype=np.float32))[1].size == 2


def coloured(power: float, seed: int) -> Floats:
    """Ten seconds of noise that falls with frequency to this power: 0 white, 1 pink, 2 brown; float32[n], power 1."""
    size = 10 * SAMPLE_RATE_HZ
    spectrum = np.fft.rfft(np.random.default_rng(seed).normal(size=size))
    noise = np.fft.irfft(spectrum / np.maximum(np.arange(spectrum.size), 20.0) ** (power / 2), size)
    return np.asarray(noise / noise.std(), dtype=np.float32)


def hum(power: float, seed: int) -> Floats:
    """Mains hum of 50 Hz, and noise far below it."""
    time = np.arange(10 * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    tones = sum(np.sin(2 * np.pi * 50 * part * time + seed) / part for part in (1, 2, 3, 5))
    return np.asarray(tones + 0.1 * coloured(power, seed), dtype=np.float32)


@pytest.mark.parametrize("decibels", [-60, -70, -80, -90])
@pytest.mark.parametrize(("sound", "power"), [(coloured, 0), (coloured, 1), (coloured, 2), (hum, 0)])
def test_noise_is_no_speech_for_being_raised(
    sound: Callable[[float, int], Floats], power: float, decibels: float
) -> None:
    for seed in range(3):
        noise = sound(power, seed) * np.float32(10 ** (decibels / 20))
        for audio in (noise, in_16_bits(noise)):
            assert np.abs(raised(audio)).max() <= QUIET_PEAK * 1.001
            assert heard(audio)[1].max() < 0.3


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_dither_is_not_raised(steps: int) -> None:
    noise = np.random.default_rng(0).integers(-steps, steps + 1, 10 * SAMPLE_RATE_HZ) * STEP
    audio = noise.astype(np.float32)
    assert raised(audio).tobytes() == audio.tobytes()
    np.testing.assert_array_equal(heard(audio)[1], plain(audio))


def test_recordings_of_silence_stay_silent() -> None:
    found = 0
    for path in [SAMPLES / "silence.flac", *sorted(CORPUS.glob("odd/**/*silence*"))]:
        try:
            audio = np.concatenate([*open_audio(str(path), AudioLimits()), np.zeros(0, dtype=np.float32)])
        except Exception:  # noqa: BLE001 - what is no audio is tested elsewhere
            continue
        found += 1
        assert ((heard(audio)[1] >= SPEECH) <= (plain(audio) >= SPEECH)).all()
    assert found


def test_what_is_quiet_in_one_of_several_channels_is_not_raised(speech: Floats, tmp_path: Path) -> None:
    """It is most often the voice of the other one. A recording of one channel is the whole of it."""
    both, one = tmp_path / "both.wav", tmp_path / "one.wav"
    soundfile.write(both, np.stack((speech, speech / 1000), axis=1), SAMPLE_RATE_HZ)
    soundfile.write(one, speech / 1000, SAMPLE_RATE_HZ)
    pool = DecodePool(1, AudioLimits())
    try:
        for path, channel, hears in ((both, 0, True), (both, 1, False), (one, 0, True), (one, None, True)):
            with pool.open(str(path), channel=channel) as stream:
                blocks = list(stream)
            assert sum(block.samples.size for block in blocks) == speech.size
            assert (max(block.speech.max(initial=0.0) for block in blocks) > SPEECH) == hears
    finally:
        pool.close()


def test_which_are_raised() -> None:
    job = DecodeJob("a.wav", AudioLimits(), lambda: None, 0.0, 1.0, None)
    assert may_raise(job)
    job.channel = 1
    assert not may_raise(job)
    job.channels = 1
    assert may_raise(job)
