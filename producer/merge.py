"""The rows of a step and their answers become the step's file."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from producer.cache import atomic_write
from producer.columns import Columns, is_failure
from producer.errors import FleetError
from producer.journal import Journal
from producer.rows import recording_count, with_columns


@dataclass(frozen=True, slots=True)
class Kept:
    """What of a finished step stays when some of its rows are done again: all ``lines`` but those of ``retried``.

    ``retried`` are row numbers in order, and answer *i* of the journal is that of row ``retried[i]``. ``sha256`` is of
    the kept lines, each with its newline.
    """

    lines: Iterable[bytes]
    retried: Sequence[int]
    sha256: str


def write_step(
    step_path: Path,
    lines: Iterable[bytes],
    journal: Journal,
    columns: Columns,
    media_key: str,
    drop: Collection[str] = frozenset(),
    *,
    sha256: str | None = None,
    kept: Kept | None = None,
) -> int:
    """Write row i with the answer of row i, for all rows, to ``step_path`` at once; returns the number of rows.

    ``drop`` names columns to take out first (`Columns.family` to overwrite), ``sha256`` is the hash that the scan of
    the input gave. With ``kept``, only the retried rows get an answer, and the others are the lines that they were:
    the same bytes, also when it is done twice; the file stays where links lead, with its mode. Raises FleetError, and
    leaves the file as it was, where an answer is missing, the input is another than the one scanned, the kept lines are
    others, or the disk is full.
    """
    digest, kept_digest = hashlib.sha256(), hashlib.sha256()
    rows = answered = 0
    standing = iter(()) if kept is None else iter(kept.lines)
    path, mode = (step_path, None) if kept is None else _where_it_stands(step_path)
    with atomic_write(path, mode=0o666 if mode is None else mode) as handle:
        if mode is not None:
            os.fchmod(handle.fileno(), mode)  # whatever the umask is now
        for line in lines:
            old = next(standing, b"") + b"\n"
            if kept is None or (answered < len(kept.retried) and kept.retried[answered] == rows):
                if answered == journal.rows:
                    raise _changed(step_path)
                try:
                    row = _with_answer(line, journal, answered, columns, media_key, drop)
                except (ValueError, LookupError, RecursionError):
                    if _is_row(line, media_key):  # then it is the answer's fault
                        raise
                    raise _changed(step_path) from None
                handle.write(row)
                answered += 1
            else:
                handle.write(old)
                kept_digest.update(old)
            digest.update(line + b"\n")
            rows += 1
        if answered != journal.rows or sha256 not in (None, digest.hexdigest()):
            raise _changed(step_path)
        if kept is not None and (kept_digest.hexdigest() != kept.sha256 or next(standing, None) is not None):
            raise FleetError(f"{step_path}: changed while its rows were done again: start over with --force")
    return rows


def _where_it_stands(step_path: Path) -> tuple[Path, int]:
    """The file that a step is, behind links, and its mode. Raises FleetError where it is gone."""
    try:
        path = step_path.resolve(strict=True)
        return path, stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise FleetError(f"{step_path}: cannot be read ({error.strerror}): was it removed?") from error


def picked(lines: Iterable[bytes], rows: Sequence[int]) -> Iterator[bytes]:
    """The lines of ``rows``, which are numbers in order."""
    wanted = iter(rows)
    next_row = next(wanted, None)
    for row, line in enumerate(lines):
        if next_row is None:
            return
        if row == next_row:
            yield line
            next_row = next(wanted, None)


def _with_answer(
    line: bytes, journal: Journal, number: int, columns: Columns, media_key: str, drop: Collection[str]
) -> bytes:
    """Raises ValueError, LookupError and RecursionError for a line that is none of those that were checked."""
    count = recording_count(line, media_key)
    return with_columns(line, columns.values(_items(journal, number, count), plain=count == 1), drop) + b"\n"


def _is_row(line: bytes, media_key: str) -> bool:
    try:
        row = json.loads(line, parse_int=float)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and media_key in row


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
    return FleetError(f"{step_path}: the input changed while the job ran: put it back, or start over with --force")
