"""The tables of a pipeline on disk: read and written as rows or as DataFrames, whole in memory.

Every file is written at once or not at all. What a format has no place for is one line of error before anything is
written; a key that a row does not have is only kept apart from null in JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from producer.cache import atomic_write
from producer.dataflow import csv_text, frames, parquet, pickles
from producer.dataflow.frames import Row
from producer.dataflow.paths import Format, Table
from producer.disk import disk_errors
from producer.errors import UsageError
from producer.inputs import expand_inputs, iter_lines


def read_rows(table: Table, media_key: str | None = None) -> list[Row]:
    """The rows of a table as Python's values. Raises UsageError for one that is damaged, with the line's number.

    ``media_key``: the column in which what a pickle does not have is null.
    """
    path = Path(table.path)
    match table.format:
        case "jsonl":
            return list(_lines(table.path))
        case "json":
            return _array(path)
        case "csv":
            return csv_text.read(path)
        case "parquet":
            return list(parquet.read(path).to_pylist())
        case "pickle":
            return frames.rows_of(pickles.read(path), media_key)


def read_frame(table: Table) -> Any:
    """The same as a DataFrame; Parquet and pickle keep their own types."""
    if table.format == "parquet":
        return parquet.frame_of(parquet.read(Path(table.path)))
    if table.format == "pickle":
        return pickles.read(Path(table.path))
    return frames.frame_of(read_rows(table))


def write_given(path: Path, kind: Format, rows: list[Row], media_key: str) -> None:
    """Write rows that somebody else made, in which NaN, NaT and NA are keys that a row does not have."""
    # The other formats have one header for all rows, so that none of its columns may go.
    write_rows(path, kind, [frames.present(row, media_key) for row in rows] if kind in ("json", "jsonl") else rows)


def write_rows(path: Path, kind: Format, rows: list[Row]) -> None:
    """Write rows as they are; values of pandas and numpy become Python's where the format has no types of its own."""
    match kind:
        case "jsonl":
            _write(path, (_json(row, number) + b"\n" for number, row in enumerate(rows)))
        case "json":
            _write(path, _array_chunks(rows))
        case "csv":
            _write(path, csv_text.chunks(rows))
        case "parquet":
            write_arrow(path, parquet.of_rows(rows))
        case "pickle":
            pickles.write(frames.frame_of(rows), path)


def write_frame(path: Path, kind: Format, frame: Any, media_key: str) -> None:
    """Write a DataFrame without its index."""
    if kind == "parquet":
        write_arrow(path, parquet.of_frame(frame))
    elif kind == "pickle":
        pickles.write(frame, path)
    elif kind == "csv":  # an empty table has columns too
        _write(path, csv_text.chunks(frames.rows_of(frame, media_key), list(map(str, frame.columns))))
    else:
        write_rows(path, kind, frames.rows_of(frame, media_key))


def write_arrow(path: Path, table: Any) -> None:
    """Write a pyarrow Table as Parquet."""
    with atomic_write(path) as handle:
        parquet.write(table, handle)


def _write(path: Path, chunks: Iterable[bytes]) -> None:
    with atomic_write(path) as handle:
        for chunk in chunks:
            handle.write(chunk)


def _lines(name: str) -> Iterator[Row]:
    for path, number, line in iter_lines(expand_inputs([name])):
        yield _object(_parsed(line, f"{path}:{number}"), f"{path}:{number}")


def _array(path: Path) -> list[Row]:
    with disk_errors(path):
        data = path.read_bytes().removeprefix(b"\xef\xbb\xbf").strip()
    if not data.startswith(b"["):  # lines, as many files named .json have
        return list(_lines(str(path)))
    return [_object(item, f"{path}: row {number}") for number, item in enumerate(_parsed(data, str(path)))]


def _parsed(data: bytes, where: str) -> Any:
    try:
        return json.loads(data)
    except UnicodeDecodeError:
        raise UsageError(f"{where}: not valid UTF-8: save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise UsageError(f"{where}: not valid JSON ({error.msg.removesuffix(' at')} at {place})") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: cannot be read ({error})") from None


def _object(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise UsageError(f"{where}: {json.dumps(value)[:40]} is no object: every row must be one")
    return value


def _array_chunks(rows: list[Row]) -> Iterator[bytes]:
    yield b"["
    for number, row in enumerate(rows):
        text = _json(row, number, indent=2).replace(b"\n", b"\n  ")
        yield (b"\n  " if number == 0 else b",\n  ") + text
    yield b"\n]\n" if rows else b"]\n"


def _json(row: Row, number: int, indent: int | None = None) -> bytes:
    """A row as JSON. Half characters (lone surrogates) are written as escapes."""
    where = f"row {number} of column "
    values = {str(name): frames.plain(value, f"{where}{name!r}") for name, value in row.items()}
    try:
        return json.dumps(values, ensure_ascii=False, indent=indent).encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(values, indent=indent).encode("ascii")
