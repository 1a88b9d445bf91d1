"""What a transcriber decides over a recording's windows: their language, tries that were not good, prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from scripted_engine import ScriptedEngine, heard, said, scripted, transcribed
from workers.errors import EngineLostError, TranscriptionError
from workers.interface import WindowRequest, WindowResult, WindowSegment
from workers.messages import Failure, Record, Transcript
from workers.recording import VOTERS
from workers.runtime import Runtime


@pytest.fixture
def train(samples: Path) -> str:
    return str(samples / "en_train.flac")


@pytest.fixture
def news(samples: Path) -> str:
    """70 seconds of speech: three windows."""
    return str(samples / "en_news_long.ogg")


@pytest.fixture(scope="module")
def long_news(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The news twice: more windows than vote."""
    samples_read, rate = soundfile.read(samples / "en_news_long.ogg", dtype="float32")
    path = tmp_path_factory.mktemp("long") / "news_twice.wav"
    soundfile.write(path, np.concatenate([samples_read] * 2), rate)
    return str(path)


def hears(languages: Sequence[str], probability: float = 0.9) -> ScriptedEngine:
    """An engine that detects these languages, one a window, and says in each text the language and the number."""

    def answer(request: WindowRequest, number: int) -> WindowResult:
        language = request.language or languages[number]
        return heard(f"{language} {number}", language=language, language_probability=probability)

    return scripted(answer)


def transcript(runtime: Runtime, record: Record, engine: ScriptedEngine, **options: object) -> Transcript:
    ((item,),) = transcribed(runtime, [record], engine, **options)
    assert isinstance(item, Transcript), item
    return item


# Languages.


def test_first_windows_vote_and_the_rest_is_decoded_in_their_language(standin_runtime: Runtime, long_news: str) -> None:
    engine = hears(["de", "en", "de"])

    item = transcript(standin_runtime, Record(audio=long_news), engine)

    asked = [request.language for request in engine.requests]
    windows = len(asked) - 1
    assert windows > VOTERS
    # The outvoted window is decoded again at the end, and its text stands where it was said.
    assert asked == [None] * VOTERS + ["de"] * (windows - VOTERS) + ["de"]
    assert engine.requests[-1].samples is engine.requests[1].samples
    assert [request.urgent for request in engine.requests] == [False] * windows + [True]
    assert item.text.split() == " ".join(f"de {n}" for n in [0, windows, 2, *range(VOTERS, windows)]).split()
    assert item.language == "de"
    assert item.language_probability is not None
    assert 0.5 < item.language_probability < 0.8, "0.9 by the share of two windows of three"
    assert item.flags == []


def test_unanimous_windows_are_decoded_once(standin_runtime: Runtime, news: str) -> None:
    engine = hears(["zh"] * 3)

    item = transcript(standin_runtime, Record(audio=news), engine)

    assert [request.language for request in engine.requests] == [None] * 3
    assert (item.language, item.language_probability, item.flags) == ("zh", pytest.approx(0.9), [])


def test_fewer_windows_than_voters_vote_too(standin_runtime: Runtime, train: str) -> None:
    item = transcript(standin_runtime, Record(audio=train), hears(["de"], probability=0.4))

    assert (item.language, item.language_probability) == ("de", pytest.approx(0.4))
    assert item.flags == ["uncertain_language"]


def test_window_without_words_is_outvoted(standin_runtime: Runtime, news: str) -> None:
    def answer(request: WindowRequest, number: int) -> WindowResult:
        if number == 0:
            # Silence by its figures: what it says and in which language means nothing.
            return heard("you", language="zh", language_probability=1.0, avg_logprob=-2.0, no_speech_prob=0.9)
        return heard(f"window {number}", language=request.language or "de", language_probability=0.3)

    item = transcript(standin_runtime, Record(audio=news), scripted(answer))

    assert item.language == "de"
    assert "you" not in item.text


def test_windows_without_words_do_not_decide_for_those_that_follow(standin_runtime: Runtime, long_news: str) -> None:
    """Music before the first word: an hour would be written down in whatever language it sounds like."""

    def answer(request: WindowRequest, number: int) -> WindowResult:
        if number < VOTERS:
            return heard("", language=request.language or "en", language_probability=0.35, no_speech_prob=0.9)
        return heard(f"window {number}", language=request.language or "de", language_probability=0.9)

    engine = scripted(answer)
    item = transcript(standin_runtime, Record(audio=long_news), engine)
    windows = len(engine.requests) - VOTERS
    assert [request.language for request in engine.requests] == [None] * windows + ["de"] * VOTERS
    assert (item.language, item.language_probability) == ("de", pytest.approx(0.9))
    assert "uncertain_language" not in item.flags


@pytest.mark.parametrize(("own", "common"), [(None, "per-window"), ("per-window", "de")])
def test_each_window_keeps_its_language_when_asked(
    standin_runtime: Runtime, news: str, own: str | None, common: str
) -> None:
    engine = hears(["de", "en", "zh"], probability=0.4)

    item = transcript(standin_runtime, Record(audio=news, language=own), engine, language=common)

    assert [request.language for request in engine.requests] == [None] * 3
    assert item.text == "de 0 en 1 zh 2"
    assert item.language in {"de", "en", "zh"}, "that of most of the speech"
    assert item.flags == [], "nothing was voted on"


def test_rows_language_is_not_voted_on(standin_runtime: Runtime, news: str) -> None:
    engine = hears([], probability=0.1)

    item = transcript(standin_runtime, Record(audio=news, language="German"), engine, language="per-window")

    assert [request.language for request in engine.requests] == ["de"] * 3
    assert (item.language, item.flags) == ("de", [])


def test_translation_from_a_language_without_spaces_keeps_its_spaces(standin_runtime: Runtime, news: str) -> None:
    engine = scripted(lambda request, number: heard("It rains.", language="zh"), tasks=("translate",))

    ((item,),) = transcribed(standin_runtime, [Record(audio=news)], engine, task="translate")

    assert isinstance(item, Transcript)
    assert (item.text, item.language) == ("It rains. It rains. It rains.", "zh")


# Tries that were not good.


def test_window_that_loops_is_tried_again_and_stands_in_its_place(standin_runtime: Runtime, news: str) -> None:
    middle: list[np.ndarray] = []

    def answer(request: WindowRequest, number: int) -> WindowResult:
        if number == 1:
            middle.append(request.samples)
            return heard("so it goes " * 30, compression_ratio=9.0)
        if request.temperature:
            assert request.samples is middle[0]
            # Heard to the end of the window, so that nothing is left to go on with.
            whole = WindowSegment(0.0, len(request.samples) / 16_000, "the middle")
            return heard("the middle", temperature=request.temperature, segments=(whole,))
        return replace(said(request, number), text="an end")

    item = transcript(standin_runtime, Record(audio=news, language="en"), scripted(answer))

    assert item.text == "an end the middle an end"
    assert (item.temperature, item.flags, item.segments) == (0.2, [], None)


def test_windows_without_a_good_try_are_kept_and_flagged(standin_runtime: Runtime, news: str) -> None:
    def answer(request: WindowRequest, number: int) -> WindowResult:
        if not request.temperature and number == 0:
            return said(request, number)
        return heard("mumble", avg_logprob=-2.0, temperature=request.temperature)

    item = transcript(standin_runtime, Record(audio=news, language="en"), scripted(answer))

    assert item.text == "window 0 mumble mumble"
    assert item.flags == ["low_confidence"]
    assert item.attempts == 1, "of the row, not of its windows"


def test_recording_in_which_the_model_hears_nobody_is_empty(standin_runtime: Runtime, news: str) -> None:
    silent = heard("Thank you.", avg_logprob=-2.0, no_speech_prob=0.9, segments=(WindowSegment(0, 1, "Thank you."),))

    item = transcript(standin_runtime, Record(audio=news), scripted(lambda request, number: silent), timestamps=True)

    assert (item.text, item.segments, item.flags) == ("", [], ["empty", "no_speech"])


@pytest.mark.parametrize("asked", [True, False])
def test_windows_are_decoded_with_timestamps_and_told_of_pauses_for_who_asks(
    standin_runtime: Runtime, news: str, asked: bool
) -> None:
    engine = scripted(said)

    item = transcript(standin_runtime, Record(audio=news, language="en"), engine, timestamps=asked)

    assert all(request.timestamps for request in engine.requests), "or nobody could tell what the model left out"
    assert any(request.pauses for request in engine.requests) is asked
    assert (item.segments is not None) is asked


def test_same_row_is_seeded_alike_in_every_run_and_each_window_differently(standin_runtime: Runtime, news: str) -> None:
    def retried(row: int, language: str = "en") -> dict[tuple[int, float], int | None]:
        engine = scripted(lambda request, number: heard("mumble", avg_logprob=-2.0))
        transcript(standin_runtime, Record(audio=news, row=row, language=language), engine)
        # Windows by their lengths: retries of several windows run side by side
        return {(len(request.samples), request.temperature): request.seed for request in engine.requests}

    first = retried(7)

    assert len(first) == 3 * 6
    assert first == retried(7)
    drawn = [seed for seeds in (first, retried(8)) for seed in seeds.values() if seed is not None]
    assert len(set(drawn)) == len(drawn) == 2 * 3 * 5


@pytest.mark.parametrize("error", [EngineLostError("gone"), TranscriptionError("bad_argument", "no")])
def test_error_of_a_retry_is_the_records(standin_runtime: Runtime, train: str, error: Exception) -> None:
    engine = scripted(lambda request, number: error if number else heard("mumble", avg_logprob=-2.0))

    if isinstance(error, EngineLostError):
        with pytest.raises(EngineLostError):
            transcribed(standin_runtime, [Record(audio=train)], engine)
    else:
        assert transcribed(standin_runtime, [Record(audio=train)], engine) == [
            [Failure(type="bad_argument", message="no")]
        ]


# Prompts.


def test_prompt_that_comes_back_instead_of_speech_is_flagged(standin_runtime: Runtime, train: str) -> None:
    prompt = "Ada Lovelace, Grace Hopper"
    engine = scripted(lambda request, number: heard("Ada Lovelace, Grace Hopper." if request.prompt else "The train."))

    item = transcript(standin_runtime, Record(audio=train, prompt=prompt), engine)

    assert (item.text, item.flags) == ("The train.", ["prompt_echo"])
    assert [request.prompt for request in engine.requests] == [prompt, None]
