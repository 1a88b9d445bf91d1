"""Real engines confined to a core each: what a second worker brings where each has a machine of its own, in small."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.table import Table

from benchmarks.facts import REPOSITORY
from benchmarks.standin_fleet import busy_cores, run_rows, without_settings
from producer.embedded import worker_command
from producer.processes import end, last_line, log_lines, start_guarded
from producer.valkey import Valkey
from workers.device import device_kind, usable_cores
from workers.models import BUNDLED
from workers.presence import live_workers
from workers.redis_client import connect

CLIPS = 72
#: By so much later each time begins what is heard of a sample.
SHIFT_SECONDS, RUNS = 0.1, 3
SAMPLES = REPOSITORY / "tests" / "samples" / "audio"
READY_SECONDS, STOP_SECONDS = 600.0, 30.0


def measure(folder: Path, clips: int) -> dict[str, Any]:
    """Rates of two workers on a core each, then of the first of them alone; why not, where that cannot be had."""
    free = usable_cores()
    if device_kind() != "cpu" or len(free) < 2:
        return {"left_out": "needs the CPU build of vLLM and two cores"}
    runs = []
    with _workers(folder / "cores", free[:2]) as (url, last):
        # What every engine does slowly the first time is not in the figures.
        run_rows(url, _write_rows(folder / "warm-up.jsonl", clips, 0), folder / "warm-up")
        for count in (2, 1):
            if count == 1:  # the other has its own core, and nothing else to do
                end(last, STOP_SECONDS)
            with busy_cores() as busy:
                source = _write_rows(folder / f"clips-{count}.jsonl", clips, count)
                run = run_rows(url, source, folder / f"steps-{count}")
            found = {"workers": count, "rows_per_second": round(run.rows_per_second, 3), **busy}
            typer.echo(f"real engines, {count} of one core: {found['rows_per_second']:.2f} rows/s", err=True)
            runs.append({**found, "seconds": round(run.seconds, 2)})
    ratio = runs[0]["rows_per_second"] / runs[1]["rows_per_second"]
    return {"model": BUNDLED, "ratio": round(ratio, 3), "runs": runs}


def _write_rows(path: Path, clips: int, run: int) -> Path:
    """No two windows are the same, of no two runs either: an engine keeps the encodings of its last ones."""
    spoken = [path for path in sorted(SAMPLES.iterdir()) if path.stem not in ("silence", "en_news_long")]
    with path.open("w", encoding="utf-8") as file:
        for number in range(clips):
            start_s = round(number // len(spoken) * SHIFT_SECONDS + run * SHIFT_SECONDS / RUNS, 3)
            file.write(json.dumps({"audio": str(spoken[number % len(spoken)]), "start_s": start_s}) + "\n")
    return path


def table(figures: Mapping[str, Any]) -> Table | str:
    """The figures as a person reads them."""
    if "left_out" in figures:
        return f"One-core engines left out: {figures['left_out']}"
    shown = Table("workers, a core each", title="whisper-base: rows a second, start-up excluded")
    shown.add_column("rows/s", justify="right")
    for run in figures["runs"]:
        shown.add_row(str(run["workers"]), f"{run['rows_per_second']:.2f}")
    shown.add_row("two to one", f"{figures['ratio']:.2f} x")
    return shown


@contextlib.contextmanager
def _workers(folder: Path, cores: Sequence[int]) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A private Valkey and a worker on each of ``cores``; yields the broker's URL and the last worker.

    Raises RuntimeError.
    """
    valkey = Valkey(folder / "valkey")
    processes = []
    with without_settings():
        try:
            valkey.start()
            for core in cores:
                # All of the worker: its threads, its decode process, its engine's processes.
                environment = {**os.environ, "REDIS_URL": valkey.url, "WHISPER_MODEL": BUNDLED}
                command, log = worker_command(f"core{core}@%h"), folder / f"core-{core}.log"
                processes.append(start_guarded(command, environment, log, cores=[core]))
            deadline = time.monotonic() + READY_SECONDS
            while len(live_workers(connect(valkey.url))) < len(cores):
                for core, process in zip(cores, processes, strict=True):
                    if process.poll() is not None or time.monotonic() > deadline:
                        why = last_line(log_lines(folder / f"core-{core}.log"))
                        raise RuntimeError(f"the worker on core {core} does not start: {why}")
                time.sleep(0.5)
            yield valkey.url, processes[-1]
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                end(process, STOP_SECONDS)
            valkey.stop()
