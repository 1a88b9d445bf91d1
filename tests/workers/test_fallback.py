"""Tries of a window at rising temperatures: when they stop, what is kept, how they are seeded."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest

from scripted_engine import ScriptedEngine, heard, in_turn
from workers.errors import EngineLostError
from workers.fallback import FallbackDecoder
from workers.gates import MISSED_SECONDS
from workers.interface import WindowRequest, WindowResult, WindowSegment

REQUEST = WindowRequest(np.zeros(16_000, np.float32), "transcribe", "en")
TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
GOOD = heard()
LOW = heard("mumble", avg_logprob=-1.5)
LOOP = heard("so it goes so it goes", compression_ratio=4.5)
EMPTY = heard("")
SILENCE = heard("thank you", avg_logprob=-2.0, no_speech_prob=0.9, segments=(WindowSegment(0.0, 1.0, "thank you"),))

Decoders = Callable[..., FallbackDecoder]


def decode(
    decoder: FallbackDecoder, request: WindowRequest = REQUEST, speech_seconds: float = 10.0, identity: str = "0/a/0"
) -> WindowResult:
    return decoder.submit(request, speech_seconds, identity).result(timeout=60)


def holding(engine: ScriptedEngine, after: float, refused: float | None = None) -> dict[float, Future[WindowResult]]:
    """Have the engine leave tries above a temperature unanswered, and refuse one: those that wait, by temperature."""
    waiting: dict[float, Future[WindowResult]] = {}
    submit = engine.submit

    def held(request: WindowRequest) -> Future[WindowResult]:
        if request.temperature == refused:
            raise EngineLostError("gone")
        if request.temperature <= after:
            return submit(request)
        return waiting.setdefault(request.temperature, Future())

    engine.submit = held  # type: ignore[method-assign]
    return waiting


# When tries begin.


@pytest.mark.parametrize(
    ("in_flight", "begun"),
    [
        (8, TEMPERATURES[:2]),
        (4, TEMPERATURES[:2]),
        (3, TEMPERATURES[:3]),
        (2, TEMPERATURES[:4]),
        (1, TEMPERATURES[:5]),
    ],
)
def test_an_engine_with_room_gets_the_next_tries_at_once(
    decoders: Decoders, in_flight: int, begun: tuple[float, ...]
) -> None:
    # Given an engine of eight windows whose second answer is good
    engine = in_turn(LOW, *[replace(GOOD, temperature=temperature) for temperature in TEMPERATURES[1:]])
    engine.in_flight = in_flight
    # When a window has to be tried again
    result = decode(decoders(engine))
    # Then half of the batch at most is filled with tries, the one that is waited for included
    assert [request.temperature for request in engine.requests] == list(begun)
    # And the first good one is the answer, whatever came of the others
    assert result == replace(GOOD, temperature=0.2, attempts=2)


@pytest.mark.parametrize("good_at", range(1, 7))
def test_tries_begun_at_once_give_what_tries_in_turn_give(decoders: Decoders, good_at: int) -> None:
    answers = [
        replace(LOW, avg_logprob=-2.0 + number / 10, temperature=temperature) if number < good_at else GOOD
        for number, temperature in enumerate(TEMPERATURES)
    ]
    outcomes = []
    for in_flight in (8, 1):
        engine = in_turn(*answers)
        engine.in_flight = in_flight
        outcomes.append((decode(decoders(engine)), {request.temperature: request.seed for request in engine.requests}))
    (in_turn_result, seeds), (at_once, seeds_at_once) = outcomes

    assert at_once == in_turn_result
    assert seeds.items() <= seeds_at_once.items()


@pytest.mark.parametrize(("failed", "begun"), [(0, 1), (1, 2), (2, 6), (6, 6)])
def test_a_window_that_failed_twice_gets_all_other_tries_at_once_however_busy_the_engine(
    decoders: Decoders, failed: int, begun: int
) -> None:
    """They nearly always fail too, and one after another each would wait for its place in the batch."""
    engine = in_turn(*[LOW] * failed, *[GOOD] * (6 - failed))

    decode(decoders(engine))

    assert [request.temperature for request in engine.requests] == list(TEMPERATURES[:begun])


def test_tries_but_the_first_do_not_wait_behind_other_windows(decoders: Decoders) -> None:
    engine = in_turn(*[LOW] * 6)

    decode(decoders(engine))

    assert [request.urgent for request in engine.requests] == [False, *[True] * 5]


@pytest.mark.parametrize(
    ("answers", "left"), [((LOW, LOW, GOOD), (0.6, 0.8, 1.0)), ((LOW, LOW, LOW, GOOD), (0.8, 1.0))]
)
def test_tries_that_are_not_needed_any_more_leave_the_engine(
    decoders: Decoders, answers: tuple[WindowResult, ...], left: tuple[float, ...]
) -> None:
    # Given an engine that answers each try but does not come to those after the first good one
    engine = in_turn(*answers)
    waiting = holding(engine, TEMPERATURES[len(answers) - 1])

    # When the window has its answer
    decode(decoders(engine))

    # Then the others are cancelled
    assert [temperature for temperature, future in waiting.items() if future.cancelled()] == list(left)


def test_a_window_whose_try_fails_leaves_no_other_tries_behind(decoders: Decoders) -> None:
    engine = in_turn(LOW, LOW, EngineLostError("gone"))
    waiting = holding(engine, 0.4)

    with pytest.raises(EngineLostError):
        decode(decoders(engine))
    assert [future.cancelled() for future in waiting.values()] == [True] * 3


def test_tries_that_cannot_all_be_begun_leave_none_behind(decoders: Decoders) -> None:
    engine = in_turn(LOW)
    waiting = holding(engine, 0.2, refused=1.0)

    with pytest.raises(EngineLostError):
        decode(decoders(engine))
    assert [future.cancelled() for future in waiting.values()] == [True] * 3


LISTS = [heard(f"Press one for {name}, press two for nobody.", compression_ratio=2.5) for name in ("Ann", "Bob", "Cid")]


@pytest.mark.parametrize(("third", "begun"), [(LISTS[0], 3), (LISTS[2], 6)])
def test_a_list_is_tried_a_third_time_before_all_other_tries_begin(
    decoders: Decoders, third: WindowResult, begun: int
) -> None:
    answers = [*LISTS[:2], third, GOOD]
    engine = in_turn(*[replace(one, temperature=TEMPERATURES[number]) for number, one in enumerate(answers)])

    decode(decoders(engine), speech_seconds=3.0)

    assert [request.temperature for request in engine.requests] == list(TEMPERATURES[:begun])


# When tries stop.


def test_good_first_try_is_the_answer(decoders: Decoders) -> None:
    engine = in_turn(GOOD)

    assert decode(decoders(engine)) == GOOD
    assert engine.requests == [REQUEST]
    assert (REQUEST.temperature, REQUEST.seed) == (0.0, None)


@pytest.mark.parametrize("bad", [LOW, LOOP, EMPTY])
def test_tries_get_hotter_until_one_is_good(decoders: Decoders, bad: WindowResult) -> None:
    good = replace(GOOD, temperature=0.4)
    engine = in_turn(bad, bad, good)

    result = decode(decoders(engine))

    assert result == replace(good, attempts=3), "no flag of a try that was given up"
    assert [request.temperature for request in engine.requests[:3]] == [0.0, 0.2, 0.4]
    assert all(request.samples is REQUEST.samples for request in engine.requests)


def test_retries_keep_the_language_that_the_first_try_heard(decoders: Decoders) -> None:
    """Sampled at a high temperature, the language would be any of a hundred."""
    engine = in_turn(replace(LOW, language="de"), replace(LOW, language="zh"), GOOD)

    decode(decoders(engine), replace(REQUEST, language=None))

    assert [request.language for request in engine.requests] == [None, *["de"] * 5]


def test_silence_gives_empty_text_at_once(decoders: Decoders) -> None:
    engine = in_turn(SILENCE)

    result = decode(decoders(engine))

    assert (result.text, result.segments, result.attempts) == ("", (), 1)
    assert "no_speech" in result.flags
    assert (result.no_speech_prob, result.avg_logprob) == (0.9, -2.0), "the figures tell why"


def test_what_was_wrong_with_a_text_goes_with_it(decoders: Decoders) -> None:
    """Noise that the model talks over until it has no tokens left."""
    noise = replace(SILENCE, flags=("cut_off",), finished=False)
    result = decode(decoders(in_turn(noise)), speech_seconds=MISSED_SECONDS / 2)
    assert (result.text, result.flags) == ("", ("no_speech",))


@pytest.mark.parametrize("silent", [SILENCE, heard("", no_speech_prob=0.97)])
@pytest.mark.parametrize(
    ("speech_s", "flags"), [(MISSED_SECONDS - 0.01, ("no_speech",)), (MISSED_SECONDS, ("no_speech", "empty"))]
)
def test_silence_over_much_speech_is_said_to_be_missing(
    decoders: Decoders, silent: WindowResult, speech_s: float, flags: tuple[str, ...]
) -> None:
    """Nothing is sampled for it until a text is invented, and it leaves a trace beside windows with text."""
    result = decode(decoders(in_turn(silent, GOOD)), speech_seconds=speech_s)

    assert (result.text, result.flags, result.attempts) == ("", flags, 1)


def test_loop_over_silence_is_tried_again_and_then_is_silence(decoders: Decoders) -> None:
    engine = in_turn(replace(LOOP, avg_logprob=-2.0, no_speech_prob=0.9), SILENCE)

    result = decode(decoders(engine))

    assert (result.text, result.flags, result.attempts) == ("", ("no_speech", "empty"), 2)


def test_nothing_for_little_speech_is_an_answer(decoders: Decoders) -> None:
    engine = in_turn(EMPTY)

    result = decode(decoders(engine), speech_seconds=0.2)

    assert (result.text, result.flags, len(engine.requests)) == ("", ("no_speech",), 1)


def test_temperatures_are_those_of_the_gates(decoders: Decoders) -> None:
    engine = in_turn(LOW)

    once = decode(decoders(engine, temperatures=(0.0,)))
    twice = decode(decoders(engine, temperatures=(0.3, 0.9)))

    assert (once.attempts, twice.attempts) == (1, 2)
    assert [request.temperature for request in engine.requests] == [0.0, 0.3, 0.9]
    assert [request.seed is None for request in engine.requests] == [True, False, False]


def test_list_that_is_heard_twice_keeps_its_last_sentence(decoders: Decoders) -> None:
    """whisper-base said these of a menu: the third try is the first that zlib cannot shorten, as it leaves one out."""
    menu = (
        "Нажмите один, чтобы включить или выключить свой микрофон. Два, чтобы заблокировать или разблокировать"
        " конференцию. Три, чтобы удалить из конференции последнего вошедшего. Четыре или шесть для уменьшения или"
        " увеличения уровня громкости звука. Пять, чтобы расширить конференцию. Семь или девять для уменьшения или"
        " увеличения громкости вашего голоса."
    )
    whole = f"{menu} Или восемь для выхода из конференции."
    again = whole.replace("вошедшего", "ваше отшего")
    tries = [
        heard(whole, compression_ratio=2.45, avg_logprob=-0.13),
        heard(again, compression_ratio=2.45, avg_logprob=-0.12, temperature=0.2),
        heard(menu, compression_ratio=2.35, avg_logprob=-0.16, temperature=0.4),
    ]
    engine = in_turn(*tries)

    result = decode(decoders(engine), speech_seconds=23.3)

    assert (result.text, result.flags, result.attempts) == (again, ("repetition",), 2)
    assert len(engine.requests) == 2, "no third try is begun"


# What is kept when no try is good.


@pytest.mark.parametrize(
    ("tries", "text", "flags"),
    [
        ([LOW], "mumble", ("low_confidence",)),
        ([LOOP], LOOP.text, ("repetition",)),
        ([EMPTY], "", ("empty",)),
        ([LOOP, EMPTY, LOW, LOOP], "mumble", ("low_confidence",)),
        ([LOOP, EMPTY, LOOP], "", ("empty",)),
        ([LOW, heard("clearer", avg_logprob=-1.2), LOW], "clearer", ("low_confidence",)),
        ([replace(LOOP, flags=("standin", "repetition"))], LOOP.text, ("standin", "repetition")),
    ],
)
def test_least_bad_try_is_kept_and_flagged(
    decoders: Decoders, tries: list[WindowResult], text: str, flags: tuple[str, ...]
) -> None:
    engine = in_turn(*tries)

    result = decode(decoders(engine))

    assert (result.text, result.flags, result.attempts) == (text, flags, 6)
    assert [request.temperature for request in engine.requests] == list(TEMPERATURES)


# Seeds.


def seeds(decoders: Decoders, identity: str) -> dict[float, int | None]:
    engine = in_turn(LOW)
    decode(decoders(engine), identity=identity)
    return {request.temperature: request.seed for request in engine.requests}


def test_reruns_are_seeded_alike_and_everything_else_differently(decoders: Decoders) -> None:
    identities = [f"{row}/{source}/{window}" for row in range(3) for source in "ab" for window in range(3)]

    first = {identity: seeds(decoders, identity) for identity in identities}

    assert first == {identity: seeds(decoders, identity) for identity in identities}
    assert all(one.pop(0.0) is None for one in first.values()), "greedy decoding needs none"
    drawn = [seed for one in first.values() for seed in one.values()]
    assert len(set(drawn)) == len(identities) * 5
    assert all(seed is not None and 0 <= seed < 2**32 for seed in drawn)
