"""One system's runs in a process of its own: `python -m benchmarks.gpu_runs bare|worker REQUEST TOLD`.

``TOLD`` gets a line of JSON for what one window's log-mel costs and for each run, as soon as it is known.

=========  ============================================================================================================
`engine`   vLLM alone: log-mel is computed before the clock starts. What no front-end can beat
`bare`     vLLM as it comes: windows of samples go in, vLLM's own renderer computes log-mel
`worker`   what a worker's threads do with files: decode processes, voice activity, windows, log-mel, engine, texts
=========  ============================================================================================================

All three have the same engine arguments, greedy decoding and 100 tokens of text a window, end of text or not. `engine`
and `bare` run without Whisper's rules, in vLLM's own choice of model runner and of threads.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.gpu_gauges import Steps, decode_cpu_seconds, looking_at_gpu
from workers.guard import die_with_parent
from workers.settings import load_settings

System = Literal["engine", "bare", "worker"]
LANGUAGE = "en"
#: Tokens of text of a window: about what 30 s of speech have.
TEXT_TOKENS = 100
#: Prepared before the clock starts, to see what one window's log-mel costs.
LOG_MEL_WINDOWS = 8
#: Of windows in a run, each so many as are asked for at once.
ROUNDS = 4
NO_WEIGHTS = {"load_format": "dummy", "disable_log_stats": False}


@dataclass(frozen=True, slots=True)
class Request:
    """What to measure. ``model``: a folder. ``clips``: files of 30 s. ``windows``: most windows of a run.

    ``concurrencies`` come in their order: time may be over before the last.
    """

    model: str
    clips: tuple[str, ...]
    concurrencies: tuple[int, ...]
    windows: int

    def windows_at(self, concurrency: int) -> int:
        """Windows of one run: a few windows at once need no long one."""
        return max(concurrency, min(self.windows, ROUNDS * concurrency))


@dataclass(frozen=True, slots=True)
class Run:
    """One system at one concurrency (windows that are asked for at once).

    ``cpu_seconds``: of this process, without the engine's and the decode processes, which have ``decode_cpu_seconds``.
    ``running``, ``waiting``: windows in the engine, mean over its steps. ``gpu_utilisation``: mean, in %; None without
    a GPU, as ``gpu_memory_gib``.
    """

    system: System
    concurrency: int
    windows: int
    wall_seconds: float
    cpu_seconds: float
    steps: int
    tokens: int
    running: float
    waiting: float
    gpu_utilisation: float | None
    gpu_memory_gib: float | None
    decode_cpu_seconds: float = 0.0


Tell = Callable[[Mapping[str, Any]], None]


def main() -> None:
    """Load the engine and make the runs."""
    system, source, target = sys.argv[1:]
    asked = json.loads(Path(source).read_text(encoding="utf-8"))
    request = Request(asked["model"], tuple(asked["clips"]), tuple(asked["concurrencies"]), asked["windows"])
    settings = load_settings(model=request.model, temperatures=(0.0,), golden_check=False)
    told = Path(target).open("a", encoding="utf-8")  # noqa: SIM115 - for as long as this process lives

    def tell(what: Mapping[str, Any]) -> None:
        told.write(json.dumps(what) + "\n")
        told.flush()

    if system == "worker":
        from benchmarks.gpu_worker import worker

        worker(request, settings, tell)
    else:
        from benchmarks.gpu_bare import bare

        asyncio.run(bare(request, settings, tell))


def log_mel_ms(prepare: Callable[[int], object]) -> dict[str, float]:
    """What it costs to ``prepare`` one window for the engine: milliseconds of processor time and of the clock."""
    prepare(0)  # the first one loads what it needs
    cpu, began = time.process_time(), time.monotonic()
    for number in range(LOG_MEL_WINDOWS):
        prepare(number)
    cpu, wall = time.process_time() - cpu, time.monotonic() - began
    return {"cpu": 1000 * cpu / LOG_MEL_WINDOWS, "wall": 1000 * wall / LOG_MEL_WINDOWS}


@contextmanager
def measured(system: System, concurrency: int, windows: int, steps: Steps, tell: Tell) -> Iterator[None]:
    """Tells of the run that the block is."""
    steps.reset()
    with looking_at_gpu() as looks:
        decoding, cpu, began = decode_cpu_seconds(), time.process_time(), time.monotonic()
        yield
        cpu, wall = time.process_time() - cpu, time.monotonic() - began
        decoding = decode_cpu_seconds() - decoding
    run = Run(
        system=system,
        concurrency=concurrency,
        windows=windows,
        wall_seconds=wall,
        cpu_seconds=cpu,
        steps=steps.steps,
        tokens=steps.tokens,
        running=steps.running / max(1, steps.steps),
        waiting=steps.waiting / max(1, steps.steps),
        gpu_utilisation=sum(looks.utilisation) / len(looks.utilisation) if looks.utilisation else None,
        gpu_memory_gib=max(looks.memory_bytes) / 2**30 if looks.memory_bytes else None,
        decode_cpu_seconds=decoding,
    )
    tell({"run": asdict(run)})


if __name__ == "__main__":
    die_with_parent(os.getppid())
    # By its name: the systems import this module, and would get a second copy of it.
    from benchmarks import gpu_runs

    gpu_runs.main()
