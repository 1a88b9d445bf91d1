"""A CPU engine's process as a copy of one that has imported PyTorch and vLLM beside the worker.

vLLM spawns it once the worker has imported vLLM, and it then imports all of that anew: a third of a worker's start on
two cores. So the worker starts Python's fork server first, a process without threads, which imports it at the same
time (`workers.fork_server`), and of which the engine's process is a copy. The server lasts as long as the engine.

``VLLM_WORKER_MULTIPROC_METHOD`` knows "fork" and "spawn" only (vLLM 0.26 to 0.33; vllm-project/vllm#45483), and on a
CPU vLLM sets "spawn" itself. Hence the one name of vLLM's that is replaced here while the engine's process is started.
On a GPU it is spawned: none has tried this yet.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
from collections.abc import Iterator
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

#: What the server imports.
MODULE = "workers.fork_server"
#: The loader reads it when a program starts. A copy has its server's.
PRELOADED = "LD_PRELOAD"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_preloaded: str | None = None


class _Engine(ForkServerProcess):
    """A process with the environment that its parent had when it started it, not the server's."""

    def start(self) -> None:
        self._environment = dict(os.environ)
        super().start()

    def run(self) -> None:
        os.environ.clear()
        os.environ.update(self._environment)
        super().run()


class _Context(ForkServerContext):
    Process = _Engine


def import_ahead() -> None:
    """Start the server, with the environment as it is now; it goes on by itself. Does nothing if it runs already."""
    global _preloaded
    if _preloaded is not None:
        return
    _preloaded = os.environ.get(PRELOADED, "")
    multiprocessing.set_forkserver_preload([MODULE])
    resource_tracker.ensure_running()  # else the server starts it, which unblocks these signals
    # Until the server ignores them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def forked_engine() -> Iterator[None]:
    """In the block vLLM's engine process comes from the server, if there is one that has preloaded the same."""
    if _preloaded is None:
        yield
        return
    utils: Any = importlib.import_module("vllm.v1.engine.utils")
    spawning = utils.get_mp_context

    def context() -> ForkServerContext:
        # Building its configuration, vLLM may have added a library.
        return _Context() if os.environ.get(PRELOADED, "") == _preloaded else spawning()

    utils.get_mp_context = context
    try:
        yield
    finally:
        utils.get_mp_context = spawning
