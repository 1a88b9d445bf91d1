"""A fleet of stand-in workers whose engines, and not this machine's cores, set the pace; and its jobs.

A row is a second of speech: its message, decoding, voice activity, window and answer are real, and cost about 6 ms of a
core in all. An engine with `SPEED` takes 22 rows a second, so that four workers keep less than half of a core busy with
rows. Where a machine is too slow for that, `busy_share` in a report says so: the figure is then one of the machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import soundfile

from benchmarks.facts import REPOSITORY
from producer.embedded import EmbeddedFleet
from producer.opening import open_job
from producer.registry import Progress
from producer.run import RunOptions, reach, run_job
from producer.spec import JobSpec
from workers.messages import Task
from workers.settings import load_settings

SAMPLE = REPOSITORY / "tests" / "samples" / "audio" / "en_train.flac"
CLIP_SECONDS = 1.0
#: Eight windows are decoded together, each in 20 steps of 10 ms; encoding one takes 20 ms, during which none moves:
#: 8 windows in 20 x 10 + 8 x 20 ms.
SPEED: Mapping[str, str] = {
    "WHISPER_ENGINE": "standin",
    "WHISPER_MAX_NUM_SEQS": "8",
    "WHISPER_CONCURRENCY": "5",  # four for bulk messages
    "WHISPER_DECODE_PROCESSES": "1",
    "WHISPER_STANDIN_ENCODE_MS": "20",
    "WHISPER_STANDIN_STEP_MS": "10",
    "WHISPER_STANDIN_STEPS": "20",
}
MODEL_CACHE = "WHISPER_MODEL_CACHE"


def write_clip(folder: Path) -> Path:
    """A second of speech."""
    samples, rate_hz = soundfile.read(SAMPLE, dtype="float32")
    path = folder / "clip.wav"
    soundfile.write(path, samples[: round(CLIP_SECONDS * rate_hz)], rate_hz)
    return path


def write_rows(path: Path, clip: Path, rows: int) -> Path:
    """An input of ``rows`` rows."""
    line = json.dumps({"audio": str(clip), "language": "en"}) + "\n"
    with path.open("w", encoding="utf-8") as file:
        for _ in range(rows):
            file.write(line)
    return path


@contextlib.contextmanager
def standin_fleet(folder: Path, workers: int, environment: Mapping[str, str] = SPEED) -> Iterator[EmbeddedFleet]:
    """A private Valkey and ``workers`` workers, ready. Raises FleetError."""
    with without_settings(), EmbeddedFleet(folder, workers=workers, environment=environment) as fleet:
        fleet.wait_ready(reach(fleet.url))
        yield fleet


@dataclass(slots=True)
class Clock:
    """Takes the place of a job's display: notes when its first answers came."""

    first: float | None = None
    #: (`time.monotonic`, rows answered) at each look.
    seen: list[tuple[float, int]] = field(default_factory=list)
    #: Set from another thread: the job ends with an error instead of going on.
    stopped: bool = False

    @property
    def answered(self) -> int:
        """Rows, at the last look."""
        return self.seen[-1][1] if self.seen else 0

    def begin(self, task: Task) -> None:
        """Nothing is shown."""

    def waiting(self, what: str) -> None:
        """Nothing is shown."""

    def progress(self, progress: Progress) -> None:
        """Note the time. Raises RuntimeError once ``stopped``."""
        if self.stopped:
            raise RuntimeError("the job was stopped")
        now = time.monotonic()
        if progress.answered and self.first is None:
            self.first = now
        self.seen.append((now, progress.answered))


@dataclass(frozen=True, slots=True)
class JobRun:
    """A job's rows, and its seconds from its input to its step file."""

    rows: int
    seconds: float
    seen: list[tuple[float, int]]

    @property
    def rows_per_second(self) -> float:
        """Without the workers' start-up."""
        return self.rows / self.seconds


def run_rows(url: str, source: Path, cache: Path, clock: Clock | None = None, window_rows: int | None = None) -> JobRun:
    """One job on a fleet that is ready. Raises FleetError, and RuntimeError where a row did not succeed."""
    began = time.monotonic()
    job = open_job(JobSpec((str(source),), cache_path=str(cache)))
    clock = clock or Clock()
    settings = load_settings(REDIS_URL=url, window_rows=window_rows)
    done = run_job(job, RunOptions(), settings, clock)  # type: ignore[arg-type]
    ended = time.monotonic()
    progress = done.progress()
    if progress.failed:
        raise RuntimeError(f"{progress.failed} of {progress.rows} rows failed: {dict(progress.reasons)}")
    return JobRun(progress.rows, ended - began, clock.seen)


@contextlib.contextmanager
def busy_cores() -> Iterator[dict[str, float]]:
    """``share``, when the block has ended: how much of this machine's cores was busy in it, 0 to 1."""
    found: dict[str, float] = {}
    psutil.cpu_percent()
    yield found
    found["share"] = round(psutil.cpu_percent() / 100, 3)


@contextlib.contextmanager
def without_settings() -> Iterator[None]:
    """The user's settings are for the user's fleet, but for where models are kept."""
    names = [name for name in os.environ if name.startswith(("WHISPER_", "REDIS_URL")) and name != MODEL_CACHE]
    kept = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(kept)
