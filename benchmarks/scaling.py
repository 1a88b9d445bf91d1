"""`python -m benchmarks.scaling`: how much faster more workers are, and whether a job's last rows wait for one of them.

Two parts, start-up excluded. ``standin``: 1, 2 and 4 workers in turn, round after round, with engines that set the pace
(`benchmarks.standin_fleet`). ``cores``: one real whisper-base worker on one core, and two on a core each.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from benchmarks import cores, worker_logs
from benchmarks.bars import Bar
from benchmarks.outcome import RESULTS, report, tidy_when_ended
from benchmarks.standin_fleet import SPEED, busy_cores, run_rows, standin_fleet, write_clip, write_rows
from workers.app import create_app
from workers.settings import load_settings

PARTS = ("standin", "cores")
WORKERS = (1, 2, 4)
#: Least speed of so many workers, as a multiple of one's.
BARS = {2: 1.95, 4: 3.8}
ROWS, ROUNDS = 2000, 2

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    rows: Annotated[int, typer.Option(min=50, help="Rows of each stand-in job; one worker takes 22 a second.")] = ROWS,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of the stand-in; medians are reported.")] = ROUNDS,
    workers: Annotated[str, typer.Option(help="Numbers of stand-in workers, by commas.")] = "1,2,4",
    parts: Annotated[str, typer.Option(help="Parts to run, by commas.")] = ",".join(PARTS),
    clips: Annotated[int, typer.Option(min=9, help="Recordings of each job of the real engines.")] = cores.CLIPS,
    results_folder: Annotated[Path, typer.Option("--results", help="Folder of the JSON report.")] = RESULTS,
) -> None:
    """Measure rows a second by number of workers. Exit code 1 if more workers are not as much faster as they should."""
    tidy_when_ended()
    counts, chosen = _numbers(workers), parts.split(",")
    if wrong := set(chosen) - set(PARTS):
        raise typer.BadParameter(f"--parts: {', '.join(sorted(wrong))}: choose from {', '.join(PARTS)}")
    figures: dict[str, Any] = {}
    tables, judged = [], list[Bar]()
    with tempfile.TemporaryDirectory(prefix="bench-scaling-") as temporary:
        if "standin" in chosen:
            runs = list(_standin_runs(Path(temporary), rows, rounds, counts))
            found = summary(runs)
            figures |= {"standin": found, "runs": runs}
            tables.append(_table(found))
            judged += bars(found)
        if "cores" in chosen:
            figures["cores"] = cores.measure(Path(temporary), clips)
            tables.append(cores.table(figures["cores"]))
    whole = (rows, rounds, counts, tuple(chosen), clips) == (ROWS, ROUNDS, WORKERS, PARTS, cores.CLIPS)
    options = {"rows": rows, "rounds": rounds, "workers": counts, "standin": dict(SPEED), "clips": clips}
    report("scaling", options, judged, figures, tables, results_folder, whole=whole)


def summary(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Medians by number of workers; ``ratio``: to the first number's rate, each round's own."""
    by_workers: dict[int, list[Mapping[str, Any]]] = {}
    for run in runs:
        by_workers.setdefault(run["workers"], []).append(run)
    base = next(iter(by_workers.values()), [])
    found = []
    for workers, own in by_workers.items():
        ratios = [run["rows_per_second"] / one["rows_per_second"] for run, one in zip(own, base, strict=True)]
        names = ("rows_per_second", "tail_seconds", "message_seconds", "batch_full_share", "busy_cores_share")
        middle = {name: round(statistics.median(run[name] for run in own), 3) for name in names}
        found.append({"workers": workers, "ratio": round(statistics.median(ratios), 3), "ratios": ratios, **middle})
    return found


def bars(found: Sequence[Mapping[str, Any]]) -> list[Bar]:
    """What must show."""
    ratios = {row["workers"]: row["ratio"] for row in found} if found and found[0]["workers"] == 1 else {}
    judged = [
        Bar(f"speed of {workers} workers to one's", ratios.get(workers), bar, at_least=True)
        for workers, bar in BARS.items()
    ]
    # A worker that is done while another has messages in hand that it could have had: at most one message's time.
    tails = [row["tail_seconds"] / row["message_seconds"] for row in found if row["workers"] > 1]
    return [*judged, Bar("wait for the last worker, in messages", max(tails, default=None), 1.0)]


def _standin_runs(folder: Path, rows: int, rounds: int, counts: Sequence[int]) -> Iterator[dict[str, Any]]:
    source = write_rows(folder / "rows.jsonl", write_clip(folder), rows)
    for turn in range(rounds):
        for workers in counts:
            run = _standin_run(folder / f"{turn}-{workers}", source, workers)
            typer.echo(f"round {turn + 1}, {workers} workers: {run['rows_per_second']:.1f} rows/s", err=True)
            yield {"round": turn + 1, **run}


def _standin_run(folder: Path, source: Path, workers: int) -> dict[str, Any]:
    folder.mkdir()
    with standin_fleet(folder / "fleet", workers) as fleet:
        with busy_cores() as busy:
            run = run_rows(fleet.url, source, folder / "steps")
        full = batch_full_share(fleet.url)
        ended = [list(worker_logs.messages(fleet.log_path(number))) for number in range(1, workers + 1)]
    lasts = [max((message.ended for message in own), default=0.0) for own in ended]
    return {
        "workers": workers,
        "rows": run.rows,
        "seconds": round(run.seconds, 3),
        "rows_per_second": round(run.rows_per_second, 3),
        "rows_by_worker": [sum(message.rows for message in own) for own in ended],
        "tail_seconds": round(max(lasts) - min(lasts), 3),
        "message_seconds": round(statistics.median(message.seconds for own in ended for message in own), 3),
        "messages": sum(map(len, ended)),
        "batch_full_share": full,
        "busy_cores_share": busy["share"],
    }


def batch_full_share(url: str) -> float:
    """How much of the time in which the engines had work there was enough of it to fill their batches, 0 to 1."""
    busy = full = 0.0
    with contextlib.closing(create_app(load_settings(REDIS_URL=url))) as celery:
        for stats in (celery.control.inspect(timeout=5.0).stats() or {}).values():
            busy += stats["engine"]["busy_seconds"]
            full += stats["engine"]["full_seconds"]
    return round(full / busy, 3) if busy else 0.0


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise typer.BadParameter(f"--workers {text}: must be numbers of workers as in 1,2,4")
    return numbers


def _table(found: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("workers", title="Stand-in engines: rows a second, start-up excluded (medians)")
    columns = {
        "speed to one's": "ratio",
        "rows/s": "rows_per_second",
        "last worker later by (s)": "tail_seconds",
        "a message (s)": "message_seconds",
        "batch full": "batch_full_share",
        "cores busy": "busy_cores_share",
    }
    for name in columns:
        table.add_column(name, justify="right")
    for row in found:
        table.add_row(str(row["workers"]), *(f"{row[key]:.2f}" for key in columns.values()))
    return table


if __name__ == "__main__":
    app()
