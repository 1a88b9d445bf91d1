"""Is a window's text to be trusted? The gates of Whisper's fallback, and which of several tries is the least bad.

Source: openai/whisper `transcribe.py` (decode_with_fallback) with its published thresholds. One change of order, as
there the silence rule can cancel a retry that the repetition rule asked for: repetition is tested first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from workers.interface import WindowResult
from workers.languages import UNSPACED_LETTERS
from workers.settings import Settings

#: The same words so many times in a row are a loop, whatever zlib makes of them.
LOOP_REPEATS = 4
LOOP_WORDS = 8
#: A window with less speech than this may well have no words in it.
CLEAR_SPEECH_SECONDS = 0.6

#: One letter of a script without spaces, or a word. The vowel signs of the scripts of India are no `\w` to Python.
_WORDS = re.compile(rf"[{UNSPACED_LETTERS}]|(?:(?![{UNSPACED_LETTERS}])[\w\u0900-\u0963\u0966-\u0dff])+")


class Verdict(Enum):
    """What the gates say of one try, from best to worst."""

    GOOD = 0
    SILENCE = 1
    LOW_CONFIDENCE = 2
    EMPTY = 3
    REPETITION = 4


@dataclass(frozen=True, slots=True)
class Gates:
    """The thresholds. ``temperatures``: those of the tries, in order."""

    compression_ratio: float = 2.4
    logprob: float = -1.0
    no_speech: float = 0.6
    temperatures: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)

    @classmethod
    def from_settings(cls, settings: Settings) -> Gates:
        """The thresholds that the settings name."""
        return cls(
            compression_ratio=settings.compression_ratio_threshold,
            logprob=settings.logprob_threshold,
            no_speech=settings.no_speech_threshold,
            temperatures=tuple(settings.temperatures),
        )

    def judge(self, result: WindowResult, speech_seconds: float) -> Verdict:
        """The verdict on one try over a window with so much speech in it."""
        if "repetition" in result.flags or result.compression_ratio > self.compression_ratio or loops(result.text):
            return Verdict.REPETITION
        if not result.text:
            return Verdict.EMPTY if speech_seconds >= CLEAR_SPEECH_SECONDS else Verdict.SILENCE
        if result.avg_logprob < self.logprob:
            return Verdict.SILENCE if result.no_speech_prob > self.no_speech else Verdict.LOW_CONFIDENCE
        return Verdict.GOOD


def words(text: str) -> list[str]:
    """The words of a text in lower case; in a script without spaces each letter counts as one."""
    return _WORDS.findall(text.lower())


def loops(text: str) -> bool:
    """Whether the text says the same words (up to 8 of them) four times in a row."""
    said = words(text)
    for size in range(1, LOOP_WORDS + 1):
        run = 0
        for at in range(size, len(said)):
            run = run + 1 if said[at] == said[at - size] else 0
            if run >= size * (LOOP_REPEATS - 1):
                return True
    return False


def least_bad(tries: Sequence[tuple[WindowResult, Verdict]]) -> tuple[WindowResult, Verdict]:
    """The best verdict, and among equals the one that the model itself is surest of."""
    return min(tries, key=lambda one: (one[1].value, -one[0].avg_logprob))
