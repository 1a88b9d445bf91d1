"""How right a text is: word and character errors, loops, and the starts of segments."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import jiwer
from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

#: Written without spaces, or with spaces that nobody agrees on: their errors are counted in characters.
CHARACTER_LANGUAGES = frozenset({"zh", "ja", "ko", "th"})
#: So many times the same words in a row are a loop of the decoder; of so many words at most.
LOOP_REPEATS = 4
LOOP_MOST_TOKENS = 32
#: How far a segment's start may be from where the sentence really begins.
START_TOLERANCE_S = 0.5

_BRACKETS = re.compile(r"[\[\](){}<>]")


@dataclass(frozen=True, slots=True)
class Score:
    """Edits (substituted, deleted and inserted units) against the units of the reference. Scores add up."""

    edits: int = 0
    units: int = 0

    def __add__(self, other: Score) -> Score:
        return Score(self.edits + other.edits, self.units + other.units)

    @property
    def rate(self) -> float | None:
        """The corpus error rate, which may be over 1; None without a reference."""
        return self.edits / self.units if self.units else None


def total(scores: Sequence[Score]) -> Score:
    """The score of a corpus: the sum of all edits over the sum of all units."""
    return sum(scores, Score())


def unit(language: str | None) -> str:
    """``WER`` or ``CER``, by language code."""
    return "CER" if language in CHARACTER_LANGUAGES else "WER"


def score(reference: str, hypothesis: str, language: str | None, *, raw: bool = False) -> Score:
    """Edits between two texts after Whisper's normalisation of both; ``raw``: between the texts as they stand."""
    if raw:
        said, meant = " ".join(hypothesis.split()), " ".join(reference.split())
    else:
        said, meant = normalise(hypothesis, language), normalise(reference, language)
    if language in CHARACTER_LANGUAGES:
        found: jiwer.CharacterOutput | jiwer.WordOutput
        found = jiwer.process_characters(meant.replace(" ", ""), said.replace(" ", ""))
    else:
        found = jiwer.process_words(meant, said)
    edits = found.substitutions + found.deletions + found.insertions
    return Score(edits, found.hits + found.substitutions + found.deletions)


def normalise(text: str, language: str | None) -> str:
    """``text`` as the Whisper paper scores it (Radford et al. 2022, appendix C), single-spaced.

    Whisper's normaliser deletes what stands in brackets, spoken or not: here only the brackets go. The list of British
    and American spellings lies in each model's repository on the hub, not in transformers: without it both spellings
    count as different words, for every system alike.
    """
    return " ".join(_normaliser(language == "en")(_BRACKETS.sub(" ", text)).split())


@cache
def _normaliser(english: bool) -> Callable[[str], str]:
    normaliser: Callable[[str], str] = EnglishTextNormalizer({}) if english else BasicTextNormalizer()  # type: ignore[no-untyped-call]
    return normaliser


def loop(text: str, language: str | None) -> str | None:
    """The first word or phrase that stands in ``text`` four or more times in a row; None if there is none.

    Case and punctuation do not count. Of languages without spaces, at least two characters must repeat.
    """
    plain = "".join(" " if unicodedata.category(c)[0] in "PS" else c for c in text.lower())
    by_character = language in CHARACTER_LANGUAGES
    tokens = list("".join(plain.split())) if by_character else plain.split()
    for size in range(2 if by_character else 1, min(LOOP_MOST_TOKENS, len(tokens) // LOOP_REPEATS) + 1):
        same = 0  # tokens in a row that equal the one `size` before
        for place in range(size, len(tokens)):
            same = same + 1 if tokens[place] == tokens[place - size] else 0
            if same == size * (LOOP_REPEATS - 1):
                return ("" if by_character else " ").join(tokens[place - size + 1 : place + 1])
    return None


def invented_loop(text: str, reference: str | None, language: str | None) -> str | None:
    """The `loop` of a text, unless somebody really said it so."""
    return None if reference and loop(reference, language) else loop(text, language)


def starts_found(expected_s: Sequence[float], found_s: Sequence[float]) -> int:
    """How many of the expected starts (seconds) have a found start within the tolerance."""
    return sum(any(abs(start - other) <= START_TOLERANCE_S for other in found_s) for start in expected_s)
