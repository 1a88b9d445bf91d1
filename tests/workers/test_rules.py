"""Whisper's decode rules against a slow, readable version of openai/whisper's own, over random logits."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from workers.decoding import ANY_LANGUAGE, Rules
from workers.rules import PAUSE_LOGITS, Rows, Table, constrain, pause_mask

#: A small vocabulary in Whisper's order: text, end of text, other special tokens, timestamps 0.00 to 30.00.
TEXT, END, NO_TIMESTAMPS, BEGIN, SIZE = 24, 24, 33, 34, 34 + 1501
LANGUAGES, TASK = (26, 27, 28), 29

TIMED = Rules(
    language=ANY_LANGUAGE,
    task=TASK,
    timestamps=True,
    pauses=(),
    languages=LANGUAGES,
    no_timestamps=NO_TIMESTAMPS,
    end_of_text=END,
    suppressed=(3, 4, 25),
    suppressed_at_begin=(0, END),
    punctuation=(5, 6),
)
UNTIMED = replace(TIMED, timestamps=False)
PAUSED = replace(TIMED, pauses=(40, 75, 70, 120, 1480, 1600))
GERMAN = replace(UNTIMED, language=28)
FORCED = {True: [27, TASK], False: [27, TASK, NO_TIMESTAMPS]}


def reference(logits: Sequence[float], said: Sequence[int], rules: Rules) -> tuple[list[float], float]:
    """SuppressBlank, SuppressTokens and ApplyTimestampRules of openai/whisper `decoding.py`, for one sequence.

    ``said``: what came after the forced steps. Also returns how clear the last rule's decision was.
    """
    logits = list(logits)

    def forbid(tokens: Sequence[int]) -> None:
        for token in tokens:
            logits[token] = -math.inf

    if not said:
        forbid(rules.suppressed_at_begin)
    forbid(rules.suppressed)
    # Whisper's generation config lists most of these; here none of them is ever text.
    forbid(range(rules.end_of_text + 1, rules.no_timestamps + 1))
    begin = rules.no_timestamps + 1
    best_text = max(range(begin), key=logits.__getitem__)
    if said and rules.timestamps and best_text not in rules.punctuation:  # our own rule: a pause is favoured
        pairs = list(zip(rules.pauses[::2], rules.pauses[1::2], strict=True))
        for step in range(1501):
            if any(first <= step <= last for first, last in pairs):
                logits[begin + step] += PAUSE_LOGITS
    if not rules.timestamps:
        forbid(range(rules.no_timestamps + 1, len(logits)))
        return logits, math.inf

    last_was_timestamp = len(said) >= 1 and said[-1] >= begin
    penultimate_was_timestamp = len(said) < 2 or said[-2] >= begin
    if last_was_timestamp:
        if penultimate_was_timestamp:
            forbid(range(begin, len(logits)))
        else:
            forbid(range(rules.end_of_text))
    timestamps = [token for token in said if token >= begin]
    if timestamps:
        last = timestamps[-1] if last_was_timestamp and not penultimate_was_timestamp else timestamps[-1] + 1
        forbid(range(begin, last))
    if not said:
        forbid(range(begin))
        forbid(range(begin + 50 + 1, len(logits)))

    # The normalisation of log_softmax is the same on both sides, so it may be left out.
    mass = [math.exp(value) for value in logits[begin:] if value != -math.inf]
    timestamp_score = math.log(sum(mass)) if mass else -math.inf
    text_score = max(logits[:begin])
    if timestamp_score > text_score:
        forbid(range(begin))
    both_possible = -math.inf not in (timestamp_score, text_score)
    return logits, abs(timestamp_score - text_score) if both_possible else math.inf


def random_logits(seed: int, spread: float, stamps_bias: float) -> list[float]:
    """Logits as a model's are: any scale, with timestamps more or less likely than text."""
    chance = random.Random(seed)
    return [chance.gauss(0, spread) + (stamps_bias if id >= BEGIN else 0.0) for id in range(SIZE)]


def rows_of(rules: Sequence[Rules], generated: Sequence[Sequence[int]]) -> Rows:
    """The state of a batch, worked out the slow way."""

    def back(tokens: Sequence[int], steps: int) -> int:
        return tokens[-steps] if len(tokens) >= steps else -1

    stamps = [[-1, *(token for token in tokens if token >= BEGIN)][-1] for tokens in generated]
    return Rows(
        language=torch.tensor([one.language for one in rules]),
        task=torch.tensor([one.task for one in rules]),
        timestamps=torch.tensor([one.timestamps for one in rules]),
        step=torch.tensor([len(tokens) for tokens in generated]),
        last=torch.tensor([back(tokens, 1) for tokens in generated]),
        before=torch.tensor([back(tokens, 2) for tokens in generated]),
        stamp=torch.tensor(stamps),
        pauses=torch.stack([pause_mask(one.pauses) for one in rules]),
    )


def batch(logits: torch.Tensor, rules: Sequence[Rules], generated: Sequence[Sequence[int]]) -> torch.Tensor:
    table = Table.of(rules[0], torch.device("cpu"))
    result = constrain(logits, rows_of(rules, generated), table, any_timestamps=any(one.timestamps for one in rules))
    assert result is logits, "the mask is applied in place"
    return result


def constrained(logits: Sequence[float], said: Sequence[int], rules: Rules) -> list[float]:
    tensor = torch.tensor([logits], dtype=torch.float32)
    return [float(value) for value in batch(tensor, [rules], [[*FORCED[rules.timestamps], *said]])[0]]


seeds = st.integers(0, 2**32)
spreads = st.sampled_from([0.1, 1.0, 4.0, 12.0])
biases = st.sampled_from([-9.0, -4.0, 0.0, 4.0])
text = st.integers(0, TEXT - 1)
stamp = st.integers(BEGIN, SIZE - 1)


@st.composite
def spoken(draw: st.DrawFn) -> list[int]:
    """What a decoder that keeps the rules has said: segments in order, the last perhaps unfinished."""
    times = sorted(draw(st.lists(st.integers(BEGIN, SIZE - 1), max_size=8)))
    said: list[int] = []
    for number, time in enumerate(times):
        said.append(time)
        if number % 2 == 0:
            said += draw(st.lists(text, min_size=1, max_size=4))
    return said[: draw(st.integers(0, len(said)))]


@settings(max_examples=100)
@given(
    seed=seeds,
    spread=spreads,
    bias=biases,
    said=st.one_of(spoken(), st.lists(st.one_of(text, stamp), max_size=8)),
    rules=st.sampled_from([TIMED, PAUSED, UNTIMED]),
)
def test_same_tokens_as_openai_whisper(seed: int, spread: float, bias: float, said: list[int], rules: Rules) -> None:
    logits = [float(value) for value in torch.tensor(random_logits(seed, spread, bias))]
    expected, margin = reference(logits, said, rules)
    assume(margin > 1e-3)  # closer than that, rounding decides

    assert constrained(logits, said, rules) == pytest.approx(expected, abs=1e-5)


@settings(max_examples=50)
@given(seed=seeds, count=st.integers(1, 6), data=st.data())
def test_rows_of_a_batch_do_not_touch_each_other(seed: int, count: int, data: st.DataObject) -> None:
    """Any mix of forced steps, languages, timed and untimed rows gives what each row gives alone."""
    rules = [data.draw(st.sampled_from([TIMED, PAUSED, UNTIMED, GERMAN])) for _ in range(count)]
    generated = [
        [*FORCED[one.timestamps], *data.draw(spoken() if one.timestamps else st.lists(text, max_size=4))]
        for one in rules
    ]
    generated = [tokens[: data.draw(st.integers(0, len(tokens)))] for tokens in generated]
    logits = torch.tensor([random_logits(seed + row, 3.0, 0.0) for row in range(count)])
    alone = [batch(logits[row : row + 1].clone(), [rules[row]], [generated[row]])[0] for row in range(count)]

    together = batch(logits.clone(), rules, generated)

    assert together.tolist() == torch.stack(alone).tolist()


@pytest.mark.parametrize(
    ("rules", "allowed"),
    [
        (UNTIMED, [LANGUAGES, (TASK,), (NO_TIMESTAMPS,)]),
        (GERMAN, [(28,), (TASK,), (NO_TIMESTAMPS,)]),
        (TIMED, [LANGUAGES, (TASK,)]),
        (replace(UNTIMED, languages=()), [(NO_TIMESTAMPS,)]),
    ],
)
def test_forced_steps_leave_only_their_tokens_and_keep_their_logits(
    rules: Rules, allowed: list[tuple[int, ...]]
) -> None:
    assert rules.forced_steps == len(allowed)
    for step, ids in enumerate(allowed):
        logits = torch.tensor([random_logits(step, 3.0, 0.0)])

        result = batch(logits.clone(), [rules], [[27, TASK, NO_TIMESTAMPS][:step]])[0]

        assert {id for id in range(SIZE) if result[id] > -torch.inf} == set(ids)
        assert result[list(ids)].tolist() == logits[0, list(ids)].tolist()


def test_suppressed_tokens_are_never_said_and_blanks_not_at_the_beginning() -> None:
    nothing_said = constrained([0.0] * SIZE, [], UNTIMED)
    one_word_said = constrained([0.0] * SIZE, [7], UNTIMED)

    assert all(nothing_said[id] == -math.inf for id in (*TIMED.suppressed, *TIMED.suppressed_at_begin))
    assert all(one_word_said[id] == -math.inf for id in TIMED.suppressed)
    assert all(one_word_said[id] == 0.0 for id in TIMED.suppressed_at_begin)


def test_timestamps_at_a_pause_are_favoured_but_not_the_first_one() -> None:
    beginning = constrained([0.0] * SIZE, [], PAUSED)
    inside = constrained([9.5, *[9.0] * (BEGIN - 1), *[0.0] * 1501], [BEGIN, 7], PAUSED)

    assert {beginning[BEGIN + step] for step in range(51)} == {0.0}
    assert {step for step in range(1501) if inside[BEGIN + step] == PAUSE_LOGITS} == {
        *range(40, 121),
        *range(1480, 1501),
    }
    assert inside[BEGIN + 200] == 0.0


def test_punctuation_before_a_pause_is_said_first() -> None:
    logits = [8.0] * BEGIN + [0.0] * 1501
    logits[TIMED.punctuation[0]] = 8.1

    assert constrained(logits, [BEGIN, 7], replace(PAUSED, pauses=(0, 1500))) == constrained(logits, [BEGIN, 7], TIMED)


def test_punctuation_as_likely_as_the_likeliest_word_is_about_to_be_said() -> None:
    logits = [8.0] * BEGIN + [0.0] * 1501

    assert constrained(logits, [BEGIN, 7], replace(PAUSED, pauses=(0, 1500))) == constrained(logits, [BEGIN, 7], TIMED)


def test_pauses_are_favoured_by_a_checkpoint_without_punctuation_too() -> None:
    rules = replace(PAUSED, punctuation=())

    assert constrained([9.0] * BEGIN + [0.0] * 1501, [BEGIN, 7], rules)[BEGIN + 41] == PAUSE_LOGITS


def test_a_pause_ends_a_segment_that_would_have_gone_on() -> None:
    logits = [8.0] * BEGIN + [0.0] * 1501  # all 1501 timestamps together: e^7.3
    logits[7] = 8.1
    text_goes_on = constrained(logits, [BEGIN, 7], TIMED)
    segment_ends = constrained(logits, [BEGIN, 7], replace(PAUSED, pauses=(0, 1500)))

    assert text_goes_on[7] == pytest.approx(8.1)
    assert segment_ends[7] == -math.inf


def test_no_timestamps_mode_allows_text_and_the_end_alone() -> None:
    result = constrained([0.0] * SIZE, [7], UNTIMED)

    assert {id for id in range(SIZE) if result[id] == 0.0} == set(range(END + 1)) - set(TIMED.suppressed)


def test_no_forced_steps_and_no_suppressed_tokens() -> None:
    """English-only models with timestamps have neither."""
    bare = replace(TIMED, languages=(), suppressed=(), suppressed_at_begin=())

    result = batch(torch.zeros(1, SIZE), [bare], [[]])[0]

    assert [id for id in range(SIZE) if result[id] == 0.0] == list(range(BEGIN, BEGIN + 51))


@settings(max_examples=20)
@given(seed=seeds, spread=spreads, bias=biases)
def test_random_decoding_says_valid_segments(seed: int, spread: float, bias: float) -> None:
    said = decoded(seed, spread, bias)

    for token in said:
        assert token <= END or token >= BEGIN, "neither a language nor a task is text"
    assert END not in said[:-1]
    assert not set(said) & set(TIMED.suppressed)
    last_s = -1
    body = [token for token in said if token != END]
    assert BEGIN <= body[0] <= BEGIN + 50, "the first segment starts within a second"
    while body:
        start = body.pop(0)
        assert start >= BEGIN
        assert start >= last_s
        words = 0
        while body and body[0] < END:
            body.pop(0)
            words += 1
        if body:
            last_s = body.pop(0)
            assert words > 0, "a segment has text"
            assert last_s > start, "and takes time"


def decoded(seed: int, spread: float, bias: float) -> list[int]:
    """Greedy decoding of random logits under the rules, to the end of text or 60 tokens."""
    said: list[int] = []
    while END not in said and len(said) < 60:
        result = constrained(random_logits(seed + len(said), spread, bias), said, TIMED)
        best = max(range(SIZE), key=result.__getitem__)
        assert result[best] > -math.inf, "something can always be said"
        said.append(best)
    return said


def test_a_table_comes_to_the_device_without_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made there of a list, it is a copy from pageable memory: CUDA waits for it, in the middle of a step."""
    plain, copied = torch.tensor, []

    def tensor(values: Sequence[int], *, dtype: torch.dtype) -> torch.Tensor:  # refuses a device
        copied.append(values)
        return plain(values, dtype=dtype)

    monkeypatch.setattr(torch, "tensor", tensor)

    table = Table.of(TIMED, torch.device("cpu"))

    assert len(copied) == 4
    assert table.suppressed.tolist() == sorted({*TIMED.suppressed, *range(END + 1, NO_TIMESTAMPS + 1)})
