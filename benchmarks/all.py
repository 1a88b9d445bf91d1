"""`make bench`: every part that needs no GPU, one after another, and then the tables and plots of their figures.

A part that fails or misses a bar does not keep the others from running; the command then ends with 1.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.facts import REPOSITORY

#: ``python -m benchmarks.{name}``, and the minutes after which a part is ended, or earlier with the hour.
PARTS = {"efficiency": 36, "startup": 6, "scaling": 12, "latency": 6, "long_recording": 7, "rows": 8}
TOTAL_MINUTES = 60
#: What the whole of it would take longer for, on a slow machine at least.
ARGUMENTS = {"rows": ["--quick"], "efficiency": ["--minutes", "34"]}
#: After a part's time is over it may tidy up for so long.
GRACE_SECONDS = 30.0

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@dataclass(frozen=True, slots=True)
class Run:
    """What came of a part. ``outcome``: its exit code, or why there is none."""

    part: str
    outcome: str
    minutes: float

    @property
    def succeeded(self) -> bool:
        """Whether it ran to its end and missed no bar."""
        return self.outcome == "0"


@app.command()
def main(
    parts: Annotated[str, typer.Option(help="Parts to run, by commas.")] = ",".join(PARTS),
) -> None:
    """Run the benchmarks. Exit code 1 if a part fails or misses a bar."""
    chosen = parts.split(",")
    if wrong := set(chosen) - set(PARTS):
        raise typer.BadParameter(f"--parts: {', '.join(sorted(wrong))}: choose from {', '.join(PARTS)}")
    deadline = time.monotonic() + TOTAL_MINUTES * 60.0
    runs = [run(part, min(PARTS[part] * 60.0, deadline - time.monotonic())) for part in chosen]
    for afterwards in ("plots", "summary"):
        runs.append(run(afterwards, 120.0))
    table = Table("part", "exit code", title="make bench")
    table.add_column("minutes", justify="right")
    for one in runs:
        table.add_row(one.part, one.outcome, f"{one.minutes:.1f}")
    Console(width=100).print(table, highlight=False, markup=False)
    if not all(one.succeeded for one in runs):
        raise typer.Exit(1)


def run(part: str, seconds: float) -> Run:
    """Run ``python -m benchmarks.{part}`` to its end, or to the end of its time."""
    began = time.monotonic()
    typer.echo(f"--- {part}", err=True)
    if importlib.util.find_spec(f"benchmarks.{part}") is None:
        return Run(part, "there is no such part", 0.0)
    if seconds <= 0:
        return Run(part, "left out: the hour is over", 0.0)
    command = [sys.executable, "-m", f"benchmarks.{part}", *ARGUMENTS.get(part, [])]
    process = subprocess.Popen(command, cwd=REPOSITORY)
    try:
        outcome = str(process.wait(seconds))
    except subprocess.TimeoutExpired:
        outcome = f"ended after {seconds / 60:.0f} minutes"
    finally:
        _end(process)
    return Run(part, outcome, (time.monotonic() - began) / 60)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Its fleet ends with it, whichever way it ends."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


if __name__ == "__main__":
    app()
