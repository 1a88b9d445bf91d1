"""Engines that share a GPU load one after another. Knows no vLLM.

While it loads, vLLM takes all that is allocated on the GPU from its first look on for its own engine's (vLLM
`mem_utils.py` `memory_profiling`): of two that load at once, the second has no room left for its cache, or fails.
The lock is a file's in the temporary folder, one for each GPU and user. Workers in containers of their own do not see
each other's.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from workers import startup
from workers.device import device_kind
from workers.nvml import gpu_names
from workers.settings import Settings
from workers.startup import Startup

log = logging.getLogger(__name__)


def gpus_of(settings: Settings) -> list[str]:
    """The GPUs that this process's engine will be on, by names that are the same in every process; none on a CPU."""
    return gpu_names(settings.tensor_parallel_size) if device_kind() == "cuda" else []


@contextmanager
def loading_alone(gpus: Sequence[str], parts: Startup) -> Iterator[None]:
    """In the block no other process is in one for any of these GPUs. Waiting is a part of the start.

    The kernel opens the lock of a process that dies. Where the temporary folder can be neither written nor locked in,
    nobody waits.
    """
    with ExitStack() as held:
        for gpu in sorted(set(gpus)):  # in one order, or two engines of several GPUs may wait for each other
            try:
                lock = os.open(_path(gpu), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
                held.callback(os.close, lock)
                _wait_for(lock, parts)
            except OSError as error:
                log.warning("engines of one GPU may load at the same time, and fail: %s", error)
        yield


def _wait_for(lock: int, parts: Startup) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with parts.part(startup.OTHER_ENGINE):
            fcntl.flock(lock, fcntl.LOCK_EX)


def _path(gpu: str) -> Path:
    name = re.sub(r"[^\w.-]", "_", gpu)
    return Path(tempfile.gettempdir()) / f"whisper-fleet-{os.getuid()}-{name}.lock"
