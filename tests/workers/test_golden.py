"""The golden check lets an engine serve that hears the bundled clip, and no other."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from scripted_engine import heard, scripted
from workers import golden
from workers.errors import EngineLostError, ModelLoadError, TranscriptionError
from workers.interface import SAMPLE_RATE_HZ, WINDOW_SAMPLES
from workers.settings import Settings


def hearing(text: str):  # type: ignore[no-untyped-def]
    return scripted(lambda request, number: heard(text))


def test_clip_is_one_window_of_audible_16_khz_mono() -> None:
    info = soundfile.info(golden.CLIP)
    assert (info.samplerate, info.channels) == (SAMPLE_RATE_HZ, 1)

    engine = hearing(golden.TEXT)
    golden.check(engine)

    (request,) = engine.requests
    assert (request.task, request.language, request.temperature, request.prompt) == ("transcribe", "en", 0.0, None)
    assert request.samples.dtype == np.float32
    assert request.samples.shape == (info.frames,)
    assert SAMPLE_RATE_HZ < info.frames <= WINDOW_SAMPLES
    assert 0.1 < np.abs(request.samples).max() <= 1.0


@pytest.mark.parametrize(
    "text",
    [
        golden.TEXT,
        "good morning the sun is warm and we will walk in the park today",
        "Good morning! The son is warm, and we'll walk in the park today.",  # a small model may miss a word
    ],
)
def test_right_text_passes(text: str) -> None:
    golden.check(hearing(text))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Thank you.",
        "Good morning.",
        "The " * 60,
        "Good morning. " * 20,
        "Guten Morgen. Die Sonne ist warm, und wir gehen heute im Park spazieren.",
        "today park the in walk will we and warm is sun The morning Good",
        "!!!!!!!!!!!!!!!!!!!!",
    ],
)
def test_wrong_text_is_refused_with_both_texts_and_the_way_round(text: str) -> None:
    with pytest.raises(ModelLoadError) as caught:
        golden.check(hearing(text))

    message = str(caught.value)
    assert repr(text) in message
    assert repr(golden.TEXT) in message
    assert "test-model" in message
    assert "WHISPER_GOLDEN_CHECK=false" in message
    assert "golden_check" in Settings.model_fields
    assert "\n" not in message


@pytest.mark.parametrize("error", [EngineLostError("gone"), TranscriptionError("bad_argument", "no")])
def test_engine_that_gives_no_text_at_all_is_refused_too(error: Exception) -> None:
    """As a ModelLoadError: a worker ends with one line for that, and with a traceback for others."""
    with pytest.raises(ModelLoadError, match=r"golden check: .*test-model.*(gone|no)"):
        golden.check(scripted(lambda request, number: error))


def test_model_that_does_not_know_english_is_not_asked(caplog: pytest.LogCaptureFixture) -> None:
    engine = scripted(languages=("de", "zh"))

    with caplog.at_level(logging.WARNING):
        golden.check(engine)

    assert engine.requests == []
    assert "golden check left out" in caplog.text


some_words = st.lists(st.text("abcdefgh", min_size=1, max_size=6), min_size=1, max_size=20)


@given(some_words, some_words)
def test_similarity_is_the_share_of_words_in_the_same_order(one: list[str], other: list[str]) -> None:
    same = golden.similarity(" ".join(one), ", ".join(one).upper() + "!")
    share = golden.similarity(" ".join(one), " ".join(other))

    assert same == 1.0
    assert 0.0 <= share <= 2 * min(len(one), len(other)) / (len(one) + len(other))
    assert (share > 0) == bool(set(one) & set(other))
    assert golden.similarity(" ".join(one), "") == 0.0
