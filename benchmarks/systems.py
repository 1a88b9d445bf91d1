"""The three systems under test, each with the same weights and the language given, one after another.

Groups of clips go in one at a time, so that each has a wall time of its own. Starting up, loading the model and a first
recording are outside every clock. What is inside differs a little:

=================  ====================================================================================================
``fleet``          messages, decoding of the files, voice activity, the engine, the journal and the step file
``bare``           log-mel and the engine; files are decoded and split before the clock starts
``faster-whisper`` decoding of the files, voice activity, log-mel and the model
=================  ====================================================================================================
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.corpus import REPOSITORY, Clip
from producer.display import Display
from producer.embedded import EmbeddedFleet, end, start_guarded
from producer.opening import open_job
from producer.run import RunOptions, reach, run_job
from producer.spec import JobSpec
from workers.device import CPU_SEQS
from workers.dtype import engine_dtype
from workers.models import BUNDLED, Quantization
from workers.settings import Settings, load_settings

SystemName = Literal["fleet", "bare", "faster-whisper"]
SYSTEMS: tuple[SystemName, ...] = ("fleet", "bare", "faster-whisper")
#: The baselines run in processes of their own: `python -m` these.
MODULES = {"bare": "benchmarks.bare_vllm", "faster-whisper": "benchmarks.faster_whisper_baseline"}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a system said about one clip. ``error`` is a type, ``details`` the fleet's own figures."""

    text: str = ""
    error: str | None = None
    details: dict[str, Any] = field(default_factory=dict)
    segments: list[dict[str, Any]] | None = None

    @property
    def flags(self) -> list[str]:
        """The fleet's flags."""
        return list(self.details.get("flags") or ())

    @property
    def retried(self) -> bool:
        """Whether any of it was decoded more than once."""
        return bool((self.details.get("temperature") or 0) > 0 or (self.details.get("attempts") or 1) > 1)


@dataclass(frozen=True, slots=True)
class GroupRun:
    """One group's answers by clip key, the seconds they took and the seconds of audio."""

    answers: Mapping[str, Answer]
    wall_seconds: float
    audio_seconds: float

    @property
    def speed(self) -> float:
        """Seconds of audio per second."""
        return self.audio_seconds / self.wall_seconds if self.wall_seconds else 0.0


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """What the fleet's engine and the bare one have in common: by default what a worker takes on this machine."""

    max_num_seqs: int = CPU_SEQS
    quantization: Quantization = "none"
    dtype: str = field(default_factory=engine_dtype)

    @property
    def environment(self) -> dict[str, str]:
        """The settings of both."""
        return {
            "WHISPER_MODEL": BUNDLED,
            "WHISPER_DTYPE": self.dtype,
            "WHISPER_MAX_NUM_SEQS": str(self.max_num_seqs),
            "WHISPER_QUANTIZATION": self.quantization,
        }

    @property
    def options(self) -> dict[str, Any]:
        """For a report."""
        return {"model": BUNDLED} | asdict(self)


Groups = Mapping[str, Sequence[Clip]]
Runs = dict[str, GroupRun]


class FleetUnderTest:
    """A private Valkey and workers, as `whisper-fleet run` starts them, for several jobs of `whisper-fleet run`."""

    def __init__(self, url: str, folder: Path) -> None:
        self._settings: Settings = load_settings(REDIS_URL=url)
        self._folder = folder
        self._jobs = 0

    def run(self, clips: Sequence[Clip], *, timestamps: bool = False) -> GroupRun:
        """One job over ``clips``, with details. The clock runs from the JSONL file to the step file."""
        self._jobs += 1
        name = f"job{self._jobs}"
        source = self._folder / f"{name}.jsonl"
        rows = ({"audio": str(clip.path), "language": clip.language} for clip in clips)
        source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        spec = JobSpec((str(source),), details=True, timestamps=timestamps, cache_path=str(self._folder / "steps"))
        with Display() as display:
            began = time.monotonic()
            job = open_job(spec)
            job = run_job(job, RunOptions(), self._settings, display)
            wall_seconds = time.monotonic() - began
        with job.step.path.open(encoding="utf-8") as lines:
            answers = [_fleet_answer(json.loads(line)) for line in lines]
        return _group_run(clips, answers, wall_seconds)


@contextmanager
def fleet(folder: Path, engine: EngineChoice, workers: int = 1) -> Iterator[FleetUnderTest]:
    """A fleet with its engines loaded; several workers share the cores out among them. Raises FleetError."""
    folder.mkdir(parents=True)
    with EmbeddedFleet(folder / "fleet", workers=workers, environment=engine.environment) as running:
        running.wait_ready(reach(running.url))
        yield FleetUnderTest(running.url, folder)


def run_baseline(system: SystemName, groups: Groups, folder: Path, engine: EngineChoice) -> Runs:
    """A baseline's answers for all groups, from a process of its own that ends with this one.

    ``engine`` is for vLLM's: faster-whisper has its own way.

    Raises RuntimeError with the end of its log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    request, response, log = (folder / f"{system}-{part}" for part in ("request.json", "response.json", "log.txt"))
    asked = {
        name: [{"key": clip.key, "path": str(clip.path), "language": clip.language} for clip in clips]
        for name, clips in groups.items()
    }
    request.write_text(json.dumps(asked), encoding="utf-8")
    environment = {**os.environ, **engine.environment, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", MODULES[system], str(request), str(response)]
    process = start_guarded(command, environment, log)
    try:
        code = process.wait()
    finally:
        end(process, grace_seconds=10.0)
    if code != 0 or not response.exists():
        raise RuntimeError(f"{system} ended with code {code}: {log.read_text(errors='replace')[-2000:]}")
    answered = json.loads(response.read_text(encoding="utf-8"))
    return {
        name: _group_run(clips, [Answer(**answer) for answer in answered[name]["answers"]], answered[name]["seconds"])
        for name, clips in groups.items()
    }


def serve_baseline(transcribe: Callable[[list[dict[str, str]]], tuple[list[Answer], float]]) -> None:
    """The other side of `run_baseline`: ``transcribe`` answers a group's clips and says how many seconds it took."""
    request, response = map(Path, sys.argv[1:])
    answered = {}
    for name, clips in json.loads(request.read_text(encoding="utf-8")).items():
        answers, seconds = transcribe(clips)
        answered[name] = {"answers": [asdict(answer) for answer in answers], "seconds": seconds}
    partial = response.with_suffix(".partial")
    partial.write_text(json.dumps(answered), encoding="utf-8")
    shutil.move(partial, response)


def _group_run(clips: Sequence[Clip], answers: Sequence[Answer], wall_seconds: float) -> GroupRun:
    by_key = {clip.key: answer for clip, answer in zip(clips, answers, strict=True)}
    return GroupRun(by_key, wall_seconds, sum(clip.seconds for clip in clips))


def _fleet_answer(row: dict[str, Any]) -> Answer:
    error = row.get("transcription_error")
    return Answer(
        text=row["transcription"] or "",
        error=error["type"] if error else None,
        details=row.get("transcription_details") or {},
        segments=row.get("transcription_segments"),
    )
