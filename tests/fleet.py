"""Real parts for tests: a private Valkey, real worker processes, and the command line as a user runs it.

Everything started here ends with the test, also when it fails, and (by the parent-death signal) with pytest.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import psutil
from redis import Redis

from producer.embedded import Valkey, end, start_guarded, worker_command
from workers.presence import Presence, live_workers
from workers.redis_client import connect

Value = TypeVar("Value")
CLI = [sys.executable, "-m", "producer"]
#: Loading a real engine takes about a minute on a busy machine of two cores.
READY_SECONDS = 300.0


class Fleet:
    """A Valkey on a port of its own, and the workers that a test starts on it."""

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self._environment = dict(environment or {})
        self.valkey = Valkey(folder / "valkey", port=free_port())
        self.workers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Fleet:
        self.valkey.start()
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            end(worker, 20.0)
        self.valkey.stop()

    @property
    def url(self) -> str:
        return self.valkey.url

    def kill_valkey(self) -> None:
        """SIGKILL, as an outage; ``valkey.start()`` ends it, with the data that had reached the disk."""
        process = psutil.Process(self.valkey.pid)
        process.kill()
        process.wait(20)

    @property
    def redis(self) -> Redis:
        return connect(self.url)

    def environment(self, **changes: str) -> dict[str, str]:
        """This process's environment without any setting of its own, and with this fleet's broker."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("WHISPER_", "REDIS_URL"))}
        cache = os.environ.get("WHISPER_MODEL_CACHE")
        return {
            **kept,
            **({"WHISPER_MODEL_CACHE": cache} if cache else {}),
            **self._environment,
            "REDIS_URL": self.url,
            **changes,
        }

    def start_worker(self, *arguments: str, wait: bool = True, **changes: str) -> subprocess.Popen[bytes]:
        """Start a worker process; by default wait until its engine is loaded."""
        number = len(self.workers) + 1
        name = f"test{number}@%h"
        process = start_guarded(worker_command(name, *arguments), self.environment(**changes), self.log_path(number))
        self.workers.append(process)
        if wait:
            self.wait_for_workers(number)
        return process

    def log_path(self, number: int = 1) -> Path:
        return self.folder / f"worker-{number}.log"

    def wait_for_workers(self, count: int) -> list[Presence]:
        """Until so many workers have loaded their engines, and hear what is told to all."""

        def present() -> list[Presence]:
            for number, worker in enumerate(self.workers, start=1):
                assert worker.poll() is None, self.log_path(number).read_text()[-4000:]
            found = live_workers(self.redis)
            return found if len(found) >= count and listeners(self.redis) >= count else []

        return wait_for(present, READY_SECONDS)

    def cli(
        self, *arguments: str, cwd: Path | None = None, timeout: float = 300, **changes: str
    ) -> subprocess.CompletedProcess[str]:
        """Run ``whisper-fleet`` on this fleet to its end."""
        return run_cli(*arguments, environment=self.environment(**changes), cwd=cwd, timeout=timeout)

    def start_cli(self, *arguments: str, cwd: Path | None = None, **changes: str) -> subprocess.Popen[str]:
        """Start ``whisper-fleet`` on this fleet; the caller ends it (see `ended`)."""
        return subprocess.Popen(
            [*CLI, *arguments],
            env=self.environment(**changes),
            cwd=cwd,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )


def listeners(redis: Redis) -> int:
    """How many connections Redis tells what is published: one a worker and receiver of events.

    A worker shows itself as soon as its engine is loaded, a moment before it listens.
    """
    return sum(int(client["psub"]) > 0 for client in redis.client_list(_type="pubsub"))


def run_cli(
    *arguments: str, environment: Mapping[str, str], cwd: Path | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run ``whisper-fleet`` to its end."""
    return subprocess.run(
        [*CLI, *arguments], env=dict(environment), cwd=cwd, text=True, capture_output=True, timeout=timeout, check=False
    )


def clean_environment(**changes: str) -> dict[str, str]:
    """This process's environment without settings of the fleet: `run` starts a fleet of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WHISPER_", "REDIS_URL"))}
    return {**kept, **changes}


@contextlib.contextmanager
def environment_kept() -> Iterator[None]:
    """Whatever the block sets in this process's environment, or takes out of it, is as before when it ends."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextlib.contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """``process``, gone when the block ends."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def gone(pid: int) -> bool:
    """Whether a process has ended. Nobody may be there to ask after the children of one that was killed."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def still_running(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that have not ended. (One that nobody has waited for yet has.)"""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def wait_for(condition: Callable[[], Value], seconds: float = 60.0) -> Value:
    """Call ``condition`` until it gives something true; fails after ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {condition}"
        time.sleep(0.05)


def free_port() -> int:
    """A port that nobody listens on now."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
