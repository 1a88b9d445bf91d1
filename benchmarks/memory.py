"""`python -m benchmarks.memory`: how much memory a long recording takes beyond an idle worker, and what it costs.

Writes ``memory-<date>.json`` (``…-partial.json`` for other recordings than the usual) and shows its table. Decoding and
voice activity are real, the engine is the stand-in: a real one's memory is its own, whatever the length of a recording.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.corpus import REPOSITORY
from benchmarks.facts import machine, versions
from benchmarks.memory_probe import THREADS, WORKER, Peaks
from benchmarks.recordings import FORMATS, write_recording

RESULTS = REPOSITORY / "benchmarks" / "results"
#: Most megabytes (10**6 bytes) of one record, worker and decode process together.
BAR_MB = 200.0
DEFAULT = ("6h.flac", "6h.mp3", "6h.m4a", "10h.flac", "10h.m4a")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    recordings: Annotated[
        list[str] | None, typer.Argument(help=f"Lengths and formats; {' '.join(DEFAULT)} unless given.")
    ] = None,
    at_once: Annotated[
        int, typer.Option(min=1, help="Recordings side by side: memory and CPU time do not depend on it.")
    ] = 1,
    results_folder: Annotated[Path, typer.Option("--results", help="Folder of the JSON report.")] = RESULTS,
) -> None:
    """Measure the peak memory of each recording as one record. Exit code 1 if one is over the bar."""
    wanted = {name: _hours(name) for name in recordings or DEFAULT}
    with (
        tempfile.TemporaryDirectory(prefix="bench-memory-") as temporary,
        ThreadPoolExecutor(at_once) as threads,
    ):
        rows = list(threads.map(lambda name: _row(Path(temporary, name), wanted[name]), wanted))
    date = datetime.now(UTC).isoformat(timespec="seconds")
    report = {
        "date": date,
        "machine": machine(),
        "versions": versions(),
        "options": {"threads": THREADS, **WORKER, "at_once": at_once},
        "bar_mb": BAR_MB,
        "recordings": rows,
    }
    Console(width=120).print(_table(rows), highlight=False, markup=False)
    results_folder.mkdir(parents=True, exist_ok=True)
    path = results_folder / f"memory-{date[:10]}{'' if tuple(wanted) == DEFAULT else '-partial'}.json"
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    typer.echo(path)
    if any(row["sum_mb"] > BAR_MB for row in rows):
        raise typer.Exit(1)


def measure(path: Path, environment: Mapping[str, str] | None = None) -> Peaks:
    """One record's peaks, from a worker process of its own. Raises RuntimeError with the end of what it wrote."""
    command = [sys.executable, "-m", "benchmarks.memory_probe", str(path)]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{path.name}: the worker ended with code {done.returncode}: {done.stderr[-2000:]}")
    return Peaks(**json.loads(done.stdout.splitlines()[-1]))


def _hours(name: str) -> float:
    """The hours of a recording that is asked for as ``6h.flac``."""
    match = re.fullmatch(rf"(\d+(?:\.\d+)?)h\.(?:{'|'.join(FORMATS)})", name)
    if match is None or not float(match[1]):
        raise typer.BadParameter(f"{name}: must be hours and format as in 0.5h.flac, of {', '.join(FORMATS)}")
    return float(match[1])


def _row(path: Path, hours: float) -> dict[str, Any]:
    """Make a recording, measure it and delete it."""
    write_recording(path, hours * 3600)
    file_mb = path.stat().st_size / 1e6
    peaks = measure(path)
    path.unlink()
    typer.echo(f"{path.name}: {peaks.sum_mb:.1f} MB, {peaks.wall_seconds:.0f} s", err=True)
    return {
        "recording": path.name,
        "file_mb": round(file_mb, 1),
        "sum_mb": round(peaks.sum_mb, 1),
        **asdict(peaks),
        "cpu_seconds_per_hour": round(peaks.cpu_seconds * 3600 / peaks.audio_seconds, 1),
    }


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("recording", title=f"Peak memory beyond an idle worker, in MB (bar: {BAR_MB:g})")
    columns = {
        "worker": "worker_mb",
        "decode process": "decoder_mb",
        "sum": "sum_mb",
        "CPU s per hour": "cpu_seconds_per_hour",
    }
    for name in columns:
        table.add_column(name, justify="right")
    table.add_column("within the bar")
    for row in rows:
        figures = (f"{row[key]:.1f}" for key in columns.values())
        table.add_row(row["recording"], *figures, "yes" if row["sum_mb"] <= BAR_MB else "NO")
    return table


if __name__ == "__main__":
    app()
