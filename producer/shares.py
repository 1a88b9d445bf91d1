"""Which part of this machine each of several local workers gets: cores on a CPU, devices on GPUs.

Two engines with threads on all cores wait for each other's at every step, and two that see all GPUs both load onto the
first.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from producer.errors import UsageError
from workers.device import device_kind, usable_cores
from workers.nvml import gpu_count
from workers.settings import Settings

#: CUDA's list of the devices that a process may use, by number or UUID.
VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class Share:
    """What one worker may use. ``cores``, ``devices``: None means all that this process may."""

    cores: tuple[int, ...] | None = None
    devices: tuple[str, ...] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What the worker is told of its devices."""
        return {} if self.devices is None else {VISIBLE_DEVICES: ",".join(self.devices)}


def shares(workers: int, settings: Settings) -> list[Share]:
    """A share of this machine for each of ``workers``; cores that the user has bound himself are left to him.

    Raises UsageError for engines that do not fit into the memory of a GPU together, or have less than a core each.
    """
    if device_kind() == "cpu":
        if settings.cpu_threads_bind is not None:
            return [Share()] * workers
        cores = usable_cores()
        if settings.engine == "vllm" and workers > max(len(cores), 1):
            raise UsageError(
                f"{workers} workers: this machine has {len(cores)} cores, and engines that share one only wait for "
                "each other: start fewer workers"
            )
        return [Share(cores=own) for own in core_shares(cores, workers, settings.tensor_parallel_size)]
    given = device_shares(_devices(), workers, settings.tensor_parallel_size)
    if settings.engine == "vllm":
        _check_memory(given, settings.gpu_memory_utilization)
    return [Share(devices=devices) for devices in given]


def core_shares(cores: Sequence[int], workers: int, ranks: int = 1) -> list[tuple[int, ...] | None]:
    """Neighbouring cores for each worker, all of them used, as evenly as can be.

    None where some worker would have fewer than its engine has ``ranks``.
    """
    if workers == 1 or len(cores) < workers * ranks:
        return [None] * workers
    ends = [len(cores) * number // workers for number in range(workers + 1)]
    return [tuple(cores[begin:end]) for begin, end in pairwise(ends)]


def device_shares(devices: Sequence[str], workers: int, ranks: int) -> list[tuple[str, ...] | None]:
    """``ranks`` devices for each worker, in turn: beyond the last one the first is shared; None if one has too few."""
    if workers == 1 or len(devices) < ranks:
        return [None] * workers
    return [
        tuple(devices[(number * ranks + rank) % len(devices)] for rank in range(ranks)) for number in range(workers)
    ]


def _check_memory(given: Sequence[tuple[str, ...] | None], utilization: float) -> None:
    """Raise UsageError where engines share a GPU and would take more than all of its memory: they fail one by one."""
    engines = Counter(device for devices in given for device in devices or ())
    most = max(engines.values(), default=1)
    if most > 1 and most * utilization > 1:
        raise UsageError(
            f"{len(given)} workers: {most} engines on one GPU, each with {utilization:g} of its memory: set "
            f"WHISPER_GPU_MEMORY_UTILIZATION to {int(90 / most) / 100:g}, or start fewer workers"
        )


def _devices() -> list[str]:
    chosen = os.environ.get(VISIBLE_DEVICES)
    if chosen is None:
        return [str(number) for number in range(gpu_count())]
    return [device.strip() for device in chosen.split(",") if device.strip()]
