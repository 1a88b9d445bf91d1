"""Is a window's text to be trusted? The gates of Whisper's fallback, and which of several tries is the least bad.

Source: openai/whisper `transcribe.py` (decode_with_fallback) with its published thresholds. One change of order, as
there the silence rule can cancel a retry that the repetition rule asked for: repetition is tested first. And what may
be a list is the answer once two tries hear it: the first that zlib cannot shorten may only be one that leaves some out.
"""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from workers.decoding import compression_ratio as ratio_of
from workers.interface import WindowResult
from workers.languages import UNSPACED_LETTERS
from workers.settings import Settings

#: The same words so many times in a row look like a loop, whatever zlib makes of them: few words, or whole sentences.
#: They may well have been said ("no, no, no, no", 对对对对, a chorus).
LOOPS = ((8, 4), (32, 3))
#: Text that zlib shortens so much is a loop. Between the threshold and this it may well be a list ("press 1 to ...,
#: press 2 to ..."), most of all in scripts of two bytes a letter.
LOOP_COMPRESSION = 4.0
#: Bytes of text (UTF-8) to a second of speech: fewer leave speech out. Slow speech has twice as many in English, and as
#: many in Chinese, whose letters are three bytes and words of their own.
SPARSE_BYTES_PER_SECOND = 5.0
#: What people say again and again they say faster than this; letters of scripts without spaces have three bytes.
AGAIN_BYTES_PER_SECOND, AGAIN_UNSPACED_BYTES_PER_SECOND = 7.0, 10.0
#: A list is kept when every other try is so much less likely, by mean log probability.
MUCH_LESS_LIKELY = 0.5
#: Share of equal words, of all and of those that come once, from which two tries heard the same list, and how many
#: words fewer one may have: with more a line is left out, or said too often.
SAME_LIST, FEWER_WORDS = 0.8, 2
#: A window with less speech than this may well have no words in it.
CLEAR_SPEECH_SECONDS = 0.6
#: So much speech without words is said to be missing.
MISSED_SECONDS = 3.0

#: One letter of a script without spaces, or a word. The vowel signs of the scripts of India are no `\w` to Python.
_UNSPACED = re.compile(rf"[{UNSPACED_LETTERS}]")
_WORDS = re.compile(rf"[{UNSPACED_LETTERS}]|(?:(?![{UNSPACED_LETTERS}])[\w\u0900-\u0963\u0966-\u0dff])+")


class Verdict(Enum):
    """What the gates say of one try, from best to worst."""

    GOOD = 0
    SILENCE = 1
    LOW_CONFIDENCE = 2
    #: Shortens like a loop, but is none, no sentence in it follows itself, and the model is sure of it.
    LIST = 3
    REPETITIVE = 4
    #: A loop behind a text that is none, which has an end: what comes after it is heard on from there.
    LOOP_BEHIND = 5
    EMPTY = 6
    REPETITION = 7


#: What came of a window so far, in the order of its tries.
Tries = Sequence[tuple[WindowResult, Verdict]]


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

    def repeats(self, text: str, compression_ratio: float) -> bool:
        """Whether a text is, or only looks like, a loop."""
        return compression_ratio > self.compression_ratio or loops(text)

    def judge(self, result: WindowResult, speech_seconds: float) -> Verdict:
        """The verdict on one try over a window with so much speech in it."""
        if "repetition" in result.flags or result.compression_ratio > LOOP_COMPRESSION:
            # What the model ended itself is taken as it is, its loop too (`workers.seek`).
            behind = result.whole[0] if result.whole and not result.finished else ""
            return Verdict.LOOP_BEHIND if behind and not self.repeats(behind, ratio_of(behind)) else Verdict.REPETITION
        if self.repeats(result.text, result.compression_ratio):
            # Instead of what is said, or as it is said: "thank you" four times fills no ten seconds.
            instead = result.no_speech_prob > self.no_speech or is_slow(result.text, speech_seconds)
            if loops(result.text):
                return Verdict.REPETITION if instead else Verdict.REPETITIVE
            sure = result.finished and result.avg_logprob >= self.logprob
            return Verdict.LIST if sure and not instead and not _said_twice(result.text) else Verdict.REPETITIVE
        if not result.text:
            silent = speech_seconds < CLEAR_SPEECH_SECONDS or result.no_speech_prob > self.no_speech
            return Verdict.SILENCE if silent else Verdict.EMPTY
        if not result.avg_logprob >= self.logprob:  # no number is not good either
            return Verdict.SILENCE if result.no_speech_prob > self.no_speech else Verdict.LOW_CONFIDENCE
        return Verdict.GOOD


def words(text: str) -> list[str]:
    """The words of a text in lower case; in a script without spaces each letter counts as one."""
    return _WORDS.findall(text.lower())


def loops(text: str) -> bool:
    """Whether the text says up to 8 words four times in a row, or up to 32 three times."""
    said = words(text)
    return any(
        _repeats(said, size, times)
        for shortest, (longest, times) in zip((1, LOOPS[0][0] + 1), LOOPS, strict=True)
        for size in range(shortest, longest + 1)
    )


def _said_twice(text: str) -> bool:
    """Whether more words than a line of a loop has follow themselves: a sentence or the whole text, heard twice."""
    said = words(text)
    return any(_repeats(said, size, 2) for size in range(LOOPS[0][0] + 1, len(said) // 2 + 1))


def _repeats(said: Sequence[str], size: int, times: int) -> bool:
    run = 0
    for at in range(size, len(said)):
        run = run + 1 if said[at] == said[at - size] else 0
        if run >= size * (times - 1):
            return True
    return False


def sparse(text: str, speech_seconds: float) -> bool:
    """Whether a text is too short to be all that is said in so much speech."""
    return len(text.encode("utf-8")) < SPARSE_BYTES_PER_SECOND * speech_seconds


def is_slow(text: str, speech_seconds: float) -> bool:
    """Whether a text that repeats itself is too short for the speech: of most loops a line comes every few seconds."""
    unspaced = len(_UNSPACED.findall(text)) > len(text) / 2
    least = AGAIN_UNSPACED_BYTES_PER_SECOND if unspaced else AGAIN_BYTES_PER_SECOND
    return len(text.encode("utf-8")) < least * speech_seconds


def settled(tries: Tries) -> tuple[WindowResult, Verdict] | None:
    """The answer, if the last try makes any further one needless; None if not.

    It does if it is good or silence, or the same list as tries before it: the surest of these is the answer. Not if it
    is much less likely than one that repeats itself.
    """
    last, verdict = tries[-1]
    if _outdone(last, verdict, tries):
        return None
    if verdict is Verdict.LIST:
        alike = [one for one in tries[:-1] if one[1] is Verdict.LIST and _same(one[0], last)]
        return max([*alike, tries[-1]], key=lambda one: one[0].avg_logprob) if alike else None
    return tries[-1] if verdict in (Verdict.GOOD, Verdict.SILENCE) else None


def least_bad(tries: Tries) -> tuple[WindowResult, Verdict]:
    """The best verdict, and among equals the one that the model itself is surest of.

    Sampling at a high temperature breaks up every list in the end, into nonsense: such a try does not count as good.
    """

    def badness(one: tuple[WindowResult, Verdict]) -> tuple[int, float]:
        result, verdict = one
        rank = Verdict.EMPTY if _outdone(result, verdict, tries) else verdict
        return rank.value, -result.avg_logprob

    return min(tries, key=badness)


def _outdone(result: WindowResult, verdict: Verdict, tries: Tries) -> bool:
    """Whether one of the tries is a list that the model was much surer of, or before a text that is none, a loop."""
    if verdict not in (Verdict.GOOD, Verdict.SILENCE, Verdict.LOW_CONFIDENCE, Verdict.LIST):
        return False
    kinds = [Verdict.LIST, Verdict.REPETITIVE]
    if verdict is Verdict.LOW_CONFIDENCE:
        kinds.append(Verdict.LOOP_BEHIND)
    surest = max((one.avg_logprob for one, other in tries if other in kinds), default=-math.inf)
    return result.avg_logprob < surest - MUCH_LESS_LIKELY


def _same(one: WindowResult, other: WindowResult) -> bool:
    """Whether two tries heard the same list. The words of its pattern are not enough: they are in every line."""
    if one.temperature == other.temperature:  # and so the seed: it proves nothing
        return False
    said = words(one.text), words(other.text)
    fewer, more = sorted(map(len, said))
    rare = map(_once, said)
    return more - fewer <= FEWER_WORDS and min(_likeness(*said), _likeness(*rare)) >= SAME_LIST


def _once(said: Sequence[str]) -> list[str]:
    """The words that come once: what a list's lines do not share."""
    count = Counter(said)
    return [word for word in said if count[word] == 1]


def _likeness(said: Sequence[str], other: Sequence[str]) -> float:
    return difflib.SequenceMatcher(None, said, other, autojunk=False).ratio()
