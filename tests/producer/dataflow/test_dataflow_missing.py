"""What is missing, and when something was: the same in every format, from a list of dicts as from a DataFrame."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from producer.dataflow import FileStorage
from producer.dataflow.frames import is_missing, plain
from producer.dataflow.paths import FORMATS
from producer.errors import UsageError

MISSING = [
    float("nan"),
    np.float64("nan"),
    np.float32("nan"),
    np.float16("nan"),
    pd.NaT,
    pd.NA,
    np.datetime64("NaT"),
    np.timedelta64("NaT"),
]


def written(kind: str, data: Any) -> list[dict[str, Any]]:
    """The rows of a step that ``data`` was written to."""
    storage = FileStorage("", file_name_prefix="p", cache_type=kind)  # type: ignore[arg-type]
    storage.step().write(data)
    return storage.step().read("dict")  # type: ignore[no-any-return]


def both(rows: list[dict[str, Any]]) -> list[Any]:
    """The same table as a list of dicts and as a DataFrame whose cells are the very values."""
    frame = pd.DataFrame({name: pd.Series([row.get(name) for row in rows], dtype=object) for name in rows[0]})
    return [rows, frame]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("missing", MISSING, ids=lambda value: type(value).__name__)
def test_what_is_missing_is_no_key_and_null_in_the_media_column(folder: Path, kind: str, missing: object) -> None:
    array = np.array([1.5, np.nan], dtype=np.float32)
    given: list[dict[str, Any]] = [
        {"audio": "a.wav", "x": "there", "ids": ["a"], "n": [1.5], "array": array[:1], "o": {"k": "v"}},
        {"audio": missing, "x": missing, "ids": ["b", missing], "n": [0, missing], "array": array, "o": {"k": missing}},
    ]
    nested: list[dict[str, Any]] = [
        {"ids": ["a"], "n": [1.5], "array": [1.5], "o": {"k": "v"}},
        {"ids": ["b", None], "n": [0, None], "array": [1.5, None], "o": {"k": None}},
    ]
    for data in both(given):
        first, second = written(kind, data)
        for row, values in zip((first, second), nested, strict=True):
            assert {name: json.loads(row[name]) if kind == "csv" else row[name] for name in values} == values
        assert (first["audio"], first["x"]) == ("a.wav", "there")
        assert second["audio"] is None
        # Where all rows have the same keys, it is null
        assert second.get("x") is None
        assert ("x" in second) == (kind in ("csv", "parquet"))


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_the_text_of_a_file_has_no_word_for_what_is_missing(folder: Path, kind: str) -> None:
    rows = [{"audio": value, "x": value, "xs": [value], "o": {"k": value}} for value in MISSING]
    for data in both(rows):
        assert written(kind, data) == [{"audio": None, "xs": [None], "o": {"k": None}}] * len(MISSING)
        assert "Na" not in (folder / "cache" / f"p_step1.{kind}").read_text()


@pytest.mark.parametrize("kind", FORMATS)
def test_a_column_that_is_missing_everywhere_stays_where_there_is_one_header(folder: Path, kind: str) -> None:
    for data in both([{"audio": "a.wav", "x": float("nan")}]):
        (row,) = written(kind, data)
        assert list(row) == (["audio", "x"] if kind in ("csv", "parquet") else ["audio"])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.datetime64("2024-01-01T10:00:00", "ns"), "2024-01-01T10:00:00"),
        (np.datetime64("2024-01-01T10:00:00.5", "ns"), "2024-01-01T10:00:00.500000"),
        (np.datetime64("2024-01-01T10:00:00.123456789", "ns"), "2024-01-01T10:00:00.123456789"),
        (np.datetime64("1969-12-31T23:59:59.999", "ms"), "1969-12-31T23:59:59.999000"),
        (np.datetime64("12024-01-01", "s"), "12024-01-01T00:00:00"),
        (np.datetime64("2024-01-01"), "2024-01-01"),
        (np.array(["2024-01-01T10:00", "NaT"], "M8[ns]"), ["2024-01-01T10:00:00", None]),
        (np.array([["2024-01-01T10:00"]], "M8[us]"), [["2024-01-01T10:00:00"]]),
        (np.array("2024-01-01T10:00", "M8[ns]"), "2024-01-01T10:00:00"),
        (pd.Series([pd.Timestamp("2024-01-01T10:00:00Z"), pd.NaT]), ["2024-01-01T10:00:00+00:00", None]),
        (pd.Timestamp("2024-01-01T10:00:00.000000001"), "2024-01-01T10:00:00.000000001"),
        (datetime(2024, 1, 1, tzinfo=UTC), "2024-01-01T00:00:00+00:00"),
        (date(2024, 1, 1), "2024-01-01"),
    ],
)
@pytest.mark.parametrize("kind", ["json", "jsonl", "csv"])
def test_times_are_text_in_iso_8601(folder: Path, kind: str, value: object, text: object) -> None:
    for data in both([{"audio": "a.wav", "at": value, "o": {"at": [value]}}]):
        (row,) = written(kind, data)
        if kind == "csv":
            row["o"] = json.loads(row["o"])
            row["at"] = json.loads(row["at"]) if isinstance(text, list) else row["at"]
        assert row == {"audio": "a.wav", "at": text, "o": {"at": [text]}}


@pytest.mark.parametrize("value", [np.datetime64("2024-01-01T10:00:00.123456789", "ns"), np.datetime64("2024", "s")])
def test_a_time_of_numpy_is_written_as_that_of_pandas(value: np.datetime64) -> None:
    assert plain(value, "here") == pd.Timestamp(value).isoformat()


@pytest.mark.parametrize("value", [np.timedelta64(5, "ns"), np.array([5], "m8[ns]"), pd.Timedelta(5)])
def test_a_span_of_time_is_no_number(folder: Path, value: object) -> None:
    for data in both([{"audio": "a.wav", "x": value}]):
        with pytest.raises(UsageError, match=r"row 0 of column 'x' holds a (timedelta64|Timedelta), which JSON has no"):
            written("jsonl", data)


@pytest.mark.parametrize("value", ["", "NaN", 0, False, np.float32(0), np.array([np.nan]), np.array([]), [], {}])
def test_what_is_there_is_not_missing(value: object) -> None:
    assert not is_missing(value)
