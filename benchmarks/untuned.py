"""vLLM on a CPU as it starts by itself: what it needs to start here, and nothing that a worker does for its speed.

A worker's engine also has a malloc that keeps large blocks, Intel's OpenMP and an executor that sleeps while it waits
(`workers.vllm_options`, `workers.cpu_executor`).
"""

from __future__ import annotations

import os
from typing import Any

from workers.device import cpu_binding, usable_cores
from workers.settings import Settings
from workers.vllm_options import engine_arguments


def prepare_untuned(settings: Settings) -> None:
    """Set the environment that vLLM needs on a few shared cores, where the user has not. Before it is imported."""
    needed = {
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": cpu_binding(usable_cores(), 1),
        "VLLM_CPU_KVCACHE_SPACE": str(settings.cpu_kv_cache_gib),
    }
    for name, value in needed.items():
        os.environ.setdefault(name, value)


def untuned_arguments(path_or_id: str, settings: Settings) -> dict[str, Any]:
    """A worker's arguments with vLLM's own executor. (Eight-bit layers need its extension on some CPUs.)"""
    return engine_arguments(path_or_id, settings) | {"distributed_executor_backend": None}
