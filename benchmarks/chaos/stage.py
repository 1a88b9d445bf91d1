"""The processes of one job, started as users start them, and started again as a service manager or a user would.

Every part is a `whisper-fleet` command. Services (worker, collector) are started again whenever they end; commands
(enqueue, run) are repeated until they end with 0, as the README says that users may.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import psutil

from benchmarks.chaos import left_over, witness
from benchmarks.corpus import REPOSITORY
from producer.errors import FleetError
from producer.processes import start_guarded
from producer.valkey import Valkey
from workers.presence import live_workers
from workers.redis_client import connect

#: A part that ended is started again after so long.
AGAIN_SECONDS = 2.0
POLL_SECONDS = 0.1
#: Workers answer within seconds once the job is done; a drain takes at most WHISPER_DRAIN_SECONDS, 60 by default.
STOP_SECONDS = 90.0
#: A Python that imports its first modules knows no signals yet; a busy machine takes long over it.
LISTEN_SECONDS = 60.0

TITLES = {"decode process": "decode", "engine process": "VLLM::EngineCore", "rank": "VLLM::Worker"}


class NotReadyError(Exception):
    """The fleet of a fault did not come up; the message says which part and where its log is."""


@dataclass(slots=True)
class Part:
    """One command, and its process while it runs. ``ends``: the exit codes so far."""

    name: str
    arguments: Sequence[str]
    is_service: bool
    log_path: Path
    process: subprocess.Popen[bytes]
    ends: list[int] = field(default_factory=list)
    next_start: float = 0.0

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self.process.poll() is None


class Stage:
    """A broker, unless every `run` brings its own, and the parts of one job. Use as a context manager.

    Nothing of it outlives the context, also when something in it fails; ``left`` says what would have.
    """

    def __init__(self, folder: Path, cache: Path, settings: Mapping[str, str], *, has_broker: bool) -> None:
        self.folder = folder
        self.cache = cache
        self.parts: list[Part] = []
        self.witness_path = folder / "witness.log"
        self._settings = dict(settings)
        self._mark = f"{os.getpid()}-{folder.name}"
        self._temporary = folder / "tmp"
        self._temporary.mkdir()
        self._shared_before = left_over.shared_memory()
        self._stack = contextlib.ExitStack()
        self._valkey = Valkey(folder / "valkey", port=_free_port()) if has_broker else None

    def __enter__(self) -> Stage:
        self._stack.enter_context(left_over.marked(self._mark))
        self._stack.callback(left_over.kill, self._mark, self.folder)
        if self._valkey is not None:
            self._stack.callback(self._valkey.stop)
            self._valkey.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(psutil.Error, FleetError):
            self.valkey.resume()
        self._stack.close()
        for part in self.parts:
            part.process.wait()

    @property
    def url(self) -> str:
        """The shared broker."""
        if self._valkey is None:
            raise ValueError("every run of this stage has a broker of its own")
        return self._valkey.url

    @property
    def valkey(self) -> psutil.Process:
        """The broker's process: the shared one, or that of the first `run`."""
        if self._valkey is not None:
            return psutil.Process(self._valkey.pid)
        return self._only(lambda process: "valkey" in process.name(), "Valkey")

    def start_valkey(self) -> None:
        """Start the broker again, on the data that had reached the disk."""
        if self._valkey is not None:
            self._valkey.start()

    def start_worker(self, *arguments: str) -> None:
        """Start a worker; ``wait_ready`` waits for its engine."""
        number = len(self.named("worker")) + 1
        self._start("worker", ["worker", "--name", f"worker{number}@%h", *arguments], is_service=True)

    def start_collector(self) -> None:
        """Start a collector of all jobs."""
        self._start("collector", ["collect"], is_service=True)

    def start_producer(self, command: str, source: Path, *arguments: str) -> None:
        """Start ``enqueue`` or ``run`` on an input."""
        self._start(command, [command, str(source), "--cache-path", str(self.cache), *arguments], is_service=False)

    def named(self, name: str) -> list[Part]:
        """The parts of one kind."""
        return [part for part in self.parts if part.name == name]

    def wait_ready(self, workers: int, seconds: float) -> None:
        """Wait until so many workers have loaded their engines. Raises NotReadyError."""
        deadline = time.monotonic() + seconds
        with contextlib.closing(connect(self.url)) as redis:
            while len(live_workers(redis)) < workers:
                for part in self.named("worker"):
                    if not part.running:
                        raise NotReadyError(f"a worker ended with {part.process.returncode}: see {part.log_path}")
                if time.monotonic() > deadline:
                    raise NotReadyError(f"not {workers} workers after {seconds:.0f} s: see {self.folder}")
                time.sleep(POLL_SECONDS)

    def keep_up(self) -> None:
        """Start again what ended and has not done its work."""
        for part in self.parts:
            if part.running:
                continue
            if part.next_start == 0.0:
                part.ends.append(part.process.returncode)
                part.next_start = time.monotonic() + AGAIN_SECONDS
            if (part.is_service or part.ends[-1] != 0) and time.monotonic() >= part.next_start:
                part.process = self._spawn(part.arguments, part.log_path)
                part.next_start = 0.0

    def commands_done(self) -> bool:
        """Whether every command that is no service ended with 0."""
        return all(part.process.poll() == 0 for part in self.parts if not part.is_service)

    def sightings(self) -> witness.Sightings:
        """What the workers wrote down so far."""
        return witness.read(self.witness_path)

    def worker_processes(self) -> list[psutil.Process]:
        """The processes that hold the engines (not their supervisors), in order of their start."""
        return self._processes(lambda process: process.pid in self.sightings().workers)

    def children(self, kind: str) -> list[psutil.Process]:
        """Processes of a kind in TITLES."""
        return self._processes(lambda process: TITLES[kind] in " ".join(process.cmdline()))

    def stop(self) -> list[str]:
        """End everything as an operator does, and say what is left, a line each."""
        for part in self.parts:
            if _listening(part):
                part.process.send_signal(signal.SIGTERM)
        for part in self.parts:
            self._wait_for_end(part)
        if self._valkey is not None:
            self._valkey.stop()
        return left_over.find(self._mark, self.folder, self._temporary, self._shared_before)

    def _wait_for_end(self, part: Part) -> None:
        """A second SIGTERM would mean something else than the first: what does not end is killed."""
        noted = not part.running and part.next_start != 0.0
        try:
            code = part.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            part.process.kill()
            code = part.process.wait()
        if not noted:
            part.ends.append(code)

    def _start(self, name: str, arguments: Sequence[str], *, is_service: bool) -> None:
        log_path = self.folder / f"{name}-{len(self.named(name)) + 1}.log"
        self.parts.append(Part(name, arguments, is_service, log_path, self._spawn(arguments, log_path)))

    def _spawn(self, arguments: Sequence[str], log_path: Path) -> subprocess.Popen[bytes]:
        return start_guarded([sys.executable, "-m", "producer", *arguments], self._environment(), log_path)

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("WHISPER_", "REDIS_URL"))}
        cache = os.environ.get("WHISPER_MODEL_CACHE")
        return {
            **kept,
            **({"WHISPER_MODEL_CACHE": cache} if cache else {}),
            **self._settings,
            **({"REDIS_URL": self.url} if self._valkey is not None else {}),
            "TMPDIR": str(self._temporary),
            "CHAOS_WITNESS": str(self.witness_path),
            "CELERY_WORKER_INCLUDE": "benchmarks.chaos.in_worker",
            "PYTHONPATH": str(REPOSITORY),
            # A process that names itself would write over the mark in its environment.
            "SPT_NOENV": "1",
        }

    def _processes(self, wanted: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
        found = []
        for process in left_over.processes(self._mark, self.folder):
            with contextlib.suppress(psutil.Error):
                if wanted(process):
                    found.append((process.create_time(), process.pid, process))
        return [process for _, _, process in sorted(found, key=lambda one: one[:2])]

    def _only(self, wanted: Callable[[psutil.Process], bool], what: str) -> psutil.Process:
        found = self._processes(wanted)
        if not found:
            raise FleetError(f"no {what} is running")
        return found[0]


def _listening(part: Part) -> bool:
    """Whether a part runs, once it has come so far as to handle SIGTERM: one started again just now has not.

    `whisper-fleet worker` does once it has started its worker; before, it ends as any command does, with 143.
    """
    deadline = time.monotonic() + LISTEN_SECONDS
    while part.running and time.monotonic() < deadline:
        with contextlib.suppress(OSError, psutil.Error):
            begun = part.name != "worker" or psutil.Process(part.process.pid).children()
            caught = re.search(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{part.process.pid}/status").read_text(), re.MULTILINE)
            if begun and caught and int(caught[1], 16) >> (signal.SIGTERM - 1) & 1:
                break
        time.sleep(POLL_SECONDS)
    return part.running


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
