"""`python -m benchmarks.rows`: what a row costs beside its transcription, in small and in large jobs.

Writes ``rows-<date>.json`` (``rows-quick-<date>.json`` with ``--quick``; ``-partial`` while a size is missing) and a
picture beside it. A later run on the same day replaces the lines of the sizes that it measures and keeps the others.
Exit code 1 if a bar is missed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.facts import machine, versions
from benchmarks.outcome import RESULTS
from benchmarks.outcome import report as show
from benchmarks.rows import plot, report
from benchmarks.rows.stage import AnsweredBy, PartFailedError, measure

ROWS = (10_000, 100_000, 1_000_000, 10_000_000)
FLEET_ROWS = (10_000, 1_000_000)
#: What `make bench` has the time for.
QUICK_ROWS, QUICK_FLEET_ROWS = (10_000, 100_000, 1_000_000), (10_000,)
#: The smallest job, against which the others are held, is run more often: half a second of CPU time scatters.
SMALL_RUNS = 3

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    rows: Annotated[
        list[int] | None, typer.Option(min=1, help=f"Sizes of jobs that a loop answers; {_listed(ROWS)} unless given.")
    ] = None,
    fleet_rows: Annotated[
        list[int] | None,
        typer.Option(min=0, help=f"Sizes of jobs for stand-in workers (0: none); {_listed(FLEET_ROWS)} unless given."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Stand-in workers.")] = 2,
    quick: Annotated[
        bool, typer.Option("--quick", help="What `make bench` runs: up to 1,000,000 rows by a loop; five minutes.")
    ] = False,
    results_folder: Annotated[Path, typer.Option("--results", help="Folder of the report.")] = RESULTS,
) -> None:
    """Send, collect and merge jobs of growing size, and hold each part against a bare loop over the same rows."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything started here is ended
    wanted: list[tuple[AnsweredBy, int]] = [
        *(("loop", size) for size in sorted(set(rows or (QUICK_ROWS if quick else ROWS)))),
        *(("fleet", size) for size in sorted(set(fleet_rows or (QUICK_FLEET_ROWS if quick else FLEET_ROWS))) if size),
    ]
    part = "rows-quick" if quick else "rows"
    whole = results_folder / f"{part}-{datetime.now(UTC).date().isoformat()}.json"
    partial = whole.with_stem(f"{whole.stem}-partial")
    path = whole if whole.exists() else partial
    for answered_by, size in wanted:
        times = SMALL_RUNS if (answered_by, size) == ("loop", report.SMALLEST) else 1
        made_on = {"date": _now(), "load": round(os.getloadavg()[0], 1), "machine": machine(), "versions": versions()}
        try:
            line = report.line_of([measure(size, answered_by, workers) for _ in range(times)], made_on)
        except PartFailedError as error:
            typer.echo(f"{size:,} rows by a {answered_by}: {error}", err=True)
            raise typer.Exit(1) from None
        typer.echo(f"{size:,} rows by a {answered_by}: {line['cpu_seconds_per_million']}", err=True)
        _keep(line, path)
    everything = report.read_lines(path)
    if _is_whole(everything, quick=quick):
        for old in (partial, partial.with_suffix(".svg")):
            old.unlink(missing_ok=True)
        path = whole
    plot.draw(everything, path.with_suffix(".svg"))
    show(
        part,
        {"rows": rows, "fleet_rows": fleet_rows, "workers": workers, "quick": quick},
        report.bars(everything),
        {"jobs": everything},
        [report.table(everything)],
        results_folder,
        whole=path == whole,
    )


def _is_whole(lines: Sequence[report.Line], *, quick: bool) -> bool:
    """Whether every size that belongs to a report is there."""
    sizes = {"loop": QUICK_ROWS if quick else ROWS, "fleet": QUICK_FLEET_ROWS if quick else FLEET_ROWS}
    there = {(line["answered_by"], line["rows"]) for line in lines}
    return there >= {(answered_by, rows) for answered_by, own in sizes.items() for rows in own}


def _keep(line: report.Line, path: Path) -> None:
    """Put a job's line into the report at once: the next job may take long, or fail."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"jobs": report.merged(report.read_lines(path), [line])}
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _listed(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


if __name__ == "__main__":
    app()
