"""The input files of a step: found, decompressed, and read line by line."""

from __future__ import annotations

import glob
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from producer.errors import UsageError

#: A longer line is taken for a file that is no JSON Lines, before it fills the memory.
MAX_LINE_BYTES = 256 * 2**20

# fmt: off
_AUDIO_SUFFIXES = frozenset((
    ".aac", ".aif", ".aiff", ".amr", ".au", ".flac", ".m4a", ".mka", ".mkv", ".mov", ".mp3", ".mp4", ".mpga", ".oga",
    ".ogg", ".opus", ".wav", ".weba", ".webm", ".wma",
))
# fmt: on
_TABLE_SUFFIXES = frozenset((".jsonl", ".json", ".ndjson"))
_COMPRESSED_SUFFIXES = frozenset((".gz", ".zst"))
_DATAFLOW_SUFFIXES = frozenset((".csv", ".parquet", ".pq", ".pickle", ".pkl"))
_OTHER_PACKERS = frozenset((".bz2", ".xz", ".zip", ".lz4", ".7z"))
_SPACE_BYTES = b" \t\n\r"
#: A redirected file, too, is there for this command alone: not for a collector, and not for a later command.
_ENDS_WITH_COMMAND = ("/dev/stdin", "/dev/fd/", "/proc/")


def expand_inputs(inputs: Sequence[str]) -> list[Path]:
    """The input files, globs (``**`` too) replaced by their files in name order.

    Raises UsageError for nothing found, a file named twice, something that is no JSON Lines file or cannot be seen.
    """
    found: list[Path] = []
    for name in inputs:
        with looking_at(name):
            found.extend(_named(name))
    if not found:
        raise UsageError("no input: name at least one JSONL file")
    seen: set[Path] = set()
    for path in found:
        _check_is_table(path)
        if path.resolve() in seen:
            raise UsageError(f"{path}: named twice: name each input file once")
        seen.add(path.resolve())
    return found


def _named(name: str) -> list[Path]:
    if Path(name).exists() or not glob.has_magic(name):
        return [Path(name)]
    names = sorted(glob.glob(name, recursive=True))  # noqa: PTH207 (Path.glob takes no absolute pattern)
    matches = [path for path in map(Path, names) if not path.is_dir()]
    if not matches:
        raise UsageError(f"{name}: no file matches this pattern")
    return matches


@contextmanager
def looking_at(path: str | Path) -> Iterator[None]:
    """Turn what a folder that this user may not enter says, or a name that is too long, into a UsageError."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None


def _check_is_table(path: Path) -> None:
    suffix = path.suffix.lower()
    if suffix in _AUDIO_SUFFIXES:
        line = json.dumps({"audio": str(path.absolute())}, ensure_ascii=False)
        raise UsageError(f"{path}: an audio file, not a list of them: put this line into a .jsonl file: {line}")
    if path.is_dir():
        raise UsageError(f"{path}: a folder: name the files, as in '{path / '*.jsonl'}'")
    if not path.exists():
        raise UsageError(f"{path}: no such file")
    if not path.is_file() or str(path.absolute()).startswith(_ENDS_WITH_COMMAND):
        raise UsageError(f"{path}: not a regular file: it is read more than once, so write it to a file first")
    if suffix in _OTHER_PACKERS:
        raise UsageError(f"{path}: only .gz and .zst are read: unpack it first")
    if suffix in _DATAFLOW_SUFFIXES:
        raise UsageError(f"{path}: only JSON Lines are read here: write it as .jsonl, or use producer.dataflow for it")


def default_prefix(paths: Sequence[Path]) -> str:
    """The name of the step files when none is given: the input's name without its suffixes."""
    if len(paths) != 1:
        raise UsageError("several inputs: name the step files with --prefix")
    name = paths[0]
    for suffixes in (_COMPRESSED_SUFFIXES, _TABLE_SUFFIXES):
        if name.suffix.lower() in suffixes:
            name = name.with_suffix("")
    return name.name


class _ZstdReader(io.RawIOBase):
    """Decompressed bytes of a .zst file with any number of frames. A cut file is an error, as it is with gzip."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._frame: Any = None
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            data = self._source.read(2**16)
            if not data:
                if self._frame is not None:
                    raise EOFError("the file ends in the middle of a frame")
                return 0
            self._ready = memoryview(self._decompress(data))
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def _decompress(self, data: bytes) -> bytes:
        parts = []
        while data:
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            parts.append(self._frame.decompress(data))
            data = b""
            if self._frame.eof:
                data, self._frame = self._frame.unused_data, None
        return b"".join(parts)

    def close(self) -> None:
        self._source.close()
        super().close()


def _open_rows(path: Path) -> io.BufferedReader:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return io.BufferedReader(gzip.GzipFile(path, "rb"), 2**18)
    source = path.open("rb")
    return io.BufferedReader(_ZstdReader(source), 2**18) if suffix == ".zst" else source


def iter_lines(paths: Sequence[Path]) -> Iterator[tuple[Path, int, bytes]]:
    """Each row with its file and its line number (from 1), without the white space around it.

    Blank lines are no rows. Raises UsageError for a file that cannot be read or is cut or damaged.
    """
    for path in paths:
        number = 0
        try:
            with _open_rows(path) as handle:
                while line := handle.readline(MAX_LINE_BYTES + 1):
                    number += 1
                    if len(line) > MAX_LINE_BYTES:
                        raise UsageError(f"{path}:{number}: longer than {MAX_LINE_BYTES} bytes: write one row per line")
                    if number == 1:
                        line = line.removeprefix(b"\xef\xbb\xbf")
                    line = line.strip(_SPACE_BYTES)
                    if line:
                        yield path, number, line
        except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
            raise UsageError(f"{path}: damaged or cut after line {number} ({error}): make the file again") from None
        except OSError as error:
            raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from None


def read_rows(paths: Sequence[Path], limit: int | None = None) -> Iterator[bytes]:
    """The rows alone, at most ``limit`` of them: what `scan` counted, in the same order."""
    return (line for _, _, line in islice(iter_lines(paths), limit))


def stamp_of(inputs: Sequence[str | Path]) -> tuple[tuple[int, int, int] | None, ...]:
    """What changes when somebody writes to these files: number, size and time of each; None for one that is gone."""
    found: list[tuple[int, int, int] | None] = []
    for path in inputs:
        try:
            told = Path(path).stat()
            found.append((told.st_ino, told.st_size, told.st_mtime_ns))
        except OSError:
            found.append(None)
    return tuple(found)
