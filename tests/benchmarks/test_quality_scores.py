from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.scores import Score, invented_loop, loop, normalise, score, starts_found, total, unit

WORDS = st.lists(st.sampled_from(["north", "south", "river", "stone", "door"]), min_size=1, max_size=12)


def test_case_punctuation_contractions_and_numbers_are_no_errors() -> None:
    meant = "Mr. Quilter can't come; he has twenty-one dollars."
    assert score(meant, "mister quilter can not come he has 21 dollars", "en") == Score(0, 8)
    assert score(meant, "mister quilter can not come he has 21 dollars", "en", raw=True).edits > 4


def test_each_edit_counts_one_word_of_the_reference() -> None:
    # One word replaced, one left out, one more at the end.
    assert score("el agua sale del pozo", "el agua entra pozo frío", "es") == Score(3, 5)


def test_text_in_brackets_is_kept_in_both_texts() -> None:
    assert normalise("the forms (of [printed] letters)", "en") == "the forms of printed letters"
    assert score("says (very softly) yes", "says yes", "en") == Score(2, 4)
    assert score("says yes", "says [applause] yes", "en") == Score(1, 2)


@pytest.mark.parametrize("language", ["zh", "ja", "ko", "th"])
def test_languages_without_word_borders_are_scored_in_characters(language: str) -> None:
    assert unit(language) == "CER"
    assert score("今天 天气很好。", "今天天气很糟", language) == Score(1, 6)


def test_accents_count_and_composition_does_not() -> None:
    assert score("año", "an\u0303o", "es") == Score(0, 1)
    assert score("año", "ano", "es") == Score(1, 1)


def test_a_corpus_weighs_words_and_not_clips() -> None:
    long, short = Score(0, 98), Score(2, 2)
    assert total([long, short]).rate == pytest.approx(0.02)
    assert total([]).rate is None


def test_everything_said_over_nothing_is_an_edit() -> None:
    assert score("", "thanks for watching", "en") == Score(3, 0)
    assert score("thanks for watching", "", "en") == Score(3, 3)


@given(WORDS, st.sampled_from(["en", "fr", "zh"]))
def test_a_text_has_no_errors_against_itself(words: list[str], language: str) -> None:
    text = " ".join(words)
    assert score(text, text, language).edits == 0
    assert score(text, text, language, raw=True).edits == 0


@pytest.mark.parametrize(
    ("text", "language", "found"),
    [
        ("So, so. So! SO what", "en", "so"),
        ("and then we go and then we go and then we go and then we go", "en", "and then we go"),
        ("one two one two one two and three", "en", None),
        ("no no no", "en", None),
        ("啊啊啊啊", "zh", None),
        ("啊啊啊啊啊啊啊啊", "zh", "啊啊"),
        ("谢谢观看，谢谢观看。谢谢观看 谢谢观看", "zh", "谢谢观看"),
        ("", "en", None),
    ],
)
def test_four_times_the_same_in_a_row_is_a_loop(text: str, language: str, found: str | None) -> None:
    assert loop(text, language) == found


@given(WORDS, WORDS, st.integers(4, 6))
def test_a_phrase_repeated_four_times_is_found_wherever_it_stands(
    before: list[str], phrase: list[str], times: int
) -> None:
    assert loop(" ".join([*before, *(phrase * times)]), "en") is not None


def test_what_somebody_really_said_is_no_invention() -> None:
    said = "ring ring ring ring, who is there"
    assert invented_loop(said, None, "en") == "ring"
    assert invented_loop(said, "who is there", "en") == "ring"
    assert invented_loop(said, "Ring, ring, ring, ring: who is there?", "en") is None


def test_a_start_is_found_within_half_a_second() -> None:
    assert starts_found([0.0, 10.0, 20.0, 30.0], [0.4, 9.5, 20.6]) == 2
    assert starts_found([1.0], []) == 0
