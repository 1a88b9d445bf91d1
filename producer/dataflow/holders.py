"""A table in memory while its recordings are transcribed: what it asks for, and what it is with the answers.

Only the media column and the options of each row (`producer.rows.RECORD_OPTIONS`) go into the job; the table's other
columns stay here as they are and never change their type.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from producer.cache import atomic_write
from producer.columns import Columns
from producer.dataflow import csv_text, frames, parquet, pickles, tables
from producer.dataflow.frames import Row, is_missing, plain, refuse_embedded
from producer.dataflow.paths import Format, Table
from producer.errors import UsageError
from producer.rows import RECORD_OPTIONS, media_advice

#: The input of a job; the star is its content.
REQUESTS = "rows-*.jsonl"
#: The columns of a transcription: one value a row, None where a row has none.
Answers = dict[str, list[Any]]


class Holder(Protocol):
    """A table that waits for its answers."""

    def __len__(self) -> int:
        """How many rows it has."""

    def names(self) -> Sequence[str]:
        """Its columns."""

    def column(self, name: str) -> list[Any]:
        """The values of one."""

    def write(self, path: Path, answers: Answers, columns: Columns) -> None:
        """Write it with its answers; what it had in their columns is gone."""


@dataclass(frozen=True, slots=True)
class RowsHolder:
    """Rows in Python's own values, for the formats that hold any: json, jsonl, csv."""

    rows: list[Row]
    kind: Format

    def __len__(self) -> int:
        return len(self.rows)

    def names(self) -> list[str]:
        """Every column of any row."""
        return frames.column_names(self.rows)

    def column(self, name: str) -> list[Any]:
        """The values of a column, None where a row does not have it."""
        return [row.get(name) for row in self.rows]

    def write(self, path: Path, answers: Answers, columns: Columns) -> None:
        """Write the rows. Only rows that failed have an error, unless the format has one header for all."""
        always = set(answers) if self.kind == "csv" else set(answers) - {columns.error_column}
        replaced, merged = columns.family(), []
        for number, row in enumerate(self.rows):
            kept = {name: value for name, value in row.items() if name not in replaced}
            values = {name: column[number] for name, column in answers.items()}
            merged.append(kept | {name: value for name, value in values.items() if name in always or value is not None})
        tables.write_rows(path, self.kind, merged)


@dataclass(frozen=True, slots=True)
class ArrowHolder:
    """A pyarrow Table, for Parquet."""

    table: Any

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def names(self) -> list[str]:
        """Its columns."""
        return list(self.table.column_names)

    def column(self, name: str) -> list[Any]:
        """The values of a column, in Python's types."""
        return list(self.table.column(name).to_pylist())

    def write(self, path: Path, answers: Answers, columns: Columns) -> None:
        """Write it as Parquet."""
        tables.write_arrow(path, parquet.with_answers(self.table, answers, columns))


@dataclass(frozen=True, slots=True)
class FrameHolder:
    """A DataFrame. ``kind``: the format that it is written in."""

    frame: Any
    media_key: str
    kind: Format = "pickle"

    def __len__(self) -> int:
        return len(self.frame)

    def names(self) -> list[str]:
        """Its columns."""
        return [str(name) for name in self.frame.columns]

    def column(self, name: str) -> list[Any]:
        """The values of a column."""
        return list(self.frame[name].tolist())

    def merged(self, answers: Answers, columns: Columns) -> Any:
        """A DataFrame with the same index, its answers in the last columns."""
        kept = self.frame.drop(columns=[name for name in self.frame.columns if name in columns.family()])
        added = {name: frames.series_of(values).set_axis(kept.index) for name, values in answers.items()}
        return kept.assign(**added)

    def write(self, path: Path, answers: Answers, columns: Columns) -> None:
        """Write it in its format."""
        tables.write_frame(path, self.kind, self.merged(answers, columns), self.media_key)


def load(table: Table | None, kind: Format, media_key: str) -> Holder:
    """A table (None: an empty one) that will be written as ``kind``.

    Raises UsageError where it cannot be read, or cannot be written so, before anything else is done with it.
    """
    if table is not None and table.format == "pickle":
        return FrameHolder(pickles.read(Path(table.path)), media_key, kind)
    if table is not None and table.format == kind == "parquet":
        return ArrowHolder(parquet.read(Path(table.path)))
    rows = [] if table is None else tables.read_rows(table)
    if table is not None and table.format == "csv":
        _mean(rows, media_key, table.path)
    if kind == "parquet":
        return ArrowHolder(parquet.of_rows(rows))
    if kind == "pickle":
        return FrameHolder(frames.frame_of(rows), media_key, kind)
    for number, row in enumerate(rows):
        refuse_embedded(row.get(media_key), f"row {number}: column {media_key!r}")
        for name, value in row.items():
            plain(value, f"row {number} of column {name!r}")
    return RowsHolder(rows, kind)


def requests(holder: Holder, media_key: str, where: str) -> list[Row]:
    """The rows of the job: each one's recordings and options. ``where`` is for messages.

    Raises UsageError where the media column is missing, or holds something else than paths, and where one of those
    columns is there twice. A table without rows may have any columns.
    """
    if not len(holder):
        return []
    names = holder.names()
    twice = next((name for name in (media_key, *RECORD_OPTIONS) if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{where} has two columns {twice!r}: rename one")
    if media_key not in names:
        there = ", ".join(names[:8])[:200] or "nothing"
        raise UsageError(f"{where}: no column {media_key!r} (there is: {there}): name the column with media_key")
    media = holder.column(media_key)
    rows = [{media_key: _media(value, f"{where}: row {number}", media_key)} for number, value in enumerate(media)]
    for name in RECORD_OPTIONS:
        if name != media_key and name in names:
            for row, value in zip(rows, holder.column(name), strict=True):
                if not is_missing(value):
                    row[name] = plain(value, f"column {name!r}")
    return rows


def write_requests(folder: Path, rows: list[Row]) -> Path:
    """Write the rows of a job into ``folder``, for this user alone; returns the file.

    It is named after what is in it: one that a job is reading stays, whoever comes with other rows.
    """
    text = b"".join(json.dumps(row).encode("ascii") + b"\n" for row in rows)
    path = folder / REQUESTS.replace("*", hashlib.sha256(text).hexdigest()[:16])
    with atomic_write(path, mode=0o600) as handle:
        handle.write(text)
    return path


def remove_requests(folder: Path, but: Path) -> None:
    """Remove what `write_requests` left for jobs before the one that ``but`` was written for."""
    for path in folder.glob(REQUESTS):
        if path != but:
            path.unlink(missing_ok=True)


def answers(path: Path, columns: Columns) -> Answers:
    """The answers of a job whose step file is ``path``."""
    found: Answers = {name: [] for name in columns.names()}
    with path.open("rb") as lines:
        for line in lines:
            row = json.loads(line)
            for name, values in found.items():
                values.append(row.get(name))
    return found


def _media(value: Any, where: str, media_key: str) -> Any:
    if is_missing(value):
        return None
    refuse_embedded(value, f"{where}: column {media_key!r}")
    value = plain(value, f"{where} of column {media_key!r}")
    items = value if isinstance(value, list) else [value]
    wrong = next((item for item in items if not isinstance(item, str | None)), None)
    if wrong is not None:
        raise UsageError(f"{where}: column {media_key!r} holds {repr(wrong)[:200]}: {media_advice(wrong)}")
    return value


def _mean(rows: list[Row], media_key: str, path: str) -> None:
    """What stands in cells as they are meant, whatever it looks like: a list, text or seconds.

    Raises UsageError as `csv_text.listed` does.
    """
    meant = dict.fromkeys(("language", "prompt"), csv_text.text_of) | dict.fromkeys(
        ("start_s", "end_s"), csv_text.number_of
    )
    meant.pop(media_key, None)
    for number, row in enumerate(rows):
        row.update({name: form(row[name]) for name, form in meant.items() if name in row})
        if media_key in row:
            row[media_key] = csv_text.listed(row[media_key], f"{path}: row {number}: column {media_key!r}")
