"""The windows' answers put back together: one text, one list of segments. Pure logic."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import chain, groupby, pairwise
from typing import Protocol

from workers.languages import LANGUAGES_WITHOUT_SPACES, UNSPACED_LETTERS
from workers.messages import Segment

_UNSPACED = re.compile(f"[{UNSPACED_LETTERS}]")
#: Those letters, and the punctuation that stands between them.
_NO_BLANK_BESIDE = re.compile(rf"[{UNSPACED_LETTERS}\u3000-\u303f\uff00-\uffef]")


class Said(Protocol):
    """The answer to a window, or the transcript of a span."""

    @property
    def text(self) -> str:
        """What was said."""

    @property
    def language(self) -> str | None:
        """Whisper's code of the language spoken."""


def joined_text(results: Sequence[Said]) -> str:
    """The windows' texts as one: each may have its own language, and a translation has spaces whatever was spoken."""

    def unspaced(result: Said) -> bool:
        return result.language in LANGUAGES_WITHOUT_SPACES and bool(_UNSPACED.search(result.text))

    runs = [list(run) for _, run in groupby((result for result in results if result.text), unspaced)]
    texts = [join_texts([one.text for one in run], run[0].language if unspaced(run[0]) else None) for run in runs]
    return join_texts(texts, None)


def join_texts(texts: Sequence[str], language: str | None) -> str:
    """The windows' texts as one, white space as single blanks; none between windows where the script has none.

    Latin words and figures have one between them in any language: "12" and "30" are not "1230".
    """
    parts = [text for text in (" ".join(text.split()) for text in texts) if text]
    if language not in LANGUAGES_WITHOUT_SPACES:
        return " ".join(parts)
    blanks = ["" if _NO_BLANK_BESIDE.search(left[-1] + right[0]) else " " for left, right in pairwise(parts)]
    return "".join(chain.from_iterable(zip(parts, [*blanks, ""], strict=True))) if parts else ""


def join_segments(parts: Sequence[tuple[float, float, Sequence[tuple[float, float, str]]]]) -> list[Segment]:
    """One list of segments from each window's ``(start_s, end_s, [(start, end, text), ...])``.

    A window's segment times count from its start. The result's count from the recording's, end within their window,
    never go back and are rounded to 0.01 s; segments without text are left out.
    """
    joined: list[Segment] = []
    now = 0.0
    for window_start, window_end, segments in parts:
        latest = math.floor(round(window_end * 100, 6)) / 100
        for start, end, text in segments:
            words = " ".join(text.split())
            if not words:
                continue
            begin = max(now, min(window_start + max(start, 0.0), window_end))
            now = max(begin, min(window_start + end, window_end))
            joined.append(Segment(start=min(round(begin, 2), latest), end=min(round(now, 2), latest), text=words))
    return joined
