"""`python -m benchmarks.startup`: from `celery worker` to ready, and what the parts of that take.

As the workers say themselves (`workers.startup`); some parts run beside others, so that they may add up to more than
the whole. ``stand-in``: all of a worker but an engine. ``whisper-base``: the real engine, its model converted already;
``whisper-base, first start``: with an empty model cache.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from benchmarks.outcome import RESULTS, report, tidy_when_ended
from benchmarks.standin_fleet import MODEL_CACHE, without_settings
from producer.embedded import worker_command
from producer.processes import end, last_line, log_lines, start_guarded
from producer.valkey import Valkey
from workers import startup
from workers.device import device_kind
from workers.models import BUNDLED
from workers.presence import live_workers
from workers.redis_client import connect

ENGINES = ("stand-in", BUNDLED, f"{BUNDLED}, first start")
PARTS = (
    *(startup.PYTHON, startup.BROKER, startup.DECODERS, startup.MODEL, startup.LIBRARIES, startup.ENGINE),
    *(startup.WARM_UP, startup.GOLDEN, startup.CONNECT, "total"),
)
ROUNDS = 2
READY_SECONDS = 900.0

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    rounds: Annotated[int, typer.Option(min=1, help="Starts of each kind; medians are reported.")] = ROUNDS,
    engines: Annotated[
        list[str] | None, typer.Option("--engine", help=f"Of {'; '.join(ENGINES)} (default: all).")
    ] = None,
    results_folder: Annotated[Path, typer.Option("--results", help="Folder of the JSON report.")] = RESULTS,
) -> None:
    """Measure how long a worker takes to be ready, kind by kind in turn."""
    tidy_when_ended()
    chosen = engines or list(ENGINES)
    if wrong := set(chosen) - set(ENGINES):
        raise typer.BadParameter(f"--engine {', '.join(sorted(wrong))}: choose from {'; '.join(ENGINES)}")
    starts: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="bench-startup-") as temporary, without_settings():
        for turn in range(rounds):
            for engine in chosen:
                seconds = start(Path(temporary, f"{turn}-{chosen.index(engine)}"), engine)
                typer.echo(f"{engine}: ready after {seconds['total']:.1f} s", err=True)
                starts.append({"engine": engine, "round": turn + 1, "seconds": seconds})
    found = summary(starts)
    options = {"rounds": rounds, "engines": chosen, "device": device_kind()}
    whole = (rounds, tuple(chosen)) == (ROUNDS, ENGINES)
    report("startup", options, [], {"startup": found, "starts": starts}, [_table(found)], results_folder, whole=whole)


def start(folder: Path, engine: str) -> dict[str, float]:
    """What the parts of one worker's start took; it is ended then. Raises RuntimeError with its last words."""
    folder.mkdir(parents=True)
    valkey, log = Valkey(folder / "valkey"), folder / "worker.log"
    worker = None
    try:
        valkey.start()
        worker = start_guarded(worker_command(), _environment(folder, engine, valkey.url), log)
        redis, deadline = connect(valkey.url), time.monotonic() + READY_SECONDS
        while True:
            for one in live_workers(redis):
                if one.startup_seconds:
                    return dict(one.startup_seconds)
            if worker.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"a worker with {engine} does not start: {last_line(log_lines(log))}")
            time.sleep(0.2)
    finally:
        if worker is not None:
            end(worker, 30.0)
        valkey.stop()


def summary(starts: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Medians of each part, by kind."""
    found: dict[str, dict[str, float]] = {}
    for engine in dict.fromkeys(one["engine"] for one in starts):
        own = [one["seconds"] for one in starts if one["engine"] == engine]
        names = [name for name in PARTS if any(name in seconds for seconds in own)]
        found[engine] = {name: round(statistics.median(seconds.get(name, 0.0) for seconds in own), 3) for name in names}
    return found


def _environment(folder: Path, engine: str, url: str) -> dict[str, str]:
    environment = {**os.environ, "REDIS_URL": url}
    if engine == "stand-in":
        return {**environment, "WHISPER_ENGINE": "standin"}
    if engine.endswith("first start"):
        environment[MODEL_CACHE] = str(folder / "models")
    return {**environment, "WHISPER_MODEL": BUNDLED}


def _table(found: Mapping[str, Mapping[str, float]]) -> Table:
    table = Table("seconds (medians)", title="From `celery worker` to ready")
    for engine in found:
        table.add_column(engine, justify="right")
    for part in PARTS:
        cells = [f"{seconds[part]:.1f}" if part in seconds else "" for seconds in found.values()]
        if any(cells):
            table.add_row(part, *cells)
    return table


if __name__ == "__main__":
    app()
