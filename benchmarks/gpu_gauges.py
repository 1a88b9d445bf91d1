"""What an engine and its GPU do while a measurement runs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil

from workers.nvml import nvml, visible_handles

#: Between two looks at the GPU. Its utilisation is the share of the last 0.17 to 1 s in which a kernel ran (NVML).
LOOK_SECONDS = 0.2
#: What a decode process calls itself (`workers.decode_process`).
DECODE_TITLE = "whisper-fleet: decode"


@dataclass(slots=True)
class Steps:
    """The engine's steps: how many, the sums over them of running and waiting windows, tokens that came out."""

    steps: int = 0
    running: int = 0
    waiting: int = 0
    tokens: int = 0

    def watch(self, llm: Any) -> None:
        """Count what ``llm`` (`AsyncLLM`, with its statistics on) receives from its engine process from now on."""
        client = llm.engine_core
        receive = client.get_output_async

        async def received() -> Any:
            outputs = await receive()
            self.tokens += sum(len(one.new_token_ids) for one in outputs.outputs)
            if (stats := outputs.scheduler_stats) is not None:
                self.steps += 1
                self.running += stats.num_running_reqs
                self.waiting += stats.num_waiting_reqs
            return outputs

        client.get_output_async = received

    def reset(self) -> None:
        """Count from zero."""
        self.steps = self.running = self.waiting = self.tokens = 0


@dataclass(slots=True)
class GpuLooks:
    """Utilisation in % and memory in use in bytes, look by look. Empty without a GPU."""

    utilisation: list[int] = field(default_factory=list)
    memory_bytes: list[int] = field(default_factory=list)


def gpu() -> dict[str, Any] | None:
    """The GPU that is measured: name, memory in GiB, driver; None without one."""
    if (library := nvml()) is None:
        return None
    handle = _handle(library)
    return {
        "name": _text(library.nvmlDeviceGetName(handle)),
        "memory_gib": round(library.nvmlDeviceGetMemoryInfo(handle).total / 2**30, 1),
        "driver": _text(library.nvmlSystemGetDriverVersion()),
    }


@contextmanager
def looking_at_gpu() -> Iterator[GpuLooks]:
    """Looks at the GPU again and again while the block runs."""
    looks, library, done = GpuLooks(), nvml(), threading.Event()
    if library is None:
        yield looks
        return

    def look() -> None:
        while not done.wait(LOOK_SECONDS):
            # One that a GPU or a moment does not give costs neither the other nor the next look.
            with contextlib.suppress(library.NVMLError):
                looks.utilisation.append(int(library.nvmlDeviceGetUtilizationRates(_handle(library)).gpu))
            with contextlib.suppress(library.NVMLError):
                looks.memory_bytes.append(int(library.nvmlDeviceGetMemoryInfo(_handle(library)).used))

    thread = threading.Thread(target=look, name="gpu-looks", daemon=True)
    thread.start()
    try:
        yield looks
    finally:
        done.set()
        thread.join()


def decode_cpu_seconds() -> float:
    """Processor time that this process's decode processes have used so far."""
    seconds = 0.0
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if DECODE_TITLE in " ".join(child.cmdline()):
                times = child.cpu_times()
                seconds += times.user + times.system
    return seconds


def _handle(library: Any) -> Any:
    return visible_handles(library)[0]


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
