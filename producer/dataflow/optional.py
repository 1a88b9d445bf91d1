"""pandas and pyarrow, loaded where they are needed."""

from __future__ import annotations

import importlib
from typing import Any

from producer.errors import UsageError


def _load(name: str, needed_for: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise UsageError(f"{needed_for} needs {package}: pip install '.[dataflow]' in a checkout") from None


def pandas(needed_for: str = "a DataFrame") -> Any:
    """The module pandas. Raises UsageError where it is not installed."""
    return _load("pandas", needed_for)


def pyarrow(needed_for: str) -> Any:
    """The module pyarrow. Raises UsageError where it is not installed."""
    return _load("pyarrow", needed_for)


def pyarrow_csv() -> Any:
    """The module pyarrow.csv."""
    return _load("pyarrow.csv", "csv")


def pyarrow_parquet() -> Any:
    """The module pyarrow.parquet."""
    return _load("pyarrow.parquet", "parquet")
