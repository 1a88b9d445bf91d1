"""Silero, streamed: the same figures however the audio comes, and those of faster-whisper's own model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.audio import FRAME_SAMPLES, SAMPLE_RATE_HZ, AudioLimits
from workers.audio_decode import open_audio
from workers.voice_activity import Floats, VoiceActivity

SAMPLES = Path(__file__).parent.parent / "samples" / "audio"


@pytest.fixture(scope="module")
def speech() -> Floats:
    return np.concatenate(list(open_audio(str(SAMPLES / "en_weather.wav"), AudioLimits())))


def all_probabilities(audio: Floats, sizes: list[int]) -> Floats:
    voice = VoiceActivity()
    found, position = [], 0
    while position < audio.size:
        size = sizes[len(found) % len(sizes)]
        found.append(voice.probabilities(audio[position : position + size]))
        position += size
    return np.concatenate([*found, voice.finish()])


def test_speech_is_speech_and_the_rest_is_not(speech: Floats) -> None:
    noise = np.random.default_rng(1).normal(0, 0.01, SAMPLE_RATE_HZ * 2).astype(np.float32)
    assert all_probabilities(speech, [speech.size]).max() > 0.9
    assert all_probabilities(noise, [noise.size]).max() < 0.5
    assert all_probabilities(np.zeros(SAMPLE_RATE_HZ, dtype=np.float32), [SAMPLE_RATE_HZ]).max() < 0.1


@settings(max_examples=25)
@given(sizes=st.lists(st.integers(1, 40_000), min_size=1, max_size=8), cut=st.integers(0, 600))
def test_block_sizes_do_not_matter(speech: Floats, sizes: list[int], cut: int) -> None:
    audio = speech[: 60_000 - cut]
    if min(sizes) < 200:
        audio = audio[:20_000]
    found = all_probabilities(audio, sizes)
    assert found.shape == (-(-audio.size // FRAME_SAMPLES),)
    np.testing.assert_allclose(found, all_probabilities(audio, [audio.size]), atol=1e-5)


def test_same_as_faster_whispers_own_model(speech: Floats) -> None:
    from faster_whisper.vad import get_vad_model

    frames = speech.size // FRAME_SAMPLES
    # Its code sets the last 64 samples of what it is given to zero, so they are zero from the start.
    padded = np.concatenate((speech[: frames * FRAME_SAMPLES], np.zeros(FRAME_SAMPLES, dtype=np.float32)))
    expected = get_vad_model()(padded.copy())
    np.testing.assert_allclose(all_probabilities(padded, [4_999]), np.squeeze(expected), atol=1e-4)


def test_no_audio_no_frames() -> None:
    voice = VoiceActivity()
    assert voice.probabilities(np.zeros(0, dtype=np.float32)).size == 0
    assert voice.finish().size == 0


def test_partial_frame_counts_once() -> None:
    voice = VoiceActivity()
    assert voice.probabilities(np.zeros(FRAME_SAMPLES + 1, dtype=np.float32)).size == 1
    assert voice.finish().size == 1
    assert voice.finish().size == 0


def test_only_the_model_file_is_taken_from_faster_whisper() -> None:
    code = (
        "import sys; from workers.voice_activity import VoiceActivity; VoiceActivity();"
        "print([name for name in ('faster_whisper', 'ctranslate2', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120, check=True)
    assert done.stdout == b"[]\n"


def test_speech_sample_is_what_the_tests_take_it_for() -> None:
    assert soundfile.info(str(SAMPLES / "en_weather.wav")).duration > 2
