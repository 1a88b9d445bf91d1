"""Answers of an earlier step for audio that has not changed since: what ``--reuse`` takes instead of sending it.

A row's audio is unchanged where the same files are named, with the same options of the row, and have the size and
modification time that they had when the earlier job began (`producer.audio_files`). Rows in which anything failed,
URLs, and files that this machine cannot look at are sent.

The earlier step's rows are found by a fingerprint in a temporary SQLite file beside the new job's: 40 bytes of disk
and none of memory a row (its cache is 64 MiB).
"""

from __future__ import annotations

import codecs
import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

from producer.audio_files import Stamp, line_of, read_stamps
from producer.cache import Step
from producer.columns import Columns
from producer.errors import FleetError, UsageError
from producer.header import JobHeader, changed
from producer.journal import Journal
from producer.rows import record_of, recording_count
from workers.messages import Failure, Record

#: What must be the same, beside the task, for an answer to be the same.
SAME_OPTIONS = ("language", "prompt", "channels", "timestamps", "details", "model")

#: Answers that are put on the disk together.
_BATCH_ROWS = 5000


@dataclass(frozen=True, slots=True)
class OldStep:
    """A finished step whose answers may be taken."""

    step: Step
    header: JobHeader

    @property
    def columns(self) -> Columns:
        """The columns that it added."""
        return Columns.of(self.header.options)


def open_old(path: Path, new: JobHeader) -> OldStep:
    """The step file at ``path`` for a job like ``new``. Raises UsageError where its answers would not be the same."""
    step = Step.of(path)
    header = None if step is None else JobHeader.read(step.header_path)
    if step is None or header is None:
        raise UsageError(f"--reuse {path}: no step file of a job: its job folder {path.stem}.job must lie beside it")
    if not (header.complete or header.retry):
        raise UsageError(
            f"--reuse {path}: not finished: run the command that makes it, without --force, to its end first"
        )
    if not step.path.exists():
        raise UsageError(f"--reuse {path}: not there any more: put it back, or leave out --reuse")
    if not step.audio_path.exists():
        raise UsageError(
            f"--reuse {path}: made by a version that did not record sizes and times of the audio: leave out --reuse"
        )
    found = [changed("task", header.task, new.task)] if header.task != new.task else []
    for name in SAME_OPTIONS:
        if header.option(name) != new.option(name):
            found.append(changed(name, header.option(name), new.option(name)))
    if found:
        raise UsageError(
            f"--reuse {path}: made with other options: {'; '.join(found)}. Use the same ones, or leave out --reuse"
        )
    return OldStep(step, header)


def take(
    old: OldStep,
    records: Iterable[tuple[int, Record | Failure]],
    stamps: Iterable[list[Stamp]],
    journal: Journal,
    index_path: Path,
) -> None:
    """Put the answers of ``old`` for all unchanged ``records`` into ``journal``.

    ``index_path`` is used for a temporary file. Raises FleetError where the disk is full or a file is damaged.
    """
    try:
        with closing(sqlite3.connect(index_path)) as index, old.step.path.open("rb") as lines:
            _fill(index, old)
            answers = _answers(old, index, lines, records, stamps)
            while batch := list(islice(answers, _BATCH_ROWS)):
                journal.append(batch)
    except sqlite3.Error as error:
        raise FleetError(f"{index_path}: {error}: free some space and run the same command") from error
    finally:
        index_path.unlink(missing_ok=True)


def _answers(
    old: OldStep,
    index: sqlite3.Connection,
    lines: Any,
    records: Iterable[tuple[int, Record | Failure]],
    stamps: Iterable[list[Stamp]],
) -> Iterator[bytes]:
    for (row, record), found in zip(records, stamps, strict=True):
        key = _fingerprint(record, found)
        hit = None if key is None else index.execute("select offset from rows where key = ?", (key,)).fetchone()
        if hit is not None:
            lines.seek(hit[0])
            items = _items(old, _row_of(lines.readline()))
            yield json.dumps({"row": row, "items": items, "reused": True}).encode("ascii")


def _fill(index: sqlite3.Connection, old: OldStep) -> None:
    index.execute("pragma journal_mode = off")  # a crash leaves nothing that anybody reads
    index.execute("pragma synchronous = off")
    index.execute("pragma cache_size = -65536")  # in KiB
    index.execute("create table rows (key blob primary key, offset integer) without rowid")
    index.executemany("insert or ignore into rows values (?, ?)", _fingerprints(old))


def _fingerprints(old: OldStep) -> Iterator[tuple[bytes, int]]:
    """The fingerprint of each row in which nothing failed, and where its line starts."""
    media_key, root, columns = old.header.options["media_key"], old.header.audio_root, old.columns
    stamps = read_stamps(old.step.audio_path)
    row = offset = 0
    with old.step.path.open("rb") as lines:
        for raw in lines:
            line = _row_of(raw)
            if line:
                row += 1
                found = next(stamps, None)
                if found is None and row <= old.header.rows:
                    raise FleetError(f"{old.step.audio_path}: ends before its step file: this step cannot be reused")
                if found is not None and not _has_failed(columns, line):
                    key = _fingerprint(record_of(row - 1, line, media_key, root), found)
                    if key is not None:
                        yield key, offset
            offset += len(raw)
    if row != old.header.rows:  # the rows are others' now
        raise FleetError(f"{old.step.path}: has {row} rows, not {old.header.rows}: this step cannot be reused")


def _row_of(line: bytes) -> bytes:
    """A line as other readers of rows have it (`producer.inputs`): without a mark of UTF-8; empty where it is blank."""
    return line.removeprefix(codecs.BOM_UTF8).strip()


def _has_failed(columns: Columns, line: bytes) -> bool:
    """Whether a row has an error; one that is no row of ours has."""
    try:
        return columns.may_have_failed(line) and json.loads(line, parse_int=float)[columns.error_column] is not None
    except KeyError:  # the name of the column is in a text
        return False
    except (ValueError, TypeError):
        return True


def _fingerprint(record: Record | Failure, stamps: list[Stamp]) -> bytes | None:
    """Equal where record and files are; None where there is none or a file is not known."""
    if isinstance(record, Failure) or not stamps or None in stamps:
        return None
    text = record.model_dump_json(exclude={"row"}, exclude_defaults=True).encode() + line_of(stamps)
    return blake2b(text, digest_size=16).digest()


def _items(old: OldStep, line: bytes) -> list[dict[str, Any]]:
    recordings = recording_count(line, old.header.options["media_key"])
    try:
        # Integers as they are, but those of a passed-through column that int() refuses.
        row = json.loads(line, parse_int=lambda text: int(text) if len(text) < 20 else float(text))
        items = old.columns.items(row, plain=recordings == 1)
    except (ValueError, LookupError, TypeError):
        items = []
    if len(items) != recordings:
        raise FleetError(f"{old.step.path}: changed by another program: this step cannot be reused")
    return items
