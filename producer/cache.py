"""Step-indexed files: the names of a step, its job folder with its locks, and writes that are all or nothing.

{cache_path}/{prefix}_step{N}.jsonl       the step's rows, there only when complete
{cache_path}/{prefix}_step{N}.job/        the job that makes it (mode 0700):
    job.json                              what it does (`producer.header`)
    journal.jsonl                         the answers so far (`producer.journal`)
    parts.jsonl                           parts of answers, of long recordings (`producer.spans`)
    audio.jsonl                           size and time of each row's audio when the job began (`producer.audio_files`)
    retried.txt                           the rows that are being done again (`producer.retry`)
    stopped                               there when its producer was stopped on purpose (`producer.reconcile`)
    cancelled                             there when a person gave it up (`producer.cancel`)
    .beginning/                           the files of a job that begins in its place (`Step.begin`)
    {name}.lock                           who is at it (`FileLock`)
"""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
import time
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from producer.disk import disk_errors, fsync_folder
from producer.errors import UsageError
from producer.file_lock import FileLock
from producer.inputs import looking_at
from producer.locating import absolute

# A temporary file that nobody wrote to for this long was left by a killed process. Its process id proves nothing
# where containers share the folder.
_STALE_SECONDS = 3600.0

_STAGING = ".new-"

# The longest file name that Linux takes, less what a temporary name adds.
_MAX_NAME_BYTES = 255 - 32
# Control characters, line and paragraph separators, and bytes that are no UTF-8.
_NO_NAMES = frozenset({"Cc", "Cs", "Zl", "Zp"})


@dataclass(frozen=True, slots=True)
class Step:
    """The names of step ``number`` (from 1: step 0 is the input). A run at step k writes step k + 1.

    Raises UsageError for a prefix that is no file name, and for a folder whose name no message can carry.
    """

    cache_path: Path
    prefix: str
    number: int

    def __post_init__(self) -> None:
        if not self.prefix or any(one == "/" or unicodedata.category(one) in _NO_NAMES for one in self.prefix):
            raise UsageError(f"--prefix {self.prefix!r}: must be a file name without slashes or control characters")
        if not is_text(self.cache_path):
            raise UsageError(f"--cache-path {str(self.cache_path)!a}: not valid UTF-8: name another folder")
        if self.number < 1:
            raise UsageError(f"step {self.number}: steps that are written count from 1, step 0 is the input")
        if len(os.fsencode(self.path.name)) > _MAX_NAME_BYTES:
            raise UsageError(f"--prefix {self.prefix[:40]!r}...: too long for a file name")

    @classmethod
    def of(cls, path: Path) -> Step | None:
        """The step whose file (or job folder) ``path`` is named like one, None for any other name."""
        prefix, _, number = path.stem.rpartition("_step")
        named = prefix and number.isascii() and number.isdigit() and int(number)
        return cls(absolute(path.parent), prefix, int(number)) if named else None

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
        """The job's `producer.header.JobHeader`."""
        return self.job_path / "job.json"

    @property
    def journal_path(self) -> Path:
        """The job's `producer.journal.Journal`."""
        return self.job_path / "journal.jsonl"

    @property
    def parts_path(self) -> Path:
        """The job's `producer.spans.PartStore`."""
        return self.job_path / "parts.jsonl"

    @property
    def audio_path(self) -> Path:
        """Size and time of each row's audio: `producer.audio_files`."""
        return self.job_path / "audio.jsonl"

    @property
    def retried_path(self) -> Path:
        """The rows that are being done again: `producer.retry`."""
        return self.job_path / "retried.txt"

    @property
    def stopped_path(self) -> Path:
        """There while nobody is to send the job's rows: `producer.reconcile.producing`."""
        return self.job_path / "stopped"

    @property
    def cancelled_path(self) -> Path:
        """There while nobody is to send or collect the rows of the job that it names: `producer.cancel`."""
        return self.job_path / "cancelled"

    @property
    def beginning_path(self) -> Path:
        """The files of a job that begins here, until they are in their places: `begin`."""
        return self.job_path / ".beginning"

    def cancelled(self) -> str | None:
        """The id of the job that was given up, None where none was."""
        try:
            return self.cancelled_path.read_text(encoding="utf-8")
        except (OSError, ValueError):
            return None

    def lock(self, name: str) -> FileLock:
        """A lock of the job, not yet taken; the job folder must be there."""
        return FileLock(self.job_path / f"{name}.lock")

    @property
    def force_lock(self) -> FileLock:
        """Held while `--force` waits for the job's collector to give it back (`producer.standing`)."""
        return self.lock("force")

    def input_of(self, inputs: Sequence[Path]) -> list[Path]:
        """What this step reads: ``inputs`` for step 1, else the step before it.

        Raises UsageError where that is missing or cannot be seen, or this step would be written over its own input.
        """
        if self.number == 1:
            sources = list(inputs)
        else:
            sources = [Step(self.cache_path, self.prefix, self.number - 1).path]
            with looking_at(sources[0]):
                is_made = sources[0].is_file()
            if not is_made:
                raise UsageError(f"{sources[0]}: not there or not finished: run step {self.number - 2} first")
        if self.path.resolve() in {source.resolve() for source in sources}:
            raise UsageError(f"{self.path}: input and output are the same file: choose another --prefix or cache path")
        return sources

    def create_job_folder(self) -> None:
        """Make the job folder, for this user only."""
        with disk_errors(self.job_path):
            self.job_path.mkdir(mode=0o700, exist_ok=True)

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A folder for a new job's files until the old job's are forgotten; makes the job folder, gone afterwards."""
        self.create_job_folder()
        for left in self.job_path.glob(f"{_STAGING}*"):
            with suppress(OSError):
                if time.time() - max(path.stat().st_mtime for path in (left, *left.iterdir())) > _STALE_SECONDS:
                    shutil.rmtree(left, ignore_errors=True)
        with disk_errors(self.job_path):
            folder = Path(tempfile.mkdtemp(prefix=_STAGING, dir=self.job_path))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def begin(self, folder: Path) -> None:
        """Forget what the job is: from now on it is that of ``folder``, a `staging` with all its files, header too.

        Hold the job's locks. What a killed process leaves is the old job as it was, or what `end_beginning` completes.
        Raises FleetError where the disk fails.
        """
        with disk_errors(self.job_path):
            if self.beginning_path.exists():  # of one that was killed before it forgot the old job
                shutil.rmtree(self.beginning_path)
            folder.rename(self.beginning_path)
            fsync_folder(self.job_path)
            self._put_in_place()

    def is_beginning(self) -> bool:
        """Whether a job begins here, by somebody who holds the locks or was killed meanwhile."""
        begins = os.path.exists(self.beginning_path / self.header_path.name)  # noqa: PTH110 (False in another's folder)
        return begins and not self.header_path.exists()

    def end_beginning(self) -> None:
        """Do what is left of a `begin` that was cut short, if one was. Hold the job's locks."""
        if self.is_beginning():
            with disk_errors(self.job_path):
                self._put_in_place()

    def _put_in_place(self) -> None:
        """The old job's header goes first and the new one's comes last: without one, what is left to do is known."""
        if (self.beginning_path / self.audio_path.name).exists():  # the first to be moved
            self.forget()
        for path in (self.audio_path, self.journal_path, self.header_path):
            with suppress(FileNotFoundError):
                (self.beginning_path / path.name).replace(path)
        shutil.rmtree(self.beginning_path)
        fsync_folder(self.job_path)

    def forget(self) -> None:
        """Start over: remove what the job is. Hold the job's locks; these stay, and so does the step's file."""
        for path in (self.header_path, self.audio_path, self.retried_path, self.stopped_path, self.cancelled_path):
            path.unlink(missing_ok=True)
        self.forget_answers()

    def forget_answers(self) -> None:
        """Remove what has come of the job's rows. The next job counts its own from 0 and must not find these."""
        self.journal_path.unlink(missing_ok=True)
        self.parts_path.unlink(missing_ok=True)


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


def is_text(path: str | Path) -> bool:
    """Whether a path is valid UTF-8. Linux takes any bytes for a name; messages, headers and Redis take text."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


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
