"""`python -m benchmarks.gpu`: windows a second of the worker's path and of bare vLLM, side by side on one GPU.

Published shapes without weights, so nothing has to be downloaded. Writes ``gpu-<shape>-<date>.json`` for each shape and
shows its table. Runs on a CPU too, to see that it works: `--shape tiny`.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.corpus import REPOSITORY
from benchmarks.facts import machine, versions
from benchmarks.gpu_clips import write_clips
from benchmarks.gpu_gauges import gpu
from benchmarks.gpu_report import bars, figures, table
from benchmarks.gpu_runs import TEXT_TOKENS, Request
from benchmarks.gpu_shapes import SHAPES, write_shape
from producer.processes import end, start_guarded
from workers.device import batch, device_kind
from workers.settings import Settings, load_settings
from workers.vllm_options import RUNNER, engine_arguments

RESULTS = REPOSITORY / "benchmarks" / "results"
#: What is measured unless something else is asked for.
DEFAULT_SHAPES, DEFAULT_CONCURRENCIES = ("large-v3", "turbo"), (32, 128, 256)
#: Both systems in processes of their own, one after another: each has the GPU for itself. What needs more comes first.
PROCESSES = ("worker", "bare")
#: A load and all its runs. Nobody waits longer for an engine that stands still.
MOST_SECONDS = 1800.0

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    shape: Annotated[list[str] | None, typer.Option(help=f"{', '.join(SHAPES)}; the first two unless given.")] = None,
    concurrency: Annotated[
        list[int] | None, typer.Option(min=1, help="Windows in the engine at once; 32, 128 and 256 unless given.")
    ] = None,
    windows: Annotated[int, typer.Option(min=1, help="Most windows of a run (a run has eight rounds at most).")] = 1024,
    models: Annotated[
        Path | None, typer.Option(help="Folder of `python -m benchmarks.gpu_shapes` (written if it is not there).")
    ] = None,
    results_folder: Annotated[Path, typer.Option("--results", help="Folder of the JSON reports.")] = RESULTS,
) -> None:
    """Measure each shape. Exit code 1 if a bar is missed or a system fails; what was measured by then is reported."""
    names = tuple(shape or DEFAULT_SHAPES)
    for name in names:
        if name not in SHAPES:
            raise typer.BadParameter(f"--shape {name}: must be one of {', '.join(SHAPES)}")
    if device_kind() == "cuda" and gpu() is None:
        raise typer.BadParameter("this vLLM is built for GPUs, and there is none here (is the driver loaded?)")
    _check_packages()
    missed = False
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as temporary:
        clips = write_clips(Path(temporary, "clips"))
        for name in names:
            model = write_shape(models or Path(temporary, "models"), name)
            request = Request(str(model), clips, tuple(concurrency or DEFAULT_CONCURRENCIES), windows)
            report = _report(name, request, Path(temporary))
            Console(width=150).print(table(report), highlight=False, markup=False)
            results_folder.mkdir(parents=True, exist_ok=True)
            path = results_folder / f"gpu-{name}-{report['date'][:10]}.json"
            path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            typer.echo(path)
            missed = missed or bool(report["failures"]) or any(bar["met"] is False for bar in report["bars"])
    if missed:
        raise typer.Exit(1)


def _check_packages() -> None:
    """Whatever a worker needs besides vLLM, before minutes go into loading. Raises BadParameter."""
    from workers.silero import model_path

    try:
        model_path()
        metadata.version("whisper-fleet")
    except (FileNotFoundError, metadata.PackageNotFoundError) as error:
        raise typer.BadParameter(f"a worker could not start here: {error}") from None


def _report(name: str, request: Request, folder: Path) -> dict[str, Any]:
    """Measure one shape."""
    runs: list[dict[str, Any]] = []
    log_mel: dict[str, Any] = {}
    failures: dict[str, str] = {}
    for system in PROCESSES:
        typer.echo(f"{name}: {system} ...", err=True)
        found = measure(system, request, folder)
        runs += found["runs"]
        if found["log_mel_ms"] is not None:
            log_mel[system] = found["log_mel_ms"]
        if found["failure"] is not None:
            failures[system] = found["failure"]
            typer.echo(f"{name}: {system}: {found['failure']}", err=True)
    settings = load_settings()
    rows = figures(runs, log_mel, batch(settings).max_num_seqs)
    found_gpu = gpu()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "shape": name,
        "gpu": found_gpu,
        "machine": machine(),
        "versions": versions(),
        "options": _options(request, settings),
        "log_mel_ms": log_mel,
        "failures": failures,
        "runs": rows,
        "bars": bars(name, rows, found_gpu),
    }


def measure(
    system: str, request: Request, folder: Path, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """One system's runs from a process of its own, told as they end; ``failure``: why there are no more."""
    source, told, log = (folder / f"{system}-{part}" for part in ("request.json", "told.jsonl", "log.txt"))
    source.write_text(json.dumps(asdict(request)), encoding="utf-8")
    told.write_text("")
    paths = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "benchmarks.gpu_runs", system, str(source), str(told)]
    process = start_guarded(command, {**os.environ, **(environment or {}), "PYTHONPATH": paths}, log)
    deadline, lines = time.monotonic() + MOST_SECONDS, list[dict[str, Any]]()
    try:
        over = False
        while not over:
            over = process.poll() is not None or time.monotonic() > deadline  # and what was told until then is read
            for line in told.read_text(encoding="utf-8").splitlines()[len(lines) :]:
                lines.append(json.loads(line))
                typer.echo(line, err=True)
            time.sleep(0.0 if over else 0.5)
        code = process.poll()
    finally:
        end(process, grace_seconds=10.0)
    why = f"no end after {MOST_SECONDS:.0f} s" if code is None else f"ended with code {code}"
    return {
        "runs": [line["run"] for line in lines if "run" in line],
        "log_mel_ms": next((line["log_mel_ms"] for line in lines if "log_mel_ms" in line), None),
        "failure": None if code == 0 else f"{why}: {log.read_text(errors='replace')[-4000:]}",
    }


def _options(request: Request, settings: Settings) -> dict[str, Any]:
    windows = batch(settings)
    keys: Sequence[str] = ("dtype", "tensor_parallel_size", "gpu_memory_utilization", "enforce_eager")
    arguments = engine_arguments(request.model, settings)
    return {
        "concurrencies": list(request.concurrencies),
        "windows": request.windows,
        "distinct_clips": len(request.clips),
        "text_tokens": TEXT_TOKENS,
        "max_num_seqs": windows.max_num_seqs,
        "max_num_batched_tokens": arguments["max_num_batched_tokens"],
        "worker_runner": "V2" if os.environ.get(RUNNER) == "1" else "V1",
        **{key: arguments[key] for key in keys},
    }


if __name__ == "__main__":
    app()
