"""One job of a size through a broker of its own: its processes, what each used, and the most that Redis held."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from benchmarks.corpus import REPOSITORY
from benchmarks.rows.parts import Figures
from producer.embedded import worker_command
from producer.processes import end, start_guarded
from producer.valkey import Valkey
from workers.presence import live_workers
from workers.redis_client import connect

#: Who answers the rows: a loop that does nothing else, or real workers with the stand-in engine.
AnsweredBy = Literal["loop", "fleet"]

POLL_SECONDS = 0.2
READY_SECONDS = 120.0
#: The recording that every row of a fleet's job names: the shortest of the repository's samples, or a part of it.
CLIP = REPOSITORY / "tests" / "samples" / "audio" / "en_train.flac"
#: As fast as a stand-in is: what a row costs a worker beside its engine.
WORKER = {"WHISPER_ENGINE": "standin", "WHISPER_STANDIN_ENCODE_MS": "0", "WHISPER_STANDIN_STEP_MS": "1"}


@dataclass(slots=True)
class Measured:
    """What one job took, by part (`benchmarks.rows.parts`), and the most memory that Redis used, in bytes."""

    rows: int
    answered_by: AnsweredBy
    input_bytes: int
    parts: dict[str, Figures] = field(default_factory=dict)
    redis_peak_bytes: int = 0


class PartFailedError(Exception):
    """A part of the job ended with an error; the message holds its last words."""


def measure(rows: int, answered_by: AnsweredBy, workers: int = 1) -> Measured:
    """Run a job of so many rows, each about 150 bytes, from its input to its step file."""
    folder = Path(tempfile.mkdtemp(prefix="bench-rows-"))
    try:
        source = folder / "rows.jsonl"
        write_rows(source, rows, clip=answered_by == "fleet")
        measured = Measured(rows, answered_by, source.stat().st_size)
        with _parts(folder) as start:
            measured.parts["bare"] = _wait(start("bare", str(source), str(folder / "copy.jsonl")))
        (folder / "copy.jsonl").unlink()
        with Valkey(folder / "valkey") as valkey, _fleet(folder, valkey, answered_by, workers):
            with _parts(folder, valkey.url) as start:
                parts = {
                    "enqueue": start("enqueue", str(source), str(folder)),
                    "collect": start("collect", str(folder / "rows_step1.jsonl")),
                }
                others = [start("answer")] if answered_by == "loop" else []
                for name, part in parts.items():
                    measured.parts[name] = _wait(part, *parts.values(), *others)
            with contextlib.closing(connect(valkey.url)) as redis:
                measured.redis_peak_bytes = int(redis.info("memory")["used_memory_peak"])
        _check(folder / "rows_step1.jsonl", rows)
        return measured
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_rows(path: Path, rows: int, *, clip: bool) -> None:
    """An input of ``rows`` rows; ``clip``: their audio exists, and is a part of a second of the same recording."""
    with path.open("w", encoding="utf-8") as out:
        for row in range(rows):
            audio = f'"{CLIP}", "end_s": 0.5' if clip else f'"audio/{row // 1000:05}/{row:08}.flac"'
            out.write(
                f'{{"id": {10**15 + row}, "audio": {audio}, "speaker": "s{row % 977:04}", "split": "train", '
                f'"license": "CC BY 4.0", "gain": -1.50, "note": "größer"}}\n'
            )


@dataclass(frozen=True, slots=True)
class _Part:
    name: str
    process: subprocess.Popen[bytes]
    log_path: Path


class _Starter:
    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._environment = dict(environment)
        self.started: list[_Part] = []

    def __call__(self, name: str, *arguments: str) -> _Part:
        log_path = self._folder / f"{name}.log"
        command = [sys.executable, "-m", "benchmarks.rows.parts", name, *arguments]
        part = _Part(name, start_guarded(command, self._environment, log_path), log_path)
        self.started.append(part)
        return part


@contextlib.contextmanager
def _parts(folder: Path, url: str | None = None) -> Iterator[_Starter]:
    """Starts parts (on the broker at ``url``), and ends those that are left."""
    starter = _Starter(folder, _environment(url))
    try:
        yield starter
    finally:
        for part in starter.started:
            end(part.process, 5.0)


def _wait(part: _Part, *others: _Part) -> Figures:
    """The figures of a part that has ended. Raises PartFailedError when it, or one of ``others``, failed."""
    while part.process.poll() is None and not any(other.process.poll() for other in others):
        time.sleep(POLL_SECONDS)
    for one in (part, *others):
        if one.process.poll():
            said = one.log_path.read_text(errors="replace")
            raise PartFailedError(f"{one.name} ended with code {one.process.poll()}: {said[-2000:]}")
    return Figures(**json.loads(part.log_path.read_text().splitlines()[-1]))


@contextlib.contextmanager
def _fleet(folder: Path, valkey: Valkey, answered_by: AnsweredBy, workers: int) -> Iterator[None]:
    """Workers with the stand-in engine, ready, where a fleet is to answer."""
    processes = []
    try:
        for number in range(1, workers + 1 if answered_by == "fleet" else 1):
            command, log_path = worker_command(f"rows{number}@%h"), folder / f"worker-{number}.log"
            processes.append(start_guarded(command, {**_environment(valkey.url), **WORKER}, log_path))
        deadline = time.monotonic() + READY_SECONDS
        with contextlib.closing(connect(valkey.url)) as redis:
            while len(live_workers(redis)) < len(processes):
                if time.monotonic() > deadline or any(process.poll() is not None for process in processes):
                    said = (folder / "worker-1.log").read_text(errors="replace")
                    raise PartFailedError(f"a worker did not start: {said[-2000:]}")
                time.sleep(POLL_SECONDS)
        yield
    finally:
        for process in processes:
            end(process, 20.0)


def _environment(url: str | None = None) -> dict[str, str]:
    """The environment of this process without any setting of its own, with ``url`` as the broker."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WHISPER_", "REDIS_URL"))}
    path = os.pathsep.join((str(REPOSITORY), *filter(None, (kept.get("PYTHONPATH"),))))
    return {**kept, "PYTHONPATH": path, **({"REDIS_URL": url} if url else {})}


def _check(step_path: Path, rows: int) -> None:
    """Raise PartFailedError unless the step file has all rows, none of them failed."""
    found = failed = 0
    with step_path.open("rb") as lines:
        for line in lines:
            found += 1
            failed += b'"transcription_error"' in line
    if (found, failed) != (rows, 0):
        raise PartFailedError(f"{step_path.name}: {found} rows instead of {rows}, {failed} of them failed")
