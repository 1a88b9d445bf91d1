"""The columns that a step adds to its rows: their names, their values from a row's answer, and the way back."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from producer.errors import UsageError
from producer.rows import RECORD_OPTIONS

#: Fields of the details column, and the number of decimals kept (None: as it is).
DETAILS: dict[str, int | None] = {
    "language": None,
    "language_probability": 4,
    "duration": 3,
    "speech_seconds": 3,
    "model": None,
    "avg_logprob": 4,
    "compression_ratio": 4,
    "no_speech_prob": 4,
    "temperature": 4,
    "flags": None,
    "attempts": None,
}
_SECONDS_DECIMALS = 3


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns a step adds. ``output_key`` holds the text; the others are named after it."""

    output_key: str = "transcription"
    timestamps: bool = False
    details: bool = False

    @classmethod
    def of(cls, options: dict[str, Any]) -> Columns:
        """The columns that a job with these options adds."""
        return cls(options["output_key"], options["timestamps"], options["details"])

    def names(self) -> tuple[str, ...]:
        """Every column that this step may add."""
        key = self.output_key
        names = [key]
        if self.timestamps:
            names.append(f"{key}_segments")
        names.append(self.error_column)
        if self.details:
            names.append(f"{key}_details")
        return tuple(names)

    def family(self) -> frozenset[str]:
        """Every column that any step with this output key may have added: what an overwrite removes.

        More than ``names()``: segments of an earlier transcription must not stay beside a new text.
        """
        return frozenset(Columns(self.output_key, timestamps=True, details=True).names())

    def check(self, media_key: str) -> None:
        """Raise UsageError where an added column would take the place of the audio or of a record option."""
        if not self.output_key:
            raise UsageError("--output-key is empty: name the column for the text")
        if media_key in self.family():
            raise UsageError(
                f"--output-key {self.output_key!r} would overwrite the audio column {media_key!r}: choose another"
            )
        if self.output_key in RECORD_OPTIONS:
            raise UsageError(
                f"--output-key {self.output_key!r} is an option of the rows ({', '.join(RECORD_OPTIONS)}): "
                "a later step would read the text as that option; choose another"
            )

    def values(self, items: list[dict[str, Any]], plain: bool) -> dict[str, Any]:
        """The row's new columns. ``items`` are the fields of a `Transcript`, `Failure` or `ChannelTranscripts` each.

        ``plain`` (one recording) gives bare values; otherwise each column is a list with one entry per item. A
        recording whose channels were split has a list of values, one per channel, in the place of its value.
        """
        added = {self.output_key: [_each(item, _text) for item in items]}
        if self.timestamps:
            added[f"{self.output_key}_segments"] = [_each(item, _segments) for item in items]
        if any(is_failure(part) for item in items for part in parts_of(item)):
            added[self.error_column] = [_each(item, _error) for item in items]
        if self.details:
            added[f"{self.output_key}_details"] = [_each(item, _details) for item in items]
        return {name: column[0] for name, column in added.items()} if plain else dict(added)

    def items(self, row: dict[str, Any], plain: bool) -> list[dict[str, Any]]:
        """The way back: items that give a row of a step file, in which nothing failed, the columns that it has."""
        columns = {name: [row[name]] if plain else row[name] for name in self.names() if name != self.error_column}
        return [_item(self, {name: column[at] for name, column in columns.items()}) for at in range(_length(columns))]

    @property
    def error_column(self) -> str:
        """The column that only failed rows have."""
        return f"{self.output_key}_error"

    def may_have_failed(self, line: bytes) -> bool:
        """False for a line of a step file in which nothing failed, without parsing it; True for the others, mostly."""
        return _quoted(self.error_column) in line or _quoted(self.error_column, ascii_only=True) in line

    def errors(self, row: dict[str, Any], plain: bool) -> list[tuple[int, dict[str, str] | None]]:
        """What a row of a step file says of each transcript: its recording's number, and its error if it has one.

        Empty where nothing failed.
        """
        if row.get(self.error_column) is None:
            return []
        column = row[self.error_column]
        recordings = [column] if plain else column
        return [(at, error) for at, value in enumerate(recordings) for error in _listed(value)]


def is_failure(item: dict[str, Any]) -> bool:
    """Whether an item of an answer, or a part of one, is a `Failure`."""
    return "text" not in item and not is_split(item)


def is_split(item: dict[str, Any]) -> bool:
    """Whether an item of an answer is a `ChannelTranscripts`."""
    return "channels" in item and "text" not in item


def parts_of(item: dict[str, Any]) -> list[dict[str, Any]]:
    """The transcripts and failures of an item: itself, or one a channel."""
    return item["channels"] if is_split(item) else [item]


@lru_cache
def _quoted(name: str, *, ascii_only: bool = False) -> bytes:
    """A column's name as it stands in a line: `producer.rows.with_columns` writes it in one of two ways."""
    return json.dumps(name, ensure_ascii=ascii_only).encode("utf-8", "replace")


def _item(columns: Columns, values: dict[str, Any]) -> dict[str, Any]:
    texts = values[columns.output_key]
    if not isinstance(texts, list):
        return _transcript(columns, values)
    channels = [{name: value[at] for name, value in values.items()} for at in range(len(texts))]
    return {"channels": [_transcript(columns, channel) for channel in channels]}


def _transcript(columns: Columns, values: dict[str, Any]) -> dict[str, Any]:
    segments, details = f"{columns.output_key}_segments", f"{columns.output_key}_details"
    item = {**(values.get(details) or {}), "text": values[columns.output_key]}
    return item if segments not in values else {**item, "segments": values[segments]}


def _length(columns: dict[str, list[Any]]) -> int:
    return min(map(len, columns.values()))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _each(item: dict[str, Any], value: Callable[[dict[str, Any]], Any]) -> Any:
    return [value(part) for part in parts_of(item)] if is_split(item) else value(item)


def _text(item: dict[str, Any]) -> str | None:
    return item.get("text")


def _segments(item: dict[str, Any]) -> list[dict[str, Any]] | None:
    if is_failure(item):
        return None
    return [
        {
            "start": _rounded(segment["start"], _SECONDS_DECIMALS),
            "end": _rounded(segment["end"], _SECONDS_DECIMALS),
            "text": segment["text"],
        }
        for segment in item.get("segments") or []
    ]


def _error(item: dict[str, Any]) -> dict[str, str] | None:
    return {"type": item["type"], "message": item["message"]} if is_failure(item) else None


def _details(item: dict[str, Any]) -> dict[str, Any] | None:
    if is_failure(item):
        return None
    return {name: _rounded(item.get(name), decimals) for name, decimals in DETAILS.items()}


def _rounded(value: Any, decimals: int | None) -> Any:
    """Figures with ``decimals`` kept; NaN and infinities, which JSON does not have, as None."""
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return None
    return value if decimals is None else round(value, decimals)
