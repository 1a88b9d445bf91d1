"""What the audio of each row was when its job began: size and modification time, so that a change is seen later.

audio.jsonl has a line a row: ``[[size, mtime_ns], null]`` with an entry a recording, null for what this machine cannot
look at (a URL, a file that only the workers see). Rows that ask for nothing have ``[]``.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from producer.cache import atomic_write
from producer.errors import FleetError
from workers.messages import Failure, Record

#: Size in bytes and modification time in nanoseconds, None where unknown.
Stamp = tuple[int, int] | None

#: Files are looked at by so many threads, because on network storage each look is a wait.
_THREADS = 16
_ROWS_A_THREAD = 64

_ENCODER = json.JSONEncoder(separators=(",", ":"))


def stamped(records: Iterable[Record | Failure]) -> Iterator[tuple[Record | Failure, list[Stamp]]]:
    """Each record with the stamps of its recordings, in order; a few thousand rows are in memory."""
    records = iter(records)
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="stat") as pool:
        while block := list(islice(records, _THREADS * _ROWS_A_THREAD)):
            shares = [block[start : start + _ROWS_A_THREAD] for start in range(0, len(block), _ROWS_A_THREAD)]
            for share, stamps in zip(shares, pool.map(_stamps, shares), strict=True):
                yield from zip(share, stamps, strict=True)


def write_stamps(path: Path, stamps: Iterable[Sequence[Stamp]]) -> None:
    """Write the stamps of all rows at once. Raises FleetError where the disk is full or fails."""
    with atomic_write(path, mode=0o600) as handle:
        for row in stamps:
            handle.write(line_of(row))


def line_of(stamps: Sequence[Stamp]) -> bytes:
    """A row's line."""
    return _ENCODER.encode(stamps).encode("ascii") + b"\n"


def read_stamps(path: Path) -> Iterator[list[Stamp]]:
    """The stamps of each row, as they were. Raises FleetError for a damaged line."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield [None if stamp is None else (stamp[0], stamp[1]) for stamp in json.loads(line)]
            except (ValueError, TypeError, LookupError):
                raise FleetError(f"{path}:{number}: damaged: this step cannot be reused") from None


def _stamps(records: list[Record | Failure]) -> list[list[Stamp]]:
    return [[] if isinstance(record, Failure) else list(map(_stamp, record.sources)) for record in records]


def _stamp(source: str) -> Stamp:
    if not source.startswith("/"):  # records name files by their whole path, everything else is a URL
        return None
    try:
        found = os.stat(source)  # noqa: PTH116 (Path would cost as much as the look)
    except (OSError, ValueError):
        return None
    return (found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None
