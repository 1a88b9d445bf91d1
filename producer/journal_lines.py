"""A line of a journal: the answer of a row, as a worker sent it, checked as far as the merge relies on it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from producer.columns import is_failure, is_split, parts_of

#: How this project's workers begin an answer.
_BEGINNING = re.compile(rb'\{"row": ?(0|[1-9][0-9]{0,17}), ?"items": ?\[\{')

# A recording of more than 30 years is a mistake of its worker.
_LONGEST_SECONDS = 1e9


@dataclass(frozen=True, slots=True)
class Figures:
    """What an answer adds to the figures of its job. ``failed``: all of it; ``reasons``: of what failed, one each."""

    row: int
    failed: bool
    reasons: tuple[str, ...]
    reused: bool
    audio_seconds: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What of a `RowResult` is looked at here."""

    row: int
    items: list[dict[str, Any]]
    fields: dict[str, Any]

    @property
    def reused(self) -> bool:
        """Whether it was taken from an earlier step instead of being sent."""
        return self.fields.get("reused") is True

    @property
    def audio_seconds(self) -> float:
        """Length of its transcribed recordings; of split channels it counts once."""
        return sum(max(map(_duration_s, parts_of(item))) for item in self.items)

    def figures(self) -> Figures:
        """A few bytes of an answer that has a megabyte of segments."""
        parts = [part for item in self.items for part in parts_of(item)]
        reasons = tuple(part["type"] for part in parts if is_failure(part))
        return Figures(self.row, len(reasons) == len(parts), reasons, self.reused, self.audio_seconds)

    def as_dict(self) -> dict[str, Any]:
        """The whole of it, unknown fields too."""
        return self.fields


def read_answer(raw: bytes, rows: int) -> Answer:
    """An answer, checked as far as the merge relies on it. Raises ValueError that says what is wrong."""
    try:
        fields = json.loads(raw.decode("utf-8"))
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(fields, dict):
        raise ValueError("not an object")
    row, items = fields.get("row"), fields.get("items")
    if type(row) is not int or not 0 <= row < rows:
        raise ValueError(f"row {str(row)[:40]} is not one of the job's {rows}")
    if not isinstance(items, list) or not items or not all(_is_item(item) for item in items):
        raise ValueError(f"row {row}: items are no transcripts or failures")
    return Answer(row, items, fields)


def row_of(line: bytes, rows: int) -> int:
    """The row of an answer, at a tenth of the cost of reading it where it begins as this project's workers write it.

    Raises ValueError like `read_answer`.
    """
    found = _BEGINNING.match(line)
    plain = found is not None and line.endswith(b"}\n") and line.count(b'"row"') == 1 and b"\0" not in line
    row = int(found[1]) if found is not None and plain else rows
    return row if row < rows else read_answer(line, rows).row


def _is_item(item: Any) -> bool:
    if isinstance(item, dict) and is_split(item):
        channels = item["channels"]
        return isinstance(channels, list) and bool(channels) and all(map(_is_part, channels))
    return _is_part(item)


def _is_part(item: Any) -> bool:
    if not isinstance(item, dict) or is_split(item):
        return False
    if is_failure(item):
        return isinstance(item.get("type"), str) and isinstance(item.get("message"), str)
    segments = item.get("segments") or []
    return isinstance(item["text"], str) and isinstance(segments, list) and all(map(_is_segment, segments))


def _is_segment(segment: Any) -> bool:
    return isinstance(segment, dict) and segment.keys() >= {"start", "end", "text"}


def _duration_s(item: dict[str, Any]) -> float:
    duration = item.get("duration")
    # Compared before it is converted: a foreign worker's figure may be NaN or an integer that no float holds.
    return float(duration) if isinstance(duration, int | float) and 0 < duration < _LONGEST_SECONDS else 0.0
