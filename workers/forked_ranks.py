"""Ranks that begin as copies of the process that starts them, and so have imported already what it has.

vLLM spawns a CPU engine's ranks: each imports PyTorch and vLLM anew, a third of an engine's time to load on two cores,
and some 150 MB. It can also fork them (`multiproc_executor.py` then closes the pipes that a rank must not hold, vLLM
0.26 to 0.33). That is safe where no thread can hold a lock that the copy needs: in the engine's process, at this point,
there are only those of ZeroMQ and of the guard, and all sleep.

A rank also holds the engine process's sockets, and of a spawned one the pipe by whose end the worker learns that this
process is gone: it learns so once the ranks are gone too, and their guard ends them with it at once
(tests/e2e/test_killed_worker.py).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from multiprocessing import util
from pathlib import Path

from workers import guard

METHOD = "VLLM_WORKER_MULTIPROC_METHOD"
#: It reads its settings (threads, cores), which differ from rank to rank, again after a fork.
INTELS_OPENMP = "libiomp"
#: It has read them when it was loaded, and may hang.
GNUS_OPENMP = "libgomp"


class _Registered:
    """Something that can be weakly referred to."""


@contextlib.contextmanager
def forked_ranks() -> Iterator[None]:
    """In the block vLLM forks the ranks that it starts, and they end with this process as spawned ones do."""
    before = os.environ.get(METHOD)
    if not before or not _computes_with_intels_openmp():
        yield
        return
    registered = _Registered()
    util.register_after_fork(registered, lambda _: _begin_as_a_copy())
    os.environ[METHOD] = "fork"
    try:
        yield
    finally:
        os.environ[METHOD] = before
        del registered  # which takes it off Python's list


def _begin_as_a_copy() -> None:
    # vLLM loads its plugins, and with them the guard, once: a copy believes that it has done so.
    guard.register()
    # A copy ends without the libraries' own last words.
    util.Finalize(None, guard.unlink_openmp_note, args=(os.getpid(),), exitpriority=0)


def _computes_with_intels_openmp() -> bool:
    """Whether it is loaded, and before GNU's, which PyTorch brings along: that it should be preloaded is not enough."""
    if GNUS_OPENMP in os.environ.get("LD_PRELOAD", ""):
        return False
    with contextlib.suppress(OSError):
        paths = {Path(line.split(maxsplit=5)[-1]) for line in Path("/proc/self/maps").read_text().splitlines()}
        return any(path.name.startswith(INTELS_OPENMP) for path in paths)
    return False
