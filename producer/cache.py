"""Step-indexed files: the names of a step, its job folder with header and locks, and writes that are all or nothing.

{cache_path}/{prefix}_step{N}.jsonl       the step's rows, there only when complete
{cache_path}/{prefix}_step{N}.job/        the job that makes it (mode 0700):
    job.json                              what it does (`JobHeader`)
    journal.jsonl                         the answers so far (`producer.journal`)
    {name}.lock                           who is at it (`FileLock`)
"""

from __future__ import annotations

import errno
import fcntl
import glob
import json
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO

from producer.errors import FleetError, UsageError

#: Version of job.json; a change that older code would misread raises it.
HEADER_VERSION = 1

#: Options that came later, and what a job does whose header does not name them.
LATER_OPTIONS: dict[str, Any] = {"channels": "mix", "prompt": None}

#: What a full or failing disk says; the run ends with one line and can be resumed. EFBIG is a file-size limit.
DISK_ERRORS = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)
)

# A temporary file that nobody wrote to for this long was left by a killed process. Its process id proves nothing
# where containers share the folder.
_STALE_SECONDS = 3600.0

# The longest file name that Linux takes, less what a temporary name adds.
_MAX_NAME_BYTES = 255 - 32


@dataclass(frozen=True, slots=True)
class Step:
    """The names of step ``number`` (from 1: step 0 is the input). A run at step k writes step k + 1.

    Raises UsageError for a prefix that is no file name.
    """

    cache_path: Path
    prefix: str
    number: int

    def __post_init__(self) -> None:
        if not self.prefix or "/" in self.prefix or not self.prefix.isprintable():
            raise UsageError(f"--prefix {self.prefix!r}: must be a file name without slashes")
        if self.number < 1:
            raise UsageError(f"step {self.number}: steps that are written count from 1, step 0 is the input")
        if len(os.fsencode(self.path.name)) > _MAX_NAME_BYTES:
            raise UsageError(f"--prefix {self.prefix[:40]!r}...: too long for a file name")

    @property
    def path(self) -> Path:
        """The step's file."""
        return self.cache_path / f"{self.prefix}_step{self.number}.jsonl"

    @property
    def job_path(self) -> Path:
        """The folder of the job that makes it."""
        return self.cache_path / f"{self.prefix}_step{self.number}.job"

    @property
    def header_path(self) -> Path:
        """The job's `JobHeader`."""
        return self.job_path / "job.json"

    @property
    def journal_path(self) -> Path:
        """The job's `producer.journal.Journal`."""
        return self.job_path / "journal.jsonl"

    def lock(self, name: str) -> FileLock:
        """A lock of the job, not yet taken; the job folder must be there."""
        return FileLock(self.job_path / f"{name}.lock")

    def input_of(self, inputs: Sequence[Path]) -> list[Path]:
        """What this step reads: ``inputs`` for step 1, else the step before it.

        Raises UsageError where that is missing, or where this step would be written over its own input.
        """
        if self.number == 1:
            sources = list(inputs)
        else:
            sources = [Step(self.cache_path, self.prefix, self.number - 1).path]
            if not sources[0].is_file():
                raise UsageError(f"{sources[0]}: not there or not finished: run step {self.number - 2} first")
        if self.path.resolve() in {source.resolve() for source in sources}:
            raise UsageError(f"{self.path}: input and output are the same file: choose another --prefix or cache path")
        return sources

    def create_job_folder(self) -> None:
        """Make the job folder, for this user only."""
        with disk_errors(self.job_path):
            self.job_path.mkdir(mode=0o700, exist_ok=True)

    def forget(self) -> None:
        """Start over: remove journal and header. Hold the job's locks; these stay, and so does the step's file."""
        for path in (self.journal_path, self.header_path):
            path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class JobHeader:
    """What a job does, as job.json says it: same header, same job. Times are ISO 8601, ``bytes`` are decompressed."""

    id: str
    created: str
    inputs: list[str]
    rows: int
    bytes: int
    sha256: str
    task: str
    options: dict[str, Any]
    audio_root: str
    output: str
    complete: bool = False
    summary: dict[str, Any] | None = None
    version: int = field(default=HEADER_VERSION)

    def option(self, name: str) -> Any:
        """An option of the job; headers of older versions do not name all of them."""
        return self.options.get(name, LATER_OPTIONS.get(name))

    def write(self, path: Path) -> None:
        """Write the header in one step, readable by this user only."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=True)
        with atomic_write(path, mode=0o600) as handle:
            handle.write(text.encode("ascii") + b"\n")

    @classmethod
    def read(cls, path: Path) -> JobHeader | None:
        """The header at ``path``, None where there is none. Raises UsageError for one that this version cannot read."""
        try:
            data = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            data = None
        if not isinstance(data, dict):
            raise UsageError(f"{path}: damaged: start over with --force")
        if data.get("version") != HEADER_VERSION:
            raise UsageError(
                f"{path}: of another version of whisper-fleet ({data.get('version')!r}, this one reads "
                f"{HEADER_VERSION}): finish it with that one, or start over with --force"
            )
        if set(data) != {item.name for item in fields(cls)}:
            raise UsageError(f"{path}: damaged: start over with --force")
        return cls(**data)


def differences(old: JobHeader, new: JobHeader) -> list[str]:
    """What would make ``new`` another job than ``old``, in words; empty where it resumes."""
    found = []
    if old.sha256 != new.sha256:
        size = "" if old.rows == new.rows else f", {old.rows} rows then, {new.rows} now"
        found.append(f"the input has changed (content hash{size})")
    if old.task != new.task:
        found.append(f"task was {old.task!r}, now {new.task!r}")
    if old.audio_root != new.audio_root:
        found.append(f"audio root was {old.audio_root!r}, now {new.audio_root!r}")
    for name in {**old.options, **new.options}:
        before, now = old.option(name), new.option(name)
        if before != now:
            found.append(f"{name.replace('_', ' ')} was {_word(before)}, now {_word(now)}")
    return found


def _word(value: Any) -> str:
    words: dict[Any, str] = {None: "not set", True: "on", False: "off"}
    return words[value] if value is None or isinstance(value, bool) else repr(value)


class FileLock:
    """A lock that ends with its process: `flock`, on a file that says who holds it and is never removed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    def acquire(self) -> bool:
        """Take the lock; False where another process (or another FileLock) holds it. Never waits."""
        if self._fd is not None:
            return True
        with disk_errors(self.path):
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Known only to people: a full disk must not keep a job from being locked.
            with suppress(OSError):
                os.ftruncate(fd, 0)
                os.pwrite(fd, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        except BlockingIOError:
            os.close(fd)
            return False
        except OSError as error:
            os.close(fd)
            raise FleetError(f"{self.path}: cannot be locked ({error.strerror}): use another cache path") from error
        self._fd = fd
        return True

    def holder(self) -> str:
        """Who took the lock last, for messages: ``process 12 on host``."""
        try:
            data = json.loads(self.path.read_bytes())
            return f"process {data['pid']} on {data['host']}"
        except (OSError, ValueError, LookupError, TypeError):
            return "another process"

    def release(self) -> None:
        """Give the lock back; nothing where it is not held."""
        if self._fd is not None:
            fcntl.flock(self._fd, fcntl.LOCK_UN)  # closing alone leaves it with a forked child
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


@contextmanager
def atomic_write(path: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A file that is at ``path`` as a whole and on the disk when the block ends, or not at all when it raises.

    ``mode`` is less the umask. Raises FleetError where the disk is full or fails.
    """
    _remove_stale(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(3).hex()}.tmp")
    with disk_errors(path):
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            with os.fdopen(fd, "wb", buffering=2**20) as handle:
                yield handle
                handle.flush()
                os.fsync(handle.fileno())
            temporary.replace(path)
            fsync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _remove_stale(path: Path) -> None:
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                left.unlink()


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the errors of a full, failing or forbidden disk into a FleetError of one line; others pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = "free some space" if full else "make it writable"
        raise FleetError(f"{path}: cannot be written ({error.strerror}): {advice} and run the same command") from error


def fsync_folder(path: Path) -> None:
    """Put a folder's new and renamed entries on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def check_writable(cache_path: Path) -> None:
    """Make the cache folder and write to it, before anything is enqueued. Raises UsageError where that fails."""
    try:
        cache_path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache_path) as handle:
            handle.write(b"\n")
            handle.flush()
    except OSError as error:
        raise UsageError(
            f"{cache_path}: cannot be written ({error.strerror}): name another folder with --cache-path"
        ) from error
