"""Rows as Python's own values, and DataFrames with the same in them.

A row is a dict. What a DataFrame has no place for has a value of its own there: ``None`` stays None, and a key that a
row does not have is NaN (as NaN, NaT and NA are keys that the row does not have).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import date, time
from operator import is_
from os import PathLike, fspath
from typing import Any

from producer.dataflow import optional
from producer.errors import UsageError
from producer.rows import media_advice

Row = dict[str, Any]

#: What a row does not have.
ABSENT = float("nan")
_INT64 = range(-(2**63), 2**63)
_NATIVE = (bool, float, str)
#: What is never missing, and has nothing in it.
_WHOLE = frozenset((str, int, bool, bytes, type(None)))
#: The kinds of numpy's datetime64 and timedelta64. Their ``tolist`` makes numbers of nanoseconds.
_TIMES = ("M", "m")


def column_names(rows: Iterable[Row]) -> list[str]:
    """Every column of any row, in the order of their first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row))


def frame_of(rows: list[Row]) -> Any:
    """A DataFrame with the values of ``rows`` as they are: no id becomes a number, no text a date.

    A column of one type in every row has pandas' type for it; any other has the type ``object``.
    """
    pd = optional.pandas()
    columns = {name: [row.get(name, ABSENT) for row in rows] for name in column_names(rows)}
    return pd.DataFrame({name: series_of(values) for name, values in columns.items()}, index=pd.RangeIndex(len(rows)))


def series_of(values: list[Any]) -> Any:
    """A Series that gives exactly these values back."""
    pd = optional.pandas()
    kinds = {type(value) for value in values}
    one = len(kinds) == 1 and (kinds <= set(_NATIVE) or (kinds == {int} and all(value in _INT64 for value in values)))
    try:
        return pd.Series(values) if one else pd.Series(values, dtype=object)
    except UnicodeEncodeError:  # half a character (a lone surrogate), which pandas' own texts cannot hold
        return pd.Series(values, dtype=object)


def rows_of(frame: Any, media_key: str | None = None) -> list[Row]:
    """The rows of a DataFrame, in values that JSON has. Its index is left out; missing audio becomes null.

    Raises UsageError for a column whose values JSON cannot hold.
    """
    names = [str(name) for name in frame.columns]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"the DataFrame has two columns {twice!r}: rename one")
    rows: list[Row] = [{} for _ in range(len(frame))]
    for at, name in enumerate(names):
        for number, (row, value) in enumerate(zip(rows, frame.iloc[:, at].tolist(), strict=True)):
            if not is_missing(value):
                row[name] = plain(value, f"row {number} of column {name!r}")
            elif value is None or name == media_key:
                row[name] = None
    return rows


def present(row: Row, media_key: str) -> Row:
    """A row with the keys that `rows_of` would give it: without those that are missing; missing audio becomes null."""
    kept = {name: None if is_missing(value) else value for name, value in row.items()}
    return {name: value for name, value in kept.items() if value is not None or row[name] is None or name == media_key}


def is_missing(value: Any) -> bool:
    """None, NaN, NaT and NA, those of numpy too."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    if type(value).__name__ in ("NaTType", "NAType"):
        return True
    # A numpy float32 is no float. NaN and NaT are not equal to themselves.
    return _kind(value) in ("f", *_TIMES) and getattr(value, "ndim", None) == 0 and bool(value != value)


def nulled(value: Any) -> Any:
    """A value with null for what is missing in it; the value itself where nothing is."""
    kind = type(value)
    if kind in _WHOLE:
        return value
    if kind is float:
        return value if value == value else None
    if isinstance(value, list | tuple):
        items = [nulled(item) for item in value]
        return value if all(map(is_, items, value)) else items
    if isinstance(value, dict):
        items = [nulled(item) for item in value.values()]
        return value if all(map(is_, items, value.values())) else dict(zip(value, items, strict=True))
    return None if is_missing(value) else value


def refuse_embedded(value: Any, where: str) -> None:
    """Raise UsageError for audio itself in place of paths, before anything looks into it. ``where`` names the cell."""
    if hasattr(value, "tolist") and hasattr(value, "dtype"):
        value = value.tolist()
    items = value if isinstance(value, list | tuple) else (value,)
    wrong = next((item for item in items if isinstance(item, dict | bytes)), None)
    if wrong is not None:
        raise UsageError(f"{where} holds {repr(wrong)[:200]}: {media_advice(wrong)}")


def plain(value: Any, where: str) -> Any:
    """A value as JSON has it: arrays become lists, times text in ISO 8601. ``where`` is for the UsageError."""
    if isinstance(value, list | tuple):
        return [None if is_missing(item) else plain(item, where) for item in value]
    if isinstance(value, dict):
        return {str(key): None if is_missing(item) else plain(item, where) for key, item in value.items()}
    if value is None or isinstance(value, str | bool | int | float):
        # A numpy float64 is a float, and an enum may be a text: only the plain ones are the same everywhere.
        return next((kind(value) for kind in (str, bool, int, float) if isinstance(value, kind)), None)
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, PathLike):
        return fspath(value)
    if _kind(value) in _TIMES and value.ndim:
        return plain(list(value), where)
    if _kind(value) == "M":
        return _iso_of(value)
    if hasattr(value, "tolist") and hasattr(value, "dtype") and _kind(value) != "m":  # numpy's arrays and scalars
        return plain(value.tolist(), where)
    advice = "write it to a file and give its path" if isinstance(value, bytes) else "make it text or a number"
    raise UsageError(f"{where} holds a {type(value).__name__}, which JSON has no form for: {advice}")


def _kind(value: Any) -> Any:
    """The kind of numpy's type that a value has, None for one that has none."""
    return getattr(getattr(value, "dtype", None), "kind", None)


def _iso_of(value: Any) -> str:
    """A datetime64 in ISO 8601, as pandas writes it: with as many decimals as it needs (0, 6 or more)."""
    found = value.tolist()
    if isinstance(found, int):  # Python's times have no nanoseconds, and no years past 9999
        microseconds = value.astype("datetime64[us]")
        found = microseconds.tolist() if microseconds == value else found
    return found.isoformat() if isinstance(found, date) else str(value)
