"""The rows of a step: checked, turned into records, and extended by columns.

A row is the line as it stands in the file. It is parsed to look at it and never written back from the parsed form:
new columns are spliced into the raw bytes, so that every other column keeps its order, its integers of any size, its
float text and its escapes.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from producer.errors import FleetError, UsageError
from producer.inputs import iter_lines
from producer.locating import located
from workers.errors import TranscriptionError
from workers.languages import canonical_language
from workers.messages import Failure, Record, first_problem

__all__ = [
    "RECORD_OPTIONS",
    "Scan",
    "ScanRules",
    "media_advice",
    "record_of",
    "recording_count",
    "scan",
    "timed_record_of",
    "with_columns",
]

#: Fields of a row that set something for this row alone (`workers.messages.Record`).
RECORD_OPTIONS = ("language", "prompt", "start_s", "end_s")

#: Where datasets keep the length of a row's audio, in seconds.
DURATION_COLUMN = "duration"

#: What each row of a Hugging Face audio column has, some of them.
_EMBEDDED = frozenset(("path", "bytes", "array"))

#: Deepest nesting of a row. The JSON scanner shares the interpreter's limit of 1000 frames with its callers, so a
#: fixed bound below it makes a row that passed the check readable everywhere else too.
MAX_DEPTH = 500

_SPACE = re.compile(r"[ \t\n\r]*")
_SPACE_BYTES = b" \t\n\r"
# Possessive, and with an end that may be missing: nothing is remembered to go back to, however long a string is.
_NESTING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{]|[\]}]', re.DOTALL)

# Integers are read as floats: they are only looked at, and int() refuses more than 4300 digits.
_DECODER = json.JSONDecoder(parse_int=float)
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)
_ASCII_ENCODER = json.JSONEncoder(ensure_ascii=True, allow_nan=False)


@dataclass(frozen=True, slots=True)
class ScanRules:
    """What every row must be: ``limit`` is the number of rows to take (None: all)."""

    media_key: str
    refused_columns: frozenset[str] = frozenset()
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Scan:
    """What was found: rows, and size and hash of the decompressed row lines, each with its newline."""

    rows: int
    bytes: int
    sha256: str


def scan(paths: Sequence[Path], rules: ScanRules) -> Scan:
    """Check every row, in one pass and in the memory of one row.

    Raises UsageError with file and line number for the first row that is not a JSON object in UTF-8, lacks the media
    key or holds something else than paths there, or already has one of the refused columns. ``NaN`` and ``Infinity``
    pass, as Python and pandas write them.
    """
    digest = hashlib.sha256()
    rows = size = 0
    for path, number, line in islice(iter_lines(paths), rules.limit):
        problem = _problem(line, rules)
        if problem:
            raise UsageError(f"{path}:{number}: {problem}")
        digest.update(line)
        digest.update(b"\n")
        rows += 1
        size += len(line) + 1
    return Scan(rows, size, digest.hexdigest())


def _problem(line: bytes, rules: ScanRules) -> str | None:
    try:
        row = _parse(line)
    except UnicodeDecodeError as error:
        return f"not valid UTF-8 (byte {line[error.start]:#04x} at position {error.start + 1}): save the file as UTF-8"
    except json.JSONDecodeError as error:
        advice = "write one object per line" if line[:1] == b"[" else "fix or remove the line"
        return f"not valid JSON ({error.msg.removesuffix(' at')} at column {error.pos + 1}): {advice}"
    except RecursionError:
        return f"nested more than {MAX_DEPTH} levels deep: flatten or remove the line"
    if not isinstance(row, dict):
        return f"{_kind(row)}, not an object: write one object per line"
    key = rules.media_key
    if key not in row:
        there = _shown(", ".join(islice(row, 8)) or "nothing")
        return f"no column {key!r} (there is: {there}): name the column that holds the audio with --media-key"
    media = row[key]
    wrong = [item for item in (media if isinstance(media, list) else [media]) if not isinstance(item, str | None)]
    if wrong:
        inside = "a list with " if isinstance(media, list) else ""
        return f"column {key!r} holds {inside}{_kind(wrong[0])}: {media_advice(wrong[0])}"
    for column in sorted(rules.refused_columns & row.keys()):
        return f"column {column!r} is already there: choose another --output-key or allow --overwrite-column"
    return None


def media_advice(wrong: Any) -> str:
    """What a media column that holds ``wrong`` should hold instead."""
    if isinstance(wrong, dict) and not _EMBEDDED.isdisjoint(wrong):
        return (
            "a Hugging Face audio column: give a column with its `path` (files on disk; embedded bytes must be written "
            "out first)"
        )
    return "it must hold a path, a URL or a list of them"


# --- records ---------------------------------------------------------------------------------------------------------


def recording_count(line: bytes, media_key: str) -> int:
    """How many recordings a checked row names: 1 means plain columns (null and ``[]`` too), more mean lists."""
    if b"[" not in line:
        return 1
    media = _checked(line).get(media_key)
    return max(1, len(media)) if isinstance(media, list) else 1


def record_of(row: int, line: bytes, media_key: str, audio_root: str) -> Record | Failure:
    """The record that a checked row asks for, or why there is none: that failure answers the row as a whole.

    Relative paths are joined to ``audio_root`` (`producer.locating`). An item of a list that is null becomes ``""`` and
    keeps its place; the worker answers it with ``no_audio``. A media key named like a record option is the audio only.
    Options that are null, empty or NaN count as absent.
    """
    return _record(row, _checked(line), media_key, audio_root)


def timed_record_of(row: int, line: bytes, media_key: str, audio_root: str) -> tuple[Record | Failure, float | None]:
    """`record_of`, and the seconds of audio that the row says it has: None where it says nothing (of use)."""
    fields = _checked(line)
    return _record(row, fields, media_key, audio_root), _seconds(fields)


def _record(row: int, fields: Mapping[str, Any], media_key: str, audio_root: str) -> Record | Failure:
    media = fields.get(media_key)
    items = media if isinstance(media, list) else [media]
    if not any(items):
        return Failure(type="no_audio", message=f"column {_shown(repr(media_key))} names no audio")
    sources = [located(item or "", audio_root) for item in items]
    bad = next((source for source in sources if not _is_text(source)), None)
    if bad is not None:
        return Failure(type="bad_argument", message=f"audio: {_shown(ascii(bad))} cannot be a path or URL")
    options = {name: _given(fields.get(name)) for name in RECORD_OPTIONS if name != media_key}
    try:
        checked = {name: _option(name, value) for name, value in options.items() if value is not None}
        return Record(audio=sources[0] if len(sources) == 1 else sources, row=row, **checked)
    except TranscriptionError as error:
        return Failure.of(error)
    except ValidationError as error:
        return Failure(type="bad_argument", message=first_problem(error))


def _seconds(fields: Mapping[str, Any]) -> float | None:
    """The length of a row's audio by its own columns. Only a hint: a wrong one changes nothing but the messages."""
    end, start = _given(fields.get("end_s")) or fields.get(DURATION_COLUMN), _given(fields.get("start_s"))
    if not isinstance(end, float):
        return None
    seconds = end - (start if isinstance(start, float) else 0.0)
    return seconds if 0 < seconds < math.inf else None


def _is_text(source: str) -> bool:
    """No NUL (no path has one) and no lone surrogate (no message can carry one)."""
    try:
        source.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return "\0" not in source


def _given(value: Any) -> Any:
    """An option's value, None for what means that there is none: pandas writes NaN for what is missing."""
    return None if value == "" or (isinstance(value, float) and math.isnan(value)) else value


def _option(name: str, value: Any) -> Any:
    if name in ("start_s", "end_s"):
        if not isinstance(value, float):
            raise TranscriptionError("bad_argument", f"{name}: must be a number of seconds, not {_kind(value)}")
        if not math.isfinite(value):
            raise TranscriptionError("bad_argument", f"{name}: must be a finite number of seconds")
        return value
    if not isinstance(value, str):
        raise TranscriptionError("bad_argument", f"{name}: must be a string, not {_kind(value)}")
    if not _is_text(value):
        raise TranscriptionError("bad_argument", f"{name}: {_shown(ascii(value))} is no text")
    # "auto" stays a word: a row may ask for detection where its job names a language.
    return canonical_language(value[:200]) if name == "language" else value


# --- columns ---------------------------------------------------------------------------------------------------------


def with_columns(line: bytes, columns: Mapping[str, Any], drop: Collection[str] = frozenset()) -> bytes:
    """A checked row with ``columns`` added at its end and its own columns named in ``drop`` removed, without newline.

    All other bytes stay as they are; lone surrogates in new values are written as escapes. Raises ValueError for a
    value that JSON cannot hold (NaN).
    """
    body = (_without(line, drop) if drop else line).rstrip(_SPACE_BYTES)[:-1].rstrip(_SPACE_BYTES)
    if not columns:
        return body + b"}"
    try:
        added = _ENCODER.encode(columns).encode("utf-8")
    except UnicodeEncodeError:
        added = _ASCII_ENCODER.encode(columns).encode("ascii")
    # Only an empty object ends with its own opening brace here.
    return body + (b"" if body.endswith(b"{") else b", ") + added[1:]


def _without(line: bytes, drop: Collection[str]) -> bytes:
    text = line.decode("utf-8")
    members = list(_members(text))
    kept = [text[start:end] for key, start, end in members if key not in drop]
    return line if len(kept) == len(members) else ("{" + ", ".join(kept) + "}").encode("utf-8")


def _members(text: str) -> Iterator[tuple[str, int, int]]:
    """Each member of a JSON object: its key, and where its text starts and ends."""
    at = _skip_space(text, text.index("{") + 1)
    while text[at] != "}":
        key, end = _DECODER.raw_decode(text, at)
        value_at = _skip_space(text, _skip_space(text, end) + 1)  # past the colon
        _, end = _DECODER.raw_decode(text, value_at)
        yield key, at, end
        at = _skip_space(text, end)
        if text[at] == ",":
            at = _skip_space(text, at + 1)


def _skip_space(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return space.end() if space else at


# --- reading one row -------------------------------------------------------------------------------------------------


def _checked(line: bytes) -> dict[str, Any]:
    try:
        row = _parse(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise FleetError(f"the input changed while the job ran, this row was another before: {_shown(ascii(line))}")
    return row


def _parse(line: bytes) -> Any:
    # The counts bound the depth from above and cost next to nothing; only rows that may be deep are read twice.
    if line.count(b"[") + line.count(b"{") > MAX_DEPTH and _depth(line) > MAX_DEPTH:
        raise RecursionError
    return _DECODER.decode(line.decode("utf-8"))


def _depth(line: bytes) -> int:
    depth = deepest = 0
    for token in _NESTING.finditer(line):
        mark = line[token.start()]
        depth += (mark in b"[{") - (mark in b"]}")
        deepest = max(deepest, depth)
    return deepest


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "a boolean"
    kinds = {float: "a number", str: "a string", list: "a list", dict: "an object"}
    return kinds.get(type(value), "null")


def _shown(text: str) -> str:
    """Text fit for a message: lone surrogates escaped, at most 200 characters."""
    return text[:200].encode("utf-8", "backslashreplace").decode("utf-8")
