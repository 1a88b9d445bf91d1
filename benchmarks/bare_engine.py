"""The baseline's engine, in a process of its own (`benchmarks.bare_windows`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.corpus import REPOSITORY, Clip
from benchmarks.heard_windows import Part
from benchmarks.systems import EngineChoice
from producer.processes import end, last_line, log_lines
from workers.guard import guarded_command


class BareEngine:
    """The process of `benchmarks.bare_windows`: one answer a line."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process = process
        self._log = log
        #: Of each recording the windows that a worker asks for.
        self.parts: list[list[Part]] = json.loads(self._line())

    def begin(self, order: Sequence[int], *, only_cut: bool = False) -> None:
        """Have it decode the windows of these clips, without those that are heard on where ``only_cut``."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{json.dumps([list(order), only_cut])}\n")
        self._process.stdin.flush()

    def answer(self) -> float:
        """Seconds of its `LLM.generate`, when that is over. Raises RuntimeError with the end of its log."""
        return float(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the bare engine ended: {last_line(log_lines(self._log))}")
        return line


def generate(engines: Sequence[BareEngine], order: Sequence[int], *, only_cut: bool = False) -> float:
    """The clips decoded by all engines at once, dealt out in turn; seconds of the slowest. Raises RuntimeError."""
    for number, engine in enumerate(engines):
        engine.begin(order[number :: len(engines)], only_cut=only_cut)
    return max(engine.answer() for engine in engines)


@contextmanager
def bare_engine(
    clips: Sequence[Clip],
    folder: Path,
    engine: EngineChoice,
    cores: Sequence[int] | None = None,
    *,
    untuned: bool = False,
    parts: Sequence[Sequence[Part]] | None = None,
) -> Iterator[BareEngine]:
    """The baseline with its engine loaded and its windows cut, on all cores or on these. Raises RuntimeError.

    ``untuned``: vLLM as it starts by itself (`benchmarks.untuned`). ``parts``: those of another over the same clips;
    it finds them itself otherwise, in about the time that the clips take.
    """
    folder.mkdir(parents=True)
    request, log = folder / "request.json", folder / "log.txt"
    recordings = [[str(clip.path), clip.language] for clip in clips]
    request.write_text(json.dumps({"recordings": recordings, "parts": parts}), encoding="utf-8")
    arguments = ["benchmarks.bare_windows", str(request), *(["--untuned"] if untuned else [])]
    command = guarded_command(os.getpid(), [sys.executable, "-m", *arguments], cores)
    environment = {**os.environ, **engine.environment, "PYTHONPATH": str(REPOSITORY)}
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    try:
        yield BareEngine(process, log)
    finally:
        if process.stdin is not None:
            process.stdin.close()  # its loop ends with its input
        end(process, grace_seconds=30.0)
