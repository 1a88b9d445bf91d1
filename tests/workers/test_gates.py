"""The gates: which verdict a window's text gets, what a loop is, and which try is the least bad."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripted_engine import heard
from workers.decoding import compression_ratio
from workers.gates import (
    AGAIN_BYTES_PER_SECOND,
    CLEAR_SPEECH_SECONDS,
    LOOP_COMPRESSION,
    LOOPS,
    MUCH_LESS_LIKELY,
    Gates,
    Verdict,
    least_bad,
    loops,
    settled,
    words,
)
from workers.interface import WindowResult
from workers.settings import load_settings

(LOOP_WORDS, LOOP_REPEATS), (SENTENCE_WORDS, SENTENCE_REPEATS) = LOOPS
LOOP = "so it goes " * LOOP_REPEATS
MENU = "Press one to hear your messages. Press two to hear your greeting. Press three to hear your name."
A_BIT = 1e-9

# Verdicts. The thresholds are those of openai/whisper: a value on one is still good.


@pytest.mark.parametrize(
    ("figures", "verdict"),
    [
        ({}, Verdict.GOOD),
        ({"compression_ratio": 2.4, "avg_logprob": -1.0}, Verdict.GOOD),
        ({"no_speech_prob": 1.0, "avg_logprob": -1.0}, Verdict.GOOD),  # the text is likely, so somebody spoke
        ({"compression_ratio": 2.4 + A_BIT}, Verdict.REPETITIVE),
        ({"compression_ratio": LOOP_COMPRESSION}, Verdict.REPETITIVE),
        ({"text": MENU, "compression_ratio": 2.4 + A_BIT, "avg_logprob": -1.0, "no_speech_prob": 0.6}, Verdict.LIST),
        ({"text": MENU, "compression_ratio": LOOP_COMPRESSION}, Verdict.LIST),
        ({"text": MENU, "compression_ratio": LOOP_COMPRESSION + A_BIT}, Verdict.REPETITION),
        ({"text": MENU, "compression_ratio": 2.5, "flags": ("repetition",)}, Verdict.REPETITION),
        ({"text": MENU, "compression_ratio": 2.5, "avg_logprob": -1.0 - A_BIT}, Verdict.REPETITIVE),
        ({"text": MENU, "compression_ratio": 2.5, "avg_logprob": math.nan}, Verdict.REPETITIVE),
        ({"text": MENU, "compression_ratio": 2.5, "no_speech_prob": 0.6 + A_BIT}, Verdict.REPETITIVE),
        ({"compression_ratio": LOOP_COMPRESSION + A_BIT}, Verdict.REPETITION),
        ({"flags": ("repetition",)}, Verdict.REPETITION),
        ({"flags": ("repetition",), "whole": ("", ()), "finished": False}, Verdict.REPETITION),
        ({"flags": ("repetition",), "whole": (LOOP, ()), "finished": False}, Verdict.REPETITION),
        ({"flags": ("repetition",), "whole": ("and a text before it", ()), "finished": False}, Verdict.LOOP_BEHIND),
        ({"compression_ratio": 5.0, "whole": ("and a text before it", ())}, Verdict.REPETITION),
        ({"text": "thank you " * 4}, Verdict.REPETITION),  # nobody takes ten seconds for it
        ({"text": f"{LOOP} and what else is there to say of it"}, Verdict.REPETITIVE),
        ({"avg_logprob": -1.0 - A_BIT}, Verdict.LOW_CONFIDENCE),
        ({"avg_logprob": -1.0 - A_BIT, "no_speech_prob": 0.6}, Verdict.LOW_CONFIDENCE),
        ({"avg_logprob": -1.0 - A_BIT, "no_speech_prob": 0.6 + A_BIT}, Verdict.SILENCE),
        ({"avg_logprob": math.nan}, Verdict.LOW_CONFIDENCE),
        ({"avg_logprob": math.nan, "no_speech_prob": math.nan}, Verdict.LOW_CONFIDENCE),
        ({"text": ""}, Verdict.EMPTY),
        ({"text": "", "no_speech_prob": 0.6}, Verdict.EMPTY),
        ({"text": "", "no_speech_prob": 0.6 + A_BIT}, Verdict.SILENCE),  # nobody is to invent a text
    ],
)
def test_verdict_on_a_window_with_clear_speech(figures: dict[str, object], verdict: Verdict) -> None:
    assert Gates().judge(heard(**figures), 10.0) is verdict  # type: ignore[arg-type]


@pytest.mark.parametrize("loop", [{"compression_ratio": 4.1}, {"flags": ("repetition",)}, {"text": LOOP}])
def test_repetition_is_tested_before_silence(loop: dict[str, object]) -> None:
    """The silence rule would end the tries, and a loop over speech would come out as silence."""
    result = heard(**{"avg_logprob": -3.0, "no_speech_prob": 0.99, **loop})  # type: ignore[arg-type]

    assert Gates().judge(result, 30.0) is Verdict.REPETITION


#: Words that people say again and again, where nothing else is wrong with the text.
SAID_AGAIN = [
    ("对对对对，我明天过去。", 2.5),
    ("好好好好", 1.0),
    ("はいはいはいはい", 1.2),
    ("No, no, no, no.", 2.0),
    ("Okay, see you then. Bye, bye, bye, bye!", 5.0),
    ("We are the people of the sea and the land and we will sing. " * 3, 15.0),
]


@pytest.mark.parametrize(("text", "speech_s"), SAID_AGAIN)
def test_what_people_say_again_and_again_is_kept_against_what_is_much_less_likely(text: str, speech_s: float) -> None:
    # Given a first try of words that only look like a loop, of which the model is sure
    said = heard(text, avg_logprob=-0.15, compression_ratio=compression_ratio(text), no_speech_prob=0.5)
    tries = [(said, Gates().judge(said, speech_s))]
    assert tries[0][1] is Verdict.REPETITIVE
    # When sampling at high temperatures makes something else of it
    for hot in (
        heard("that is fine", avg_logprob=-0.98, temperature=1.0),
        heard("that is", avg_logprob=-2.5, temperature=1.0),
        heard("that", avg_logprob=-2.5, no_speech_prob=0.9, temperature=1.0),
        heard("", avg_logprob=-0.9, temperature=1.0),
    ):
        tries.append((hot, Gates().judge(hot, speech_s)))
        # Then none of it is the answer
        assert settled(tries) is None
    assert {verdict for _, verdict in tries[1:]} == {
        Verdict.GOOD,
        Verdict.LOW_CONFIDENCE,
        Verdict.SILENCE,
        Verdict.EMPTY,
    }
    assert least_bad(tries)[0] == said


@pytest.mark.parametrize(
    ("text", "speech_s"),
    [
        *(("Thank you. " * times, 20.0) for times in range(4, 20)),
        *(("Thank you. " * times, 2.0 * times) for times in range(4, 15)),
        *(("我不知道。" * times, 20.0) for times in range(4, 9)),
        *(("ご視聴ありがとうございました。" * times, 26.0) for times in range(3, 6)),
        ("Bye. " * 20, 3.0),
    ],
)
def test_a_loop_that_the_model_is_sure_of_loses_to_what_is_said(text: str, speech_s: float) -> None:
    loop = heard(text, avg_logprob=-0.02, compression_ratio=compression_ratio(text))
    good = heard("and so we went on to the next house", avg_logprob=-0.9, temperature=0.6)
    tries = [(one, Gates().judge(one, speech_s)) for one in (loop, good)]

    assert settled(tries) == tries[1]
    assert least_bad(tries)[0] == good


def test_a_loop_over_what_the_model_takes_for_silence_does_not_outdo_silence() -> None:
    loop = heard("Thank you. " * 4, avg_logprob=-0.4, no_speech_prob=0.9)
    silence = heard("so", avg_logprob=-1.1, no_speech_prob=0.9, temperature=0.2)
    tries = [(one, Gates().judge(one, 5.0)) for one in (loop, silence)]

    assert settled(tries) == tries[1]
    assert least_bad(tries)[1] is Verdict.SILENCE


def test_loop_of_timestamps_has_no_text_and_is_a_repetition() -> None:
    assert Gates().judge(heard("", flags=("repetition",)), 0.0) is Verdict.REPETITION


def test_nothing_is_an_answer_only_where_there_is_little_speech() -> None:
    assert Gates().judge(heard(""), CLEAR_SPEECH_SECONDS) is Verdict.EMPTY
    assert Gates().judge(heard(""), CLEAR_SPEECH_SECONDS - A_BIT) is Verdict.SILENCE


def test_text_over_little_speech_is_judged_like_any_other() -> None:
    assert Gates().judge(heard(), 0.0) is Verdict.GOOD
    assert Gates().judge(heard(avg_logprob=-2.0), 0.0) is Verdict.LOW_CONFIDENCE


def test_thresholds_are_those_of_the_settings() -> None:
    chosen = load_settings(
        compression_ratio_threshold=1.5, logprob_threshold=-0.5, no_speech_threshold=0.3, temperatures=[0, 0.5]
    )
    gates = Gates.from_settings(chosen)

    assert gates == Gates(compression_ratio=1.5, logprob=-0.5, no_speech=0.3, temperatures=(0.0, 0.5))
    assert gates.judge(heard(compression_ratio=1.6), 10) is Verdict.REPETITIVE
    assert gates.judge(heard(avg_logprob=-0.6, no_speech_prob=0.2), 10) is Verdict.LOW_CONFIDENCE
    assert gates.judge(heard(avg_logprob=-0.6, no_speech_prob=0.4), 10) is Verdict.SILENCE


# Loops.

some_words = st.lists(st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=8), max_size=12)
phrases = st.lists(st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=8), min_size=1, max_size=LOOP_WORDS)
separators = st.sampled_from([" ", ", ", ". ", "\n", " – "])
#: Han, kana, Thai and Myanmar: no spaces.
letters = st.one_of(
    *(st.characters(min_codepoint=first, max_codepoint=last) for first, last in [(0x4E00, 0x9FFF), (0x3041, 0x3096)]),
    st.sampled_from("กขคงจฉชซญດຕທကခဂ々ー"),
)


@given(some_words, phrases, st.integers(LOOP_REPEATS, 10), some_words, separators)
def test_phrase_said_four_times_in_a_row_is_a_loop_wherever_it_stands(
    before: list[str], phrase: list[str], times: int, after: list[str], separator: str
) -> None:
    assert loops(separator.join([*before, *phrase * times, *after]))


@given(some_words, st.lists(letters, min_size=1, max_size=LOOP_WORDS), st.integers(LOOP_REPEATS, 10), some_words)
def test_loop_is_found_in_scripts_without_spaces(
    before: list[str], phrase: list[str], times: int, after: list[str]
) -> None:
    assert loops("".join([*before, *phrase * times, *after]))


@given(st.integers(LOOP_WORDS + 1, SENTENCE_WORDS), st.integers(1, 5))
def test_sentence_said_three_times_in_a_row_is_a_loop_and_twice_is_none(size: int, times: int) -> None:
    sentence = [f"word{number}" for number in range(size)]
    assert loops(" ".join(["so", *sentence * times, "then"])) == (times >= SENTENCE_REPEATS)


@given(st.lists(st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=8), unique=True, max_size=60), separators)
def test_words_that_differ_are_no_loop(distinct: list[str], separator: str) -> None:
    assert not loops(separator.join(distinct))


@given(st.lists(letters, unique=True, max_size=60))
def test_letters_that_differ_are_no_loop(distinct: list[str]) -> None:
    assert not loops("".join(distinct))


@given(
    st.lists(st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=8), unique=True, min_size=1, max_size=30),
    st.integers(1, LOOP_WORDS),
    st.integers(1, LOOP_REPEATS - 1),
)
def test_three_times_are_still_no_loop(distinct: list[str], size: int, times: int) -> None:
    phrase, rest = distinct[:size], distinct[size:]
    half = len(rest) // 2

    assert not loops(" ".join([*rest[:half], *phrase * times, *rest[half:]]))


@pytest.mark.parametrize(
    "text",
    [
        "Thank you. thank you, THANK YOU! Thank you.",
        "第1回第1回第1回第1回",
        "人々人々人々人々",
        "AIの話AIの話AIの話AIの話",
        "감사합니다 감사합니다 감사합니다 감사합니다",
        "हिन्दी में बोलो हिन्दी में बोलो हिन्दी में बोलो हिन्दी में बोलो",
        "ขอบคุณขอบคุณขอบคุณขอบคุณ",
        "один два один два один два один два",
    ],
)
def test_loops_as_whisper_makes_them(text: str) -> None:
    assert loops(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "No, no, no!",
        "It was the best of times, it was the worst of times, it was the age of wisdom.",
        "今日は天気がいいから、公園を散歩しましょう。",
        "人人为我，我为人人",
        "We went there again and again, and again they were not in.",
    ],
)
def test_speech_is_no_loop(text: str) -> None:
    assert not loops(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It's 10 o'clock!", ["it", "s", "10", "o", "clock"]),
        ("第1回AI会議", ["第", "1", "回", "ai", "会", "議"]),
        ("नमस्ते, दुनिया।", ["नमस्ते", "दुनिया"]),
        ("Straße  ÉTÉ", ["straße", "été"]),
        ("… – ?!", []),
    ],
)
def test_words_of_a_text(text: str, expected: list[str]) -> None:
    assert words(text) == expected


# The least bad of several tries.


def test_least_bad_is_by_verdict_first_and_then_by_the_models_own_confidence() -> None:
    sure_loop = (heard("loop", avg_logprob=-0.1), Verdict.REPETITION)
    empty = (heard("", avg_logprob=-0.1), Verdict.EMPTY)
    unsure = (heard("a", avg_logprob=-1.9), Verdict.LOW_CONFIDENCE)
    surer = (heard("b", avg_logprob=-1.2), Verdict.LOW_CONFIDENCE)

    assert least_bad([sure_loop, empty, unsure, surer]) == surer
    assert least_bad([sure_loop, empty, unsure]) == unsure
    assert least_bad([sure_loop, empty]) == empty
    assert least_bad([sure_loop]) == sure_loop


LIST = (heard("press 1 to ..., press 2 to ...", compression_ratio=2.8, avg_logprob=-0.2), Verdict.LIST)
ITEMS = ("hear your messages", "change the greeting", "record a name", "leave this menu", "call our operator")
WHOLE = "".join(f"Press {number} to {item}. " for number, item in enumerate(ITEMS, 1))


def listed(text: str, avg_logprob: float, temperature: float) -> tuple[WindowResult, Verdict]:
    result = heard(text, compression_ratio=2.5, avg_logprob=avg_logprob, temperature=temperature)
    assert Gates().judge(result, 4.0) is Verdict.LIST
    return result, Verdict.LIST


@pytest.mark.parametrize(
    "again", [WHOLE, WHOLE.replace(".", ","), WHOLE.replace("greeting", "meeting"), WHOLE.replace(" a name", "")]
)
def test_a_list_that_is_heard_twice_is_the_answer_as_the_model_is_surest_of_it(again: str) -> None:
    first, surer = listed(WHOLE, -0.2, 0.0), listed(again, -0.1, 0.4)
    unsure = (heard("press wan tu", avg_logprob=-0.6, temperature=0.2), Verdict.LOW_CONFIDENCE)

    assert settled([first]) is None
    assert settled([first, surer]) == surer
    assert settled([surer, first]) == surer
    assert settled([first, unsure, surer]) == surer


LESS = WHOLE[: WHOLE.index("Press 5")]
OTHERS = "".join(f"Press {number} to {item}. " for number, item in enumerate(("sell", "eat", "buy", "paint", "go"), 1))


@pytest.mark.parametrize(
    "other",
    [
        listed(LESS, -0.1, 0.2),  # leaves the end out
        listed(WHOLE.replace("Press 3 to record a name. ", ""), -0.1, 0.2),  # or a line
        listed(OTHERS, -0.1, 0.2),  # only the pattern of the lines is the same
        listed(WHOLE, -0.1, 0.0),  # the same try again
        (heard(WHOLE, compression_ratio=2.5, avg_logprob=-1.1, temperature=0.2), Verdict.REPETITIVE),
        (heard(WHOLE, compression_ratio=4.1, avg_logprob=-0.1, temperature=0.2), Verdict.REPETITION),
    ],
)
def test_a_list_is_not_heard_twice_by_something_else(other: tuple[WindowResult, Verdict]) -> None:
    assert settled([listed(WHOLE, -0.2, 0.0), other]) is None


@pytest.mark.parametrize("text", [LESS, OTHERS])
def test_what_one_try_alone_heard_is_not_the_answer_because_two_others_agree(text: str) -> None:
    first, alone, again = listed(WHOLE, -0.2, 0.0), listed(text, -0.1, 0.2), listed(WHOLE, -0.3, 0.4)

    assert settled([first, alone, again]) == first


def test_a_list_heard_twice_does_not_outdo_words_said_again_that_are_much_likelier() -> None:
    likelier = (heard(f"{WHOLE} yes, yes, yes, yes", avg_logprob=-0.1), Verdict.REPETITIVE)
    tries = [likelier, listed(WHOLE, -0.7, 0.2), listed(WHOLE, -0.65, 0.4)]

    assert settled(tries) is None
    assert least_bad(tries) == likelier


def test_a_list_that_one_try_heard_gives_way_to_words_that_are_nearly_as_likely() -> None:
    once = listed(WHOLE, -0.95, 0.0)
    unsure = (heard("so it is", avg_logprob=-1.05, temperature=0.2), Verdict.LOW_CONFIDENCE)

    assert least_bad([once, unsure]) == unsure


@pytest.mark.parametrize(
    "again",
    [
        {"finished": False},
        {"text": WHOLE * 2},
        {"text": "My fellow Americans, this day has brought terrible news to our country. " * 2},
    ],
)
def test_what_ran_out_of_tokens_or_was_heard_twice_over_is_no_list(again: dict[str, object]) -> None:
    result = heard(**{"text": WHOLE, "compression_ratio": 2.5, **again})  # type: ignore[arg-type]

    assert Gates().judge(result, 4.0) is Verdict.REPETITIVE


def test_a_slow_list_is_no_list() -> None:
    """A loop's line comes every few seconds."""
    slow_s = len(MENU) / AGAIN_BYTES_PER_SECOND

    assert Gates().judge(heard(MENU, compression_ratio=2.5), slow_s) is Verdict.LIST
    assert Gates().judge(heard(MENU, compression_ratio=2.5), slow_s + A_BIT) is Verdict.REPETITIVE


@pytest.mark.parametrize(("behind", "kept"), [(MUCH_LESS_LIKELY - 0.01, True), (MUCH_LESS_LIKELY + 0.01, False)])
def test_nonsense_that_sampling_made_of_a_list_is_not_taken_for_good(behind: float, kept: bool) -> None:
    hot = (heard("press wan tu", avg_logprob=-0.2 - behind, temperature=1.0), Verdict.GOOD)

    assert (settled([LIST, hot]) == hot) is kept
    assert least_bad([LIST, hot]) == (hot if kept else LIST)


def test_a_loop_is_given_up_for_any_other_text() -> None:
    loop = heard(LOOP, avg_logprob=-0.1, flags=("repetition",))
    loop = (loop, Gates().judge(loop, 4.0))
    other = (heard("so it goes", avg_logprob=-0.9), Verdict.GOOD)

    assert settled([loop, other]) == other
    assert least_bad([loop, other]) == other


def test_silence_ends_the_tries_unless_it_is_much_less_likely_than_a_list() -> None:
    unsure = (heard("mumble", avg_logprob=-2.4), Verdict.LOW_CONFIDENCE)
    silence = (heard("thanks", avg_logprob=-2.0, no_speech_prob=0.9), Verdict.SILENCE)

    assert settled([unsure, silence]) == silence
    assert least_bad([unsure, silence]) == silence
    assert settled([LIST, silence]) is None
    assert least_bad([LIST, silence]) == LIST


def test_of_equals_the_first_try_is_kept() -> None:
    assert least_bad([(heard("cool"), Verdict.EMPTY), (heard("hot"), Verdict.EMPTY)])[0].text == "cool"


def test_verdicts_are_ordered_from_best_to_worst() -> None:
    tries = [(heard(verdict.name), verdict) for verdict in reversed(Verdict)]

    best = []
    while tries:
        best.append(least_bad(tries)[1])
        tries = [one for one in tries if one[1] is not best[-1]]

    assert best == list(Verdict)


def test_a_text_before_a_loop_is_better_than_nonsense_and_than_nothing() -> None:
    """What comes after it is heard on from there: of 20 s that are right nothing would be left."""
    broken = (heard("right, right, right", flags=("repetition",), avg_logprob=-0.2), Verdict.LOOP_BEHIND)
    nonsense = (heard("mumble", avg_logprob=-1.6), Verdict.LOW_CONFIDENCE)
    unsure = (heard("mumble", avg_logprob=-1.1), Verdict.LOW_CONFIDENCE)
    empty = (heard("", avg_logprob=-0.1), Verdict.EMPTY)
    good = (heard("all of it", avg_logprob=-0.9), Verdict.GOOD)
    less_sure = (broken[0], Verdict.LOOP_BEHIND)
    assert least_bad([broken, nonsense, empty]) == broken
    assert least_bad([(heard("so", avg_logprob=-0.8), Verdict.LOOP_BEHIND), unsure]) == unsure
    assert settled([less_sure, good]) == good, "a try that is good is the answer, as ever"
