"""An output that no model can have given is tried again, and an engine that gives nothing else is lost."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from workers.decoding import Rules, Tokens, rules_of
from workers.errors import EngineLostError, TransientError
from workers.interface import WindowRequest
from workers.languages import LANGUAGES
from workers.retries import MAX_ATTEMPTS, TRIES_IN_PLACE
from workers.soundness import MOST_IN_A_ROW, Soundness

NAMES = ["endoftext", "startoftranscript", "en", "de", "translate", "transcribe", "startofprev", "nospeech"]
TOKENS = Tokens.of({f"<|{name}|>": 50 + place for place, name in enumerate([*NAMES, "notimestamps"])})
assert set(TOKENS.languages) == {"en", "de"} <= set(LANGUAGES)
#: Language, task and no timestamps, then two words and the end.
GOOD = [52, 55, 58, 10, 11, 50]


def asked(language: str | None = "en", *, timestamps: bool = False) -> WindowRequest:
    return WindowRequest(np.zeros(16_000, np.float32), "transcribe", language, timestamps=timestamps)


def figures(ids: list[int], numbers_until: int | None = None) -> list[dict[int, float]]:
    """Log-probabilities of the tokens; from a step on they are no numbers."""
    end = len(ids) if numbers_until is None else numbers_until
    return [{id: -0.5 if step < end else math.nan, TOKENS.no_speech: -3.0} for step, id in enumerate(ids)]


def rules(language: str | None = "en", *, timestamps: bool = False) -> Rules:
    return rules_of(asked(language, timestamps=timestamps), TOKENS)


@pytest.mark.parametrize(
    ("ids", "of"),
    [
        (GOOD, rules()),
        (GOOD, rules(None)),
        ([53, 55, 58, 10, 50], rules(None)),
        ([52, 55, 59, 10, 70, 50], rules(timestamps=True)),
        ([52, 55, 58], rules()),
    ],
)
def test_what_a_model_can_have_said_is_good(ids: list[int], of: Rules) -> None:
    Soundness().check(ids, figures(ids), of)


@pytest.mark.parametrize(
    ("ids", "numbers_until", "of"),
    [
        # NaN from the first step on: the likeliest of no numbers is token 0, whatever is forced.
        ([0] * 6, 0, rules()),
        ([0] * 6, 0, rules(None)),
        ([0] * 6, 0, rules(timestamps=True)),
        # Though the figures were right.
        ([0, *GOOD[1:]], 6, rules(None)),
        ([53, *GOOD[1:]], 6, rules()),
        ([52, 54, *GOOD[2:]], 6, rules()),
        ([52, 55, 0, 10, 50], 5, rules()),
        ([52, 55], 2, rules()),
        # NaN in the middle of a text, and of its last token.
        ([52, 55, 58, 10, 0, 0, 0], 4, rules()),
        (GOOD, 5, rules()),
    ],
)
def test_what_no_model_says_is_tried_again(ids: list[int], numbers_until: int, of: Rules) -> None:
    with pytest.raises(TransientError, match="engine_error"):
        Soundness().check(ids, figures(ids, numbers_until), of)


def test_what_is_said_for_no_numbers_is_what_is_looked_for() -> None:
    """The rules themselves, on a row of NaN: nothing that they bar or force changes it."""
    torch = pytest.importorskip("torch", reason="torch is not installed (whisper-fleet without an engine)")
    from workers.rules import Rows, Table, constrain

    one = rules()
    columns = [torch.tensor([value]) for value in (one.language, one.task, False, 0, -1, -1, -1)]
    logits = torch.full((1, 58 + 1502), math.nan)

    assert int(constrain(logits, Rows(*columns), Table.of(one, logits.device)).argmax(-1)) == 0


def test_an_engine_that_says_nothing_else_is_lost() -> None:
    # Given an engine that was bad, but not long enough
    soundness = Soundness()

    def bad() -> None:
        soundness.check([0] * 6, figures([0] * 6, 0), rules())

    for _ in range(MOST_IN_A_ROW - 1):
        with pytest.raises(TransientError):
            bad()
    # When it is good once
    soundness.check(GOOD, figures(GOOD), rules())

    # Then the count begins anew
    for _ in range(MOST_IN_A_ROW - 1):
        with pytest.raises(TransientError):
            bad()
    with pytest.raises(EngineLostError):
        bad()


def test_no_record_is_tried_so_often_that_its_worker_ends() -> None:
    assert TRIES_IN_PLACE * MAX_ATTEMPTS < MOST_IN_A_ROW


def test_the_engine_is_taken_for_dead_then() -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed (whisper-fleet without an engine)")
    from workers.engine import VllmEngine
    from workers.progress import Progress
    from workers.settings import load_settings

    # Given an engine whose vLLM gives tokens without numbers
    async def generate(*_: Any, **__: Any) -> AsyncIterator[Any]:
        logprobs = [{id: SimpleNamespace(logprob=value) for id, value in step.items()} for step in figures([0] * 6, 0)]
        yield SimpleNamespace(outputs=[SimpleNamespace(token_ids=[0] * 6, logprobs=logprobs, finish_reason="length")])

    engine = VllmEngine.__new__(VllmEngine)
    engine._llm = SimpleNamespace(generate=generate, errored=False)
    engine._tokens, engine._settings = TOKENS, load_settings()
    engine._progress, engine._soundness, engine._lost = Progress(8), Soundness(), None

    # When windows are asked of it, with and without a language
    raised = []
    for number in range(MOST_IN_A_ROW):
        assert engine.healthy()
        with pytest.raises((TransientError, EngineLostError)) as error:
            asyncio.run(engine._decode(asked("en" if number % 2 else None), None, None))
        raised.append(error.type)

    # Then each may be tried again, until the worker has to end
    assert raised == [TransientError] * (MOST_IN_A_ROW - 1) + [EngineLostError]
    assert not engine.healthy()
