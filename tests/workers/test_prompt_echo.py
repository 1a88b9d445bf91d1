"""Whisper says its prompt over silence: such a text is heard again without the prompt before it is believed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripted_engine import ScriptedEngine, heard, scripted
from workers.errors import EngineLostError
from workers.fallback import ECHO_WORDS, FallbackDecoder, echoes
from workers.interface import WindowRequest, WindowResult

PROMPT = "Names: Ada Lovelace, Grace Hopper, Katherine Johnson"
REQUEST = WindowRequest(np.zeros(16_000, np.float32), "transcribe", "en", prompt=PROMPT)
ECHO = heard("Grace Hopper, Katherine Johnson.")

Decode = Callable[..., WindowResult]


@pytest.fixture
def decode(decoders: Callable[..., FallbackDecoder]) -> Decode:
    """One window with the prompt through a decoder of its own."""

    def run(engine: ScriptedEngine, speech_seconds: float = 10.0) -> WindowResult:
        return decoders(engine).submit(REQUEST, speech_seconds, "0/a/0").result(timeout=60)

    return run


def with_and_without(prompted: WindowResult, *others: WindowResult | Exception) -> ScriptedEngine:
    """An engine that hears ``prompted`` with the prompt, and ``others`` in turn without it."""
    left = list(others)
    return scripted(lambda request, _: prompted if request.prompt else left.pop(0))


# What an echo looks like.


@given(st.lists(st.text("abcdefgh", min_size=1, max_size=6), min_size=ECHO_WORDS, max_size=20), st.data())
def test_every_part_of_the_prompt_is_an_echo(prompt: list[str], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(prompt) - ECHO_WORDS))
    end = data.draw(st.integers(start + ECHO_WORDS, len(prompt)))
    part = prompt[start:end]

    assert echoes(" ".join(part).upper() + ".", ", ".join(prompt))
    assert not echoes(" ".join(part[: ECHO_WORDS - 1]), ", ".join(prompt)), "so few words may well be said"
    assert not echoes(" ".join([*part, "other"]), ", ".join(prompt))


@pytest.mark.parametrize(
    ("text", "prompt", "is_echo"),
    [
        ("", PROMPT, False),
        ("Ada Lovelace Grace", PROMPT, True),
        ("Ada Grace Hopper", PROMPT, False),  # its words, but not in a row
        ("Ada Lovelace and Grace Hopper", PROMPT, False),
        ("Ada Lovelace Grace", None, False),
        ("Ada Lovelace Grace", "", False),
        ("本日は晴天なり", "放送: 本日は晴天なり。", True),
        ("斎藤健", "斎藤健、田中太郎さん", False),  # a name, whose spelling the prompt is there for
        ("田中太郎さん", "斎藤健、田中太郎さん", False),
        ("斎藤健、田中太郎さん", "斎藤健、田中太郎さん", True),
        ("本日は雨なり", "放送: 本日は晴天なり。", False),
        ("ग्रेस हॉपर", "नाम: ग्रेस हॉपर", False),  # two words, whatever signs they are written with
        ("एडा लवलेस, ग्रेस", "नाम: एडा लवलेस ग्रेस हॉपर", True),
    ],
)
def test_echoes_in_any_script(text: str, prompt: str | None, is_echo: bool) -> None:
    assert echoes(text, prompt) is is_echo


# What becomes of it.


def test_text_that_is_no_echo_is_not_asked_for_again(decode: Decode) -> None:
    engine = with_and_without(heard("Ada Lovelace wrote the first program."))

    assert decode(engine) == heard("Ada Lovelace wrote the first program.")
    assert engine.requests == [REQUEST]


def test_echo_over_silence_is_stripped_and_flagged(decode: Decode) -> None:
    engine = with_and_without(ECHO, heard(""))

    result = decode(engine, speech_seconds=0.3)

    assert (result.text, result.flags, result.attempts) == ("", ("no_speech", "prompt_echo"), 2)
    assert engine.requests == [REQUEST, replace(REQUEST, prompt=None, urgent=True)]


@pytest.mark.parametrize(
    "without",
    [
        "Grace Hopper, Katherine Johnson.",
        "grace hopper katherine johnson",
        "Grace Hoper, Catherine Johnston.",  # the prompt is there to correct this
    ],
)
def test_names_that_are_heard_without_the_prompt_were_said(decode: Decode, without: str) -> None:
    result = decode(with_and_without(ECHO, heard(without)))

    assert result == ECHO


def test_other_words_under_an_echo_come_to_light(decode: Decode) -> None:
    result = decode(with_and_without(ECHO, heard("so we went home again")))

    assert (result.text, result.flags) == ("so we went home again", ("prompt_echo",))


def test_try_without_the_prompt_has_its_own_retries_and_seeds(decode: Decode) -> None:
    unsure = heard("so we went home", avg_logprob=-1.5)
    engine = with_and_without(ECHO, unsure, heard("so we went home again"))

    result = decode(engine)

    assert (result.text, result.flags, result.attempts) == ("so we went home again", ("prompt_echo",), 3)
    assert [(request.prompt, request.temperature) for request in engine.requests] == [
        (PROMPT, 0.0),
        (None, 0.0),
        (None, 0.2),
    ]
    prompted = scripted(lambda request, _: unsure)
    decode(prompted)
    assert prompted.requests[1].temperature == engine.requests[2].temperature
    assert prompted.requests[1].seed != engine.requests[2].seed


def test_echo_that_only_a_retry_gives_is_found_too(decode: Decode) -> None:
    engine = scripted(
        lambda request, _: heard("") if not request.prompt or not request.temperature else ECHO,
    )

    result = decode(engine, speech_seconds=10.0)

    assert (result.text, result.flags) == ("", ("empty", "prompt_echo"))
    assert result.attempts == 2 + 6


def test_lost_engine_during_the_second_hearing_reaches_the_waiter(decode: Decode) -> None:
    with pytest.raises(EngineLostError):
        decode(with_and_without(ECHO, EngineLostError("gone")))
