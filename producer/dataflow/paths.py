"""Where the steps of a pipeline lie, and in which format.

{cache_path}/{prefix}_step{N}.{cache_type}    the table of step N; step 0 is the first entry's own file
{cache_path}/{prefix}_step{N}.job/            jsonl: the job that makes it (`producer.cache`)
{cache_path}/{prefix}_step{N}.rows/           other formats: the audio and options of each row and the job on them
"""

from __future__ import annotations

import glob
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from producer.cache import Step
from producer.dataflow import pickles
from producer.disk import disk_errors
from producer.errors import UsageError

log = logging.getLogger(__name__)

Format = Literal["json", "jsonl", "csv", "parquet", "pickle"]
FORMATS: tuple[Format, ...] = get_args(Format)

_SUFFIXES: dict[str, Format] = {
    **{f".{name}": name for name in FORMATS},
    ".ndjson": "jsonl",
    ".pq": "parquet",
    ".pkl": "pickle",
}
_PACKED = (".gz", ".zst")
_REMOTE = ("hf:", "ms:")


@dataclass(frozen=True, slots=True)
class Table:
    """A table on disk. ``path`` may be a glob where ``format`` is jsonl."""

    path: str
    format: Format

    @classmethod
    def first_entry(cls, name: str) -> Table:
        """The table that a pipeline begins with. Raises UsageError for what is none, or is not on this machine."""
        if name.startswith(_REMOTE):
            raise UsageError(f"first_entry_file_name {name!r}: only files are read: save the dataset as .jsonl first")
        path = Path(name)
        is_packed = path.suffix.lower() in _PACKED
        suffix = (path.with_suffix("") if is_packed else path).suffix.lower()
        kind = _SUFFIXES.get(suffix)
        if kind is None or (is_packed and kind != "jsonl"):
            known = ", ".join(sorted(_SUFFIXES))
            raise UsageError(f"first_entry_file_name {name!r}: its name must end with one of {known} (.jsonl.gz, .zst)")
        if not path.exists() and not (kind == "jsonl" and glob.has_magic(name)):
            raise UsageError(f"{name}: no such file (relative paths start at {Path.cwd()})")
        return cls(name, kind)

    def check_there(self) -> Table:
        """Raises UsageError where no operator has written the table yet."""
        if not Path(self.path).is_file():
            raise UsageError(f"{self.path}: no such file: the operator of the step before has to write it first")
        return self


def rows_folder(path: Path) -> Path:
    """Where an operator keeps its rows and their job when the table at ``path`` is no jsonl."""
    return path.with_suffix(".rows")


@contextmanager
def set_aside(path: Path) -> Iterator[None]:
    """Move a transcription at ``path`` and its job away, so that another operator may write there; back if it fails.

    Raises UsageError while its job is running.
    """
    step, folders = Step.of(path), [path.with_suffix(".job"), rows_folder(path)]
    if step is None or not any(folder.exists() for folder in folders):
        yield
        return
    for maker in (step, Step(folders[1], "rows", 1)):
        for lock in (maker.lock("producer"), maker.lock("collector")) if maker.job_path.exists() else ():
            with lock:
                if not lock.acquire():
                    raise UsageError(f"{path}: {lock.holder()} is working on it: stop that one first")
    number = 1
    while (target := path.with_name(f"{path.stem}.before{number}{path.suffix}")).exists():
        number += 1
    places = {
        path: target,
        pickles.signature_path(path): pickles.signature_path(target),
        **{folder: target.with_suffix(folder.suffix) for folder in folders},
    }
    moved = {old: new for old, new in places.items() if old.exists()}
    with disk_errors(path):
        for old, new in moved.items():
            old.rename(new)
    try:
        yield
    except BaseException:
        for old, new in moved.items():
            new.rename(old)
        raise
    log.warning("%s: a transcription was there, it is now %s", path, target)
