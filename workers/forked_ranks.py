"""Ranks that begin as copies of the process that starts them, and so have imported already what it has.

vLLM spawns a CPU engine's ranks: each imports PyTorch and vLLM anew, a third of an engine's time to load on two cores
and 150 to 250 MB. It can also fork them (`multiproc_executor.py` closes what a forked rank must not hold, vLLM 0.26 to
0.33), which is safe where few threads run: in the engine's process, at this point, ZeroMQ's two and the guard's two,
all asleep.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from multiprocessing import util
from pathlib import Path

from workers import guard

METHOD = "VLLM_WORKER_MULTIPROC_METHOD"
#: It reads its settings (threads, cores), which differ from rank to rank, again after a fork. GNU's has read them when
#: it was loaded, and may hang.
INTELS_OPENMP = "libiomp"


class _Registered:
    """Something that can be weakly referred to."""


@contextlib.contextmanager
def forked_ranks() -> Iterator[None]:
    """In the block vLLM forks the ranks that it starts, and they end with this process as spawned ones do."""
    before = os.environ.get(METHOD)
    if before is None or not _has_intels_openmp():
        yield
        return
    # vLLM loads its plugins, and with them the guard, once: a copy believes that it has done so.
    registered = _Registered()
    util.register_after_fork(registered, lambda _: guard.register())
    os.environ[METHOD] = "fork"
    try:
        yield
    finally:
        os.environ[METHOD] = before
        del registered  # which takes it off Python's list


def _has_intels_openmp() -> bool:
    """Whether it is loaded: that it should be preloaded is not enough."""
    with contextlib.suppress(OSError):
        return INTELS_OPENMP in Path("/proc/self/maps").read_text()
    return False
