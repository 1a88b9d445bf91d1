"""The rows of a step and their answers become the step's file."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from producer.cache import atomic_write
from producer.columns import Columns, is_failure
from producer.errors import FleetError
from producer.journal import Journal
from producer.rows import recording_count, with_columns


def write_step(
    step_path: Path,
    lines: Iterable[bytes],
    journal: Journal,
    columns: Columns,
    media_key: str,
    drop: Collection[str] = frozenset(),
    *,
    sha256: str | None = None,
) -> int:
    """Write row i with the answer of row i, for all rows, to ``step_path`` at once; returns the number of rows.

    ``drop`` names columns to take out first (`Columns.family` to overwrite), ``sha256`` is the hash that the scan of
    the input gave. Raises FleetError, and leaves no file, where an answer is missing, the input is another than the
    one scanned, or the disk is full.
    """
    digest = hashlib.sha256()
    rows = 0
    with atomic_write(step_path) as handle:
        for line in lines:
            if rows == journal.rows:
                raise _changed(step_path)
            count = recording_count(line, media_key)
            items = _items(journal, rows, count)
            handle.write(with_columns(line, columns.values(items, plain=count == 1), drop) + b"\n")
            digest.update(line + b"\n")
            rows += 1
        if rows != journal.rows or sha256 not in (None, digest.hexdigest()):
            raise _changed(step_path)
    return rows


def _items(journal: Journal, row: int, count: int) -> list[dict[str, Any]]:
    items = journal.items(row)
    if len(items) == 1 and is_failure(items[0]):
        return items * count  # the row failed as a whole
    if len(items) != count:
        raise FleetError(
            f"{journal.path}: row {row} has {len(items)} answers for {count} recordings: start over with --force"
        )
    return items


def _changed(step_path: Path) -> FleetError:
    return FleetError(f"{step_path}: the input changed while the job ran: start over with --force")
