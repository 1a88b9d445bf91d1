"""`python -m benchmarks.efficiency`: the fleet, from JSONL to step file, against its own engine given all at once.

Pairs of runs over the same clips, in turn. ``bare``: one `LLM.generate` over the windows that the fleet cuts, with the
worker's engine arguments, sampling and decode rules; reading the files and voice activity are outside its clock,
log-mel is inside. ``fleet``: a job on a worker that is ready; files, voice activity, retries, journal and merge count.
faster-whisper (int8, all cores) runs once, in the middle. Start-up is in no figure.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from benchmarks import corpus
from benchmarks.bars import Bar
from benchmarks.outcome import RESULTS, report
from benchmarks.systems import DTYPE, MAX_NUM_SEQS, fleet, run_baseline
from producer.processes import end, last_line, log_lines
from tests.asterisk import LANGUAGES, FetchError
from workers.models import BUNDLED

CLIPS, ROUNDS = 300, 5
ASTERISK_WORDS = 1000
#: Least speed of the fleet, as a multiple of the other's.
BARS = {"bare": 1.0, "faster-whisper": 1.8}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    clips: Annotated[int, typer.Option(min=2, help="Recordings, evenly chosen from all that there are.")] = CLIPS,
    rounds: Annotated[int, typer.Option(min=1, help="Pairs of runs; the median is reported.")] = ROUNDS,
    corpus_folder: Annotated[
        Path | None,
        typer.Option("--corpus", help=f"Folder of recordings, as in the quality benchmark ({corpus.CORPUS_VARIABLE})."),
    ] = None,
    results_folder: Annotated[Path, typer.Option("--results", help="Folder of the JSON report.")] = RESULTS,
) -> None:
    """Measure audio seconds per second with whisper-base. Exit code 1 if a bar is missed."""
    try:
        chosen = _clips(corpus.find_corpus(corpus_folder), clips)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    seconds = sum(clip.seconds for clip in chosen)
    runs: list[dict[str, Any]] = []

    def note(system: str, wall_seconds: float) -> None:
        speed = round(seconds / wall_seconds, 3)
        runs.append({"system": system, "wall_seconds": round(wall_seconds, 2), "speed": speed})
        typer.echo(f"{system}: {seconds:.0f} s of audio in {wall_seconds:.1f} s, {speed:.2f} a second", err=True)

    with tempfile.TemporaryDirectory(prefix="bench-efficiency-") as temporary:
        work = Path(temporary)
        with fleet(work / "fleet") as running, bare_engine(chosen, work) as bare:
            for turn in range(rounds):
                for system in ("fleet", "bare") if turn % 2 == 0 else ("bare", "fleet"):
                    if system == "bare":
                        note(system, bare.generate())
                    else:
                        note(system, running.run(chosen).wall_seconds)
                if turn == rounds // 2:
                    whisper = run_baseline("faster-whisper", {"all": chosen}, work)["all"]
                    note("faster-whisper", whisper.wall_seconds)
            windows = bare.windows
    found = summary(runs)
    options = {"model": BUNDLED, "dtype": DTYPE, "max_num_seqs": MAX_NUM_SEQS, "rounds": rounds}
    facts = {"clips": len(chosen), "windows": windows, "audio_seconds": round(seconds, 1)}
    judged = [
        Bar(f"speed of the fleet to that of {name}", found["ratios"][name], bar, True) for name, bar in BARS.items()
    ]
    whole = (clips, rounds) == (CLIPS, ROUNDS) and len(chosen) >= CLIPS
    report("efficiency", options | facts, judged, found | {"runs": runs}, [_table(found)], results_folder, whole=whole)


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Median speeds by system, and the fleet's as a multiple of the others': of pairs the median of their ratios."""
    speeds: dict[str, list[float]] = {}
    for run in runs:
        speeds.setdefault(run["system"], []).append(run["speed"])
    pairs = [fast / slow for fast, slow in zip(speeds["fleet"], speeds["bare"], strict=True)]
    middle = {system: statistics.median(own) for system, own in speeds.items()}
    return {
        "speeds": middle,
        "ratios": {
            "bare": round(statistics.median(pairs), 3),
            "faster-whisper": round(middle["fleet"] / middle["faster-whisper"], 3),
        },
        "pairs": [round(ratio, 3) for ratio in pairs],
    }


class BareEngine:
    """The process of `benchmarks.bare_windows`: one answer a line."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process = process
        self._log = log
        self.windows = int(self._answer())

    def generate(self) -> float:
        """Decode all windows; seconds of `LLM.generate`. Raises RuntimeError with the end of its log."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return float(self._answer())

    def _answer(self) -> float:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the bare engine ended: {last_line(log_lines(self._log))}")
        return float(line)


@contextmanager
def bare_engine(clips: Sequence[corpus.Clip], work: Path) -> Iterator[BareEngine]:
    """The baseline with its engine loaded and its windows cut. Raises RuntimeError."""
    request, log = work / "bare.json", work / "bare.log"
    request.write_text(json.dumps([[str(clip.path), clip.language] for clip in clips]), encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.bare_windows", str(request)]
    environment = {**os.environ, "PYTHONPATH": str(corpus.REPOSITORY)}
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


def _clips(folder: Path | None, count: int) -> list[corpus.Clip]:
    """Recordings with speech: those of the corpus folder, and Asterisk's telephone prompts."""
    found = [clip for clip in corpus.folder_clips(folder) if clip.group == "speech"] if folder else []
    for language in LANGUAGES:
        taken = [clip.path.stem for clip in found if clip.key.startswith(f"audio/asterisk/{language}/")]
        try:
            found += corpus.asterisk_clips(language, ASTERISK_WORDS, taken)
        except FetchError as error:
            typer.echo(f"left out: {error}", err=True)
    return [found[index] for index in corpus.spread(len(found), min(count, len(found)))]


def _table(found: dict[str, Any]) -> Table:
    table = Table("system", title="Seconds of audio per second, start-up excluded")
    for name in ("audio s/s", "fleet to it"):
        table.add_column(name, justify="right")
    for system, speed in found["speeds"].items():
        ratio = found["ratios"].get(system)
        table.add_row(system, f"{speed:.2f}", "" if ratio is None else f"{ratio:.2f} x")
    return table


if __name__ == "__main__":
    app()
