"""A whole fleet on this machine for the length of one command: a private Valkey and local workers.

Everything it starts ends with it: on success, on errors, on Ctrl-C, and (by a parent-death signal) when this process
is killed. Valkey listens on a unix socket only, with a random password, and keeps an append-only file in the job's
folder.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from redis import Redis
from redis.exceptions import RedisError

from producer.errors import FleetError, UsageError
from producer.processes import end, last_line, log_lines, start_guarded
from producer.restarts import Restarts
from producer.shares import Share, shares
from producer.valkey import Valkey, binary
from workers import device
from workers.errors import ModelLoadError
from workers.exit_codes import CANNOT_START_WORDS
from workers.presence import Presence, live_workers
from workers.settings import Settings, load_settings, variable
from workers.startup import in_words, starting_workers

__all__ = ["EmbeddedFleet", "Valkey", "check_engine", "check_machine", "end", "start_guarded", "worker_command"]

log = logging.getLogger(__name__)

#: After SIGTERM a worker has its drain time and this much more before it is killed.
GRACE_SECONDS = 20.0
#: vLLM's words for what one of its processes has said, and how an error of it looks in the log.
ABOVE = "See root cause above. "
_CAUSE = re.compile(r"\b[\w.]*(?:Error|Exception): .+")


class EmbeddedFleet:
    """A private Valkey and ``workers`` local workers. Use as a context manager; ``wait_ready`` before sending work.

    Several workers share the machine's cores or GPUs out among them. A worker that fails after it had started is
    started again, up to ``restarts`` times in a row. Raises what `check_machine` does.
    """

    def __init__(
        self, folder: Path, *, workers: int = 1, environment: Mapping[str, str] | None = None, restarts: int = 10
    ) -> None:
        self._folder = folder
        self._count = workers
        self._environment = dict(environment or {})
        self._shares = check_machine(workers, self._environment)
        self._valkey = Valkey(folder / "valkey")
        self._workers: list[subprocess.Popen[bytes]] = []
        self._restarts = [Restarts(restarts) for _ in range(workers)]
        #: When each worker was started, and when one that failed is started again (`time.monotonic`).
        self._began: dict[int, float] = {}
        self._due: dict[int, float] = {}
        #: Sizes of the workers' logs before this run: what an earlier one complained of is over.
        self._log_starts: dict[int, int] = {}

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

    def wait_ready(self, redis: Redis, waiting: Callable[[str], None] = lambda what: None) -> list[Presence]:
        """Wait until every worker has loaded its engine; ``waiting`` is told what they do meanwhile, and how long.

        Raises FleetError with the worker's own words when one ends instead.
        """
        began = time.monotonic()
        while True:
            self.check()
            doing = ""
            with contextlib.suppress(RedisError):  # it is started again
                present = live_workers(redis)
                if len(present) >= self._count:
                    return present
                doing = doing or in_words(starting_workers(redis))
            waiting(f"{doing or self._first_words()} ({time.monotonic() - began:.0f} s)")
            time.sleep(0.2)

    def _first_words(self) -> str:
        workers = "a local worker" if self._count == 1 else f"{self._count} local workers"
        return f"starting {workers}, log in {self.log_path()}"

    def check(self) -> None:
        """Start what has ended again: Valkey at once, a worker when it is time. Raises FleetError for the hopeless."""
        self._valkey.revive()
        for number, worker in enumerate(self._workers, start=1):
            code = worker.poll()
            if code is not None and self._has_ended_for_good(number, code):
                path = self.log_path(number)
                why = _why(path, self._log_starts[number])
                raise FleetError(f"the local worker ended with code {code}: {why} (see {path})")

    def _has_ended_for_good(self, number: int, code: int) -> bool:
        now = time.monotonic()
        if number not in self._due:
            pause = self._restarts[number - 1].pause_seconds(code, now - self._began[number])
            if pause is None:
                return True
            path = self.log_path(number)
            log.warning("the local worker ended with code %d; starting it again in %.0f s (see %s)", code, pause, path)
            self._due[number] = now + pause
        elif now >= self._due[number]:
            del self._due[number]
            self._workers[number - 1] = self._start_worker(number)
        return False

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
        share = self._shares[number - 1]
        environment = {**os.environ, **share.environment, **self._environment, "REDIS_URL": self.url}
        path = self.log_path(number)
        self._log_starts.setdefault(number, path.stat().st_size if path.exists() else 0)
        self._began[number] = time.monotonic()
        return start_guarded(worker_command(f"worker{number}@%h"), environment, path, cores=share.cores)


def check_machine(workers: int, environment: Mapping[str, str]) -> list[Share]:
    """What of this machine each worker of an own fleet would have; starts nothing.

    Raises FleetError where it has no Valkey, UsageError where it has no engine or no room for so many, and
    SettingsError for a wrong ``environment``.
    """
    settings = _settings(environment)
    binary()
    check_engine(settings)
    return shares(workers, settings)


def check_engine(settings: Settings) -> None:
    """Raise UsageError where no worker of this machine could load an engine, for want of its packages."""
    try:
        device.check_engine(settings)
    except ModelLoadError as error:
        raise UsageError(str(error)) from None


def _settings(environment: Mapping[str, str]) -> Settings:
    """Those of a worker that is told ``environment`` too, as far as they say what of the machine it takes."""
    names = ("tensor_parallel_size", "cpu_threads_bind", "gpu_memory_utilization", "engine")
    told = {name: environment.get(variable(name)) for name in names}
    return load_settings(**{name: value for name, value in told.items() if value is not None})


def worker_command(name: str = "worker@%h", *extra: str) -> list[str]:
    """The Celery command of one worker on both queues. Gossip and mingle only cost Redis memory here."""
    return [
        *(sys.executable, "-P", "-m", "workers", "worker", "-Q", "transcribe,translate"),
        *("-n", name, "--without-gossip", "--without-mingle", "-l", "INFO", *extra),
    ]


def _why(path: Path, start: int) -> str:
    """The worker's own reason: what it said last of why it cannot start, or else its last line.

    Where vLLM's is that of one of its processes, which it leaves to the log: that too.
    """
    lines = log_lines(path, start)
    for number, line in reversed(list(enumerate(lines))):
        if CANNOT_START_WORDS in line:
            why = line.partition(CANNOT_START_WORDS)[2]
            causes = [found[0] for one in lines[:number] if "root cause" not in one and (found := _CAUSE.search(one))]
            return f"{why.partition(ABOVE)[0]}{causes[-1]}" if ABOVE in why and causes else why
    return last_line(lines)
