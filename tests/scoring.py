"""How close two texts are, after the usual normalisation (lower case, no punctuation)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import jiwer


def words(text: str) -> list[str]:
    return re.sub(r"[^\w\s]", "", text.lower()).split()


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Corpus WER: all edits over all reference words."""
    return float(jiwer.wer([" ".join(words(text)) for text in references], [" ".join(words(t)) for t in hypotheses]))


def overlap(reference: str, hypothesis: str) -> float:
    """Unigram F1: 1 for the same words in any order, 0 for none in common."""
    wanted, said = Counter(words(reference)), Counter(words(hypothesis))
    common = sum((wanted & said).values())
    return 2 * common / (sum(wanted.values()) + sum(said.values())) if common else 0.0


def mean_overlap(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    return sum(map(overlap, references, hypotheses)) / len(references)
