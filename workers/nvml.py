"""NVIDIA's management library, by the Python file that vLLM ships: light, and there wherever a GPU engine can be.

Only that file is loaded; importing vLLM itself would take seconds.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Any

#: Major compute capability of B200, GB200 and B300; later ones (RTX 50 and the like: 12) are of the same family.
BLACKWELL = 10


@cache
def nvml() -> ModuleType | None:
    """The initialised module (NVIDIA's `pynvml`); None without vLLM, without a driver or without a GPU."""
    package = util.find_spec("vllm")  # finds without importing
    path = Path(package.origin or "").parent / "third_party" / "pynvml.py" if package else None
    if path is None or not path.is_file():
        return None
    spec = util.spec_from_file_location("whisper_fleet_pynvml", path)
    if spec is None or spec.loader is None:
        return None
    module = sys.modules[spec.name] = util.module_from_spec(spec)  # it looks itself up there
    spec.loader.exec_module(module)
    try:
        module.nvmlInit()
        return module if module.nvmlDeviceGetCount() else None
    except module.NVMLError:
        return None


def gpu_count() -> int:
    """GPUs of this machine; 0 where it cannot be asked."""
    library = nvml()
    return 0 if library is None else int(library.nvmlDeviceGetCount())


def visible_handles(library: Any) -> list[Any]:
    """What ``library`` (`nvml`) calls the GPUs of ``CUDA_VISIBLE_DEVICES``, or all where that names none.

    Raises its NVMLError for one that is not there.
    """
    names = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return [
        library.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else library.nvmlDeviceGetHandleByUUID(name)
        for name in names or map(str, range(library.nvmlDeviceGetCount()))
    ]


@cache
def gpu_memory_bytes(ranks: int = 1) -> int | None:
    """Memory of the smallest GPU of an engine of so many ranks, which takes the first that this process may use.

    None where it cannot be asked.
    """
    if (library := nvml()) is None:
        return None
    try:
        handles = visible_handles(library)[:ranks]
        return min(int(library.nvmlDeviceGetMemoryInfo(handle).total) for handle in handles)
    except library.NVMLError:
        return None


def compute_capability() -> int | None:
    """The major one of the first GPU that this process may use, None where it cannot be asked."""
    if (library := nvml()) is None:
        return None
    try:
        return int(library.nvmlDeviceGetCudaComputeCapability(visible_handles(library)[0])[0])
    except library.NVMLError:
        return None


def gpu_names(ranks: int) -> list[str]:
    """The GPUs of an engine of so many ranks: their UUIDs, or what the environment calls them where nobody knows."""
    if (library := nvml()) is not None:
        try:
            return [str(library.nvmlDeviceGetUUID(handle)) for handle in visible_handles(library)[:ranks]]
        except library.NVMLError:
            pass
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return [name.strip() for name in names if name.strip()][:ranks] or [str(number) for number in range(ranks)]
