"""Whisper's tokens by name, the rules of a request, and from generated tokens back to text and figures."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.decoding import (
    ANY_LANGUAGE,
    MAX_PROMPT_TOKENS,
    Tokens,
    compression_ratio,
    most_tokens,
    parse_output,
    prompt_ids,
    rules_of,
)
from workers.errors import ModelLoadError, TranscriptionError
from workers.interface import WindowRequest, WindowSegment
from workers.languages import LANGUAGES

ALL = list(LANGUAGES)
SUPPRESSED, AT_BEGIN = (1, 2, 7), (220, 50257)


def vocabulary(end_of_text: int, languages: Sequence[str], no_speech: str) -> dict[str, int]:
    """Special tokens in the order of openai/whisper's `tokenizer.py`; ordinary ones are named by their id."""
    names = ["endoftext", "startoftranscript", *languages, "translate", "transcribe"]
    names += ["startoflm", "startofprev", no_speech, "notimestamps"]
    special = {f"<|{name}|>": end_of_text + place for place, name in enumerate(names)}
    return {**{f"w{id}": id for id in range(end_of_text)}, **special}


V2 = vocabulary(50257, ALL[:99], "nocaptions")
V3 = vocabulary(50257, ALL, "nospeech")
ENGLISH_ONLY = vocabulary(50256, ALL[:99], "nocaptions")


def tokens_of(vocabulary: Mapping[str, int]) -> Tokens:
    return Tokens.of(vocabulary, suppressed=list(SUPPRESSED), suppressed_at_begin=list(AT_BEGIN))


def window(seconds: float = 30.0, **changes: object) -> WindowRequest:
    return WindowRequest(
        **{"samples": np.zeros(round(seconds * 16_000), np.float32), "task": "transcribe", **changes}  # type: ignore[arg-type]
    )


def words(ids: Sequence[int]) -> str:
    """Decodes like a tokenizer with a leading space in each word."""
    return "".join(f" w{id}" for id in ids)


# Tokens of the checkpoints that exist. The ids are those of their published tokenizers.


def test_tokens_of_a_multilingual_v2() -> None:
    tokens = tokens_of(V2)

    assert (tokens.end_of_text, tokens.start_of_transcript, tokens.start_of_previous) == (50257, 50258, 50361)
    assert tokens.tasks == {"translate": 50358, "transcribe": 50359}
    assert (tokens.no_speech, tokens.no_timestamps, tokens.timestamp_begin) == (50362, 50363, 50364)
    assert len(tokens.languages) == 99
    assert "yue" not in tokens.languages
    assert (tokens.languages["en"], tokens.languages["zh"]) == (50259, 50260)


def test_tokens_of_v3_are_one_further_because_of_cantonese() -> None:
    tokens = tokens_of(V3)

    assert tokens.languages["yue"] == 50358
    assert tokens.tasks == {"translate": 50359, "transcribe": 50360}
    assert (tokens.start_of_previous, tokens.no_speech, tokens.timestamp_begin) == (50362, 50363, 50365)


def test_tokens_of_an_english_only_model_have_no_languages_and_no_tasks() -> None:
    tokens = tokens_of(ENGLISH_ONLY)

    assert (tokens.end_of_text, tokens.timestamp_begin) == (50256, 50363)
    assert tokens.languages == {}
    assert tokens.tasks == {}


@pytest.mark.parametrize("missing", ["<|endoftext|>", "<|startofprev|>", "<|nocaptions|>", "<|notimestamps|>"])
def test_tokenizer_that_is_not_whispers_is_refused_by_the_tokens_name(missing: str) -> None:
    others = {name: id for name, id in V2.items() if name != missing}

    with pytest.raises(ModelLoadError, match="not a Whisper model") as caught:
        tokens_of(others)
    shown = "<|nospeech|>" if missing == "<|nocaptions|>" else missing
    assert shown in str(caught.value)


# The rules of a request.


def test_known_language_and_task_are_forced() -> None:
    rules = rules_of(window(language="de", task="translate"), tokens_of(V3))

    assert (rules.language, rules.task, rules.timestamps) == (V3["<|de|>"], V3["<|translate|>"], False)
    assert rules.no_timestamps == V3["<|notimestamps|>"]
    assert rules.forced_steps == 3
    assert (rules.suppressed, rules.suppressed_at_begin) == (SUPPRESSED, AT_BEGIN)


def test_unknown_language_is_left_to_the_model_among_all_languages() -> None:
    tokens = tokens_of(V2)

    rules = rules_of(window(timestamps=True), tokens)

    assert rules.language == ANY_LANGUAGE
    assert set(rules.languages) == set(tokens.languages.values())
    assert (rules.task, rules.timestamps) == (tokens.tasks["transcribe"], True)
    assert rules.forced_steps == 2


def test_english_only_model_is_forced_to_nothing_but_no_timestamps() -> None:
    tokens = tokens_of(ENGLISH_ONLY)

    assert rules_of(window(), tokens).languages == ()
    assert rules_of(window(), tokens).forced_steps == 1
    assert rules_of(window(timestamps=True), tokens).forced_steps == 0


def test_rules_as_plain_data_hold_every_field() -> None:
    rules = rules_of(window(), tokens_of(V2))

    plain = rules.as_dict()

    assert type(rules)(**plain) == rules  # type: ignore[arg-type]


# The most that a window may say.


def test_most_tokens_grow_with_the_window() -> None:
    assert most_tokens(window(1.0)) == 24 + 40
    assert most_tokens(window(2.5)) == 24 + 100
    # A full window's limit is the setting, not this.
    assert most_tokens(window(30.0)) > 448


@given(st.floats(0.001, 30.0))
def test_speech_is_never_cut_off_by_its_windows_length(seconds: float) -> None:
    # Fourteen letters a second of Burmese, at 2.8 tokens each; a short "Mm-hm, yes." needs a few at least.
    assert max(20, 14 * 2.8 * seconds) <= most_tokens(window(seconds)) <= 24 + 40 * 30


# The prompt.


def test_prompt_is_the_start_of_transcript_alone_without_a_text() -> None:
    tokens = tokens_of(V2)
    assert prompt_ids(window(), tokens, lambda text: [1]) == [tokens.start_of_transcript]
    for blank in ("", " \n"):
        assert prompt_ids(window(prompt=blank), tokens, lambda text: [1]) == [tokens.start_of_transcript]


def test_prompt_text_is_encoded_with_a_leading_space_up_to_its_limit() -> None:
    tokens = tokens_of(V2)
    seen: list[str] = []

    def encode(text: str) -> list[int]:
        seen.append(text)
        return list(range(MAX_PROMPT_TOKENS))

    ids = prompt_ids(window(prompt="  names: Ada, Grace \n"), tokens, encode)

    assert seen == [" names: Ada, Grace"]
    assert ids[0] == tokens.start_of_previous
    assert ids[-1] == tokens.start_of_transcript
    assert ids[1:-1] == list(range(MAX_PROMPT_TOKENS))
    # 448 positions: half of them at most before the text, as in openai/whisper.
    assert len(ids[:-1]) == 448 // 2


def test_longer_prompt_is_refused_with_both_figures() -> None:
    with pytest.raises(TranscriptionError) as caught:
        prompt_ids(window(prompt="many names"), tokens_of(V2), lambda _: list(range(MAX_PROMPT_TOKENS + 1)))

    assert caught.value.type == "bad_argument"
    assert "224 tokens" in caught.value.message
    assert "223" in caught.value.message


# The output.


def output(
    said: list[int],
    request: WindowRequest,
    tokens: Tokens,
    *,
    language: str = "en",
    logprob: float = -0.5,
    no_speech_prob: float = 0.25,
    language_probability: float = 0.75,
    flags: tuple[str, ...] = (),
    ran_out: bool = False,
):  # type: ignore[no-untyped-def]
    """What `parse_output` makes of ``said`` after the forced tokens."""
    rules = rules_of(request, tokens)
    forced = [tokens.languages[language], rules.task] if rules.languages else []
    forced += [] if rules.timestamps else [rules.no_timestamps]
    logprobs = [{id: math.log(0.125)} for id in forced] + [{id: logprob} for id in said]
    if tokens.languages:
        logprobs[0][forced[0]] = math.log(language_probability)
    logprobs[0][tokens.no_speech] = math.log(no_speech_prob)
    return parse_output([*forced, *said], logprobs, request, tokens, words, flags, ran_out=ran_out)


def test_text_and_figures_without_timestamps() -> None:
    tokens = tokens_of(V3)

    result = output([10, 11, 12, tokens.end_of_text], window(language="fr", temperature=0.4), tokens, language="fr")

    assert result.text == "w10 w11 w12"
    assert (result.language, result.temperature, result.segments, result.flags) == ("fr", 0.4, (), ())
    # Four scores over three text tokens and the end of text.
    assert result.avg_logprob == pytest.approx(-0.5)
    assert result.no_speech_prob == pytest.approx(0.25)
    assert result.language_probability == pytest.approx(0.75)
    assert result.compression_ratio == compression_ratio("w10 w11 w12")


def test_output_cut_off_at_the_token_limit_counts_the_end_that_did_not_come() -> None:
    result = output([10, 11, 12], window(language="en"), tokens_of(V2))

    assert result.avg_logprob == pytest.approx(3 * -0.5 / 4)


def test_what_ran_out_of_tokens_is_whole_up_to_the_last_end_of_a_segment() -> None:
    tokens = tokens_of(V2)
    zero = tokens.timestamp_begin
    request = window(30.0, language="en", timestamps=True)
    said = [zero, 10, 11, zero + 100, zero + 100, 12, zero + 200, zero + 210, 13, 14]

    result = output(said, request, tokens, ran_out=True)

    # All of it counts where it is judged,
    assert result.text == "w10 w11 w12 w13 w14"
    assert (result.segments[-1].end, result.flags) == (30.0, ())
    # and this is where the rest is taken up.
    assert result.whole == ("w10 w11 w12", (WindowSegment(0.0, 2.0, "w10 w11"), WindowSegment(2.0, 4.0, "w12")))
    assert not result.finished


def test_no_part_of_a_text_is_decoded_twice() -> None:
    """It takes its time on the thread that hears of every token."""
    tokens, asked = tokens_of(V2), list[tuple[int, ...]]()
    zero = tokens.timestamp_begin
    ids = [zero, 10, 11, zero + 100, zero + 100, 12, zero + 200, tokens.end_of_text]
    said = [{id: -0.5} for id in ids]
    rules = rules_of(window(30.0, language="en", timestamps=True), tokens)
    forced = [{tokens.languages["en"]: -0.1, tokens.no_speech: -1.0}, {rules.task: -0.1}]

    def decode(part: Sequence[int]) -> str:
        asked.append(tuple(part))
        return words(part)

    request = window(30.0, language="en", timestamps=True)
    result = parse_output([tokens.languages["en"], rules.task, *ids], [*forced, *said], request, tokens, decode)
    assert [one.text for one in result.segments] == ["w10 w11", "w12"]
    assert sorted(asked) == [(10, 11), (10, 11, 12), (12,)]


def test_a_text_that_ended_in_an_open_segment_is_whole_up_to_it_too() -> None:
    tokens = tokens_of(V2)
    zero = tokens.timestamp_begin
    request = window(29.5, language="en", timestamps=True)

    result = output([zero, 10, zero + 100, zero + 100, 11, tokens.end_of_text], request, tokens)
    closed = output([zero, 10, zero + 100, tokens.end_of_text], request, tokens)
    alone = output([zero, 10, tokens.end_of_text], request, tokens)

    assert [(one.start, one.end) for one in result.segments] == [(0.0, 2.0), (2.0, 29.5)]
    assert (result.whole, result.finished) == (("w10", (WindowSegment(0.0, 2.0, "w10"),)), True)
    assert closed.whole is None
    assert (alone.whole, alone.finished) == (("", ()), True)


@pytest.mark.parametrize(
    ("said", "whole"),
    [
        ([0, 10, 100, 100, *[11] * 8], ("w10", (WindowSegment(0.0, 2.0, "w10"),))),
        ([0, *[11] * 8], ("", ())),
    ],
)
def test_what_was_stopped_in_a_loop_is_whole_up_to_the_loop(said: list[int], whole: object) -> None:
    tokens = tokens_of(V2)
    ids = [id if id in (10, 11) else tokens.timestamp_begin + id for id in said]
    request = window(30.0, language="en", timestamps=True)

    result = output(ids, request, tokens, flags=("repetition",), ran_out=True)

    assert (result.whole, result.finished, result.flags) == (whole, False, ("repetition",))
    assert result.text.endswith("w11 " * 7 + "w11")


@pytest.mark.parametrize("timestamps", [True, False])
def test_without_such_an_end_the_text_is_said_to_be_cut_off(timestamps: bool) -> None:
    tokens = tokens_of(V2)
    said = [tokens.timestamp_begin, 10, 11] if timestamps else [10, 11]

    result = output(said, window(30.0, language="en", timestamps=timestamps), tokens, ran_out=True)

    assert (result.text, result.whole, result.flags) == ("w10 w11", None, ("cut_off",))


def test_no_half_letter_is_left_where_a_text_is_cut_off() -> None:
    tokens = tokens_of(V2)
    zero = tokens.timestamp_begin
    request, forced = window(30.0, language="en", timestamps=True), [tokens.languages["en"], 0]
    logprobs = [dict.fromkeys((*forced, zero, 10, 11, tokens.no_speech), -0.5)] * 5

    result = parse_output(
        [*forced, zero, 10, 11], logprobs, request, tokens, lambda ids: "მინიჭებუ\ufffd" if ids else "", ran_out=True
    )

    assert (result.text, [one.text for one in result.segments]) == ("მინიჭებუ", ["მინიჭებუ"])


def test_timestamps_do_not_count_as_words() -> None:
    tokens = tokens_of(V2)
    first = tokens.timestamp_begin

    timed = [first, 10, 11, first + 50, first + 50, 12, first + 99, tokens.end_of_text]
    request = window(language="en", timestamps=True)
    logprobs = [{id: -9.0 if id >= first else -0.5, tokens.no_speech: -1.0} for id in timed]
    forced = [{id: 0.0, tokens.no_speech: -1.0} for id in (tokens.languages["en"], 0)]
    result = parse_output([tokens.languages["en"], 0, *timed], [*forced, *logprobs], request, tokens, words)

    assert result.text == "w10 w11 w12"
    assert result.avg_logprob == pytest.approx(4 * -0.5 / 4)


def test_nothing_said() -> None:
    tokens = tokens_of(V2)

    result = output([tokens.end_of_text], window(language="en", timestamps=True), tokens)

    assert (result.text, result.segments, result.compression_ratio) == ("", (), 0.0)
    assert result.avg_logprob == pytest.approx(-0.5)


def test_detected_language_is_the_first_token() -> None:
    result = output([10], window(), tokens_of(V3), language="yue")

    assert (result.language, result.language_probability) == ("yue", pytest.approx(0.75))


def test_english_only_output() -> None:
    tokens = tokens_of(ENGLISH_ONLY)

    result = output([10, tokens.end_of_text], window(language="en"), tokens)

    assert (result.text, result.language, result.language_probability) == ("w10", "en", 1.0)


def test_flags_pass_through() -> None:
    assert output([10], window(), tokens_of(V2), flags=("repetition",)).flags == ("repetition",)


def test_segments_between_timestamps() -> None:
    tokens = tokens_of(V2)
    zero = tokens.timestamp_begin

    result = output(
        [zero, 10, 11, zero + 100, zero + 150, 12, zero + 200, tokens.end_of_text],
        window(language="en", timestamps=True),
        tokens,
    )

    assert result.text == "w10 w11 w12"
    assert result.segments == (WindowSegment(0.0, 2.0, "w10 w11"), WindowSegment(3.0, 4.0, "w12"))


def test_text_after_the_last_timestamp_is_kept_to_the_windows_end() -> None:
    tokens = tokens_of(V2)
    zero = tokens.timestamp_begin

    result = output([zero + 5, 10, zero + 50, zero + 50, 11], window(6.5, language="en", timestamps=True), tokens)

    assert result.segments == (WindowSegment(0.1, 1.0, "w10"), WindowSegment(1.0, 6.5, "w11"))


def test_times_past_the_windows_end_are_cut() -> None:
    tokens = tokens_of(V2)
    zero = tokens.timestamp_begin

    result = output([zero, 10, zero + 1500, zero + 1500, 11], window(2.0, language="en", timestamps=True), tokens)

    assert result.segments == (WindowSegment(0.0, 2.0, "w10"), WindowSegment(2.0, 2.0, "w11"))


@given(said=st.lists(st.one_of(st.integers(0, 99), st.integers(50364, 50364 + 1500)), max_size=40))
def test_segments_hold_all_the_text_in_order_within_the_window(said: list[int]) -> None:
    request = window(20.0, language="en", timestamps=True)

    result = output(said, request, tokens_of_v2)

    assert " ".join(segment.text for segment in result.segments) == result.text
    assert result.text == " ".join(f"w{id}" for id in said if id < 100)
    assert all(0 <= segment.start <= segment.end <= 20.0 for segment in result.segments)


tokens_of_v2 = tokens_of(V2)


@given(st.text())
def test_compression_ratio_is_bytes_over_zlibs_bytes(text: str) -> None:
    data = text.encode()
    expected = len(data) / len(zlib.compress(data)) if data else 0.0

    assert compression_ratio(text) == expected


def test_compression_ratio_tells_loops_from_speech() -> None:
    # 2.4 is openai/whisper's threshold.
    assert compression_ratio("so it goes " * 30) > 2.4
    assert compression_ratio("The train to London leaves at ten in the morning.") < 2.4
