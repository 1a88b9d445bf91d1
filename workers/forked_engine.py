"""A CPU engine's process as a copy of one that has imported PyTorch and vLLM beside the worker.

vLLM spawns it once the worker has imported vLLM, and it then imports all of that anew: a third of a worker's start on
two cores. So the worker starts Python's fork server first, a process without threads, which imports it at the same
time (`workers.fork_server`), and of which the engine's process is a copy. The server lasts as long as the worker.

``VLLM_WORKER_MULTIPROC_METHOD`` knows "fork" and "spawn" only (vLLM 0.26 to 0.33; vllm-project/vllm#45483), and on a
CPU vLLM sets "spawn" itself. Hence the one name of vLLM's that is replaced here while the engine's process is started.
On a GPU it is spawned: none has tried this yet.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

from workers import guard

log = logging.getLogger(__name__)

#: What the server does, and what it imports: an engine process's modules and a rank's.
SERVER = "workers.fork_server"
MODULES = (
    "vllm.v1.engine.core",
    "vllm.v1.worker.cpu_worker",
    "vllm.model_executor.models.whisper",
    "workers.cpu_executor",
    "workers.cpu_ranks",
    "workers.logits_processor",
)
#: The loader reads it when a program starts. A copy has its server's.
PRELOADED = "LD_PRELOAD"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Engine(ForkServerProcess):
    """A process with the environment that its parent had when it started it, not the server's."""

    def start(self) -> None:
        self._environment = dict(os.environ)
        super().start()

    def run(self) -> None:
        os.environ.clear()
        os.environ.update(self._environment)
        # A copy ends without the libraries' own last words.
        util.Finalize(None, guard.unlink_openmp_note, args=(os.getpid(),), exitpriority=0)
        super().run()


class _Context(ForkServerContext):
    Process = _Engine


class _Server:
    """The one server of this process: started once, for one engine."""

    def __init__(self) -> None:
        self._started = False
        #: What it has preloaded while it waits for an engine; None: there is none, or an engine has taken it.
        self._preloaded: str | None = None
        #: Where the socket is at which it is asked.
        self._folder: str | None = None

    def start(self) -> None:
        """With the environment as it is now; it goes on by itself."""
        if self._started:
            return
        self._started = True
        running: Future[None] = Future()
        # It ends with the thread that has started it, and so with this process.
        threading.Thread(target=self._keep, args=(running,), name="fork-server", daemon=True).start()
        try:
            running.result()
        except Exception as error:  # noqa: BLE001 - such as a temporary folder whose name is too long for a socket's
            log.warning("no fork server (%s): the engine's process imports vLLM itself", error)
            self.remove_socket()
            return
        self._preloaded = os.environ.get(PRELOADED, "")

    def take(self) -> str | None:
        """What it has preloaded, for the one engine that it is for."""
        preloaded, self._preloaded = self._preloaded, None
        return preloaded

    def remove_socket(self) -> None:
        """Nobody asks it any more."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _keep(self, running: Future[None]) -> None:
        # By itself Python makes a folder that lasts as long as the process (`multiprocessing.util.get_temp_dir`).
        config: dict[str, Any] = multiprocessing.current_process()._config  # type: ignore[attr-defined]
        pythons = config.get("tempdir")
        try:
            multiprocessing.set_forkserver_preload([SERVER])
            # `forkserver.ensure_running` would start it now, and unblock these signals.
            resource_tracker.ensure_running()
            # Until the server ignores them. They are this thread's own; it needs none.
            signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
            self._folder = config["tempdir"] = tempfile.mkdtemp(prefix="wf-")
            forkserver.ensure_running()
        except BaseException as error:  # noqa: BLE001 - raised where the server is waited for
            running.set_exception(error)
            return
        finally:
            config["tempdir"] = pythons
        running.set_result(None)
        threading.Event().wait()


_server = _Server()


def import_ahead() -> None:
    """Start the server, with the environment as it is now; it goes on by itself. Once in a process, for one engine."""
    _server.start()


@contextlib.contextmanager
def forked_engine() -> Iterator[None]:
    """In the block vLLM's engine process comes from the server, if one waits that has preloaded the same."""
    preloaded = _server.take()
    if preloaded is None:
        yield
        return
    utils: Any = importlib.import_module("vllm.v1.engine.utils")
    spawning = utils.get_mp_context

    def context() -> ForkServerContext:
        # Building its configuration, vLLM may have added a library.
        return _Context() if os.environ.get(PRELOADED, "") == preloaded else spawning()

    utils.get_mp_context = context
    try:
        yield
    finally:
        utils.get_mp_context = spawning
        remove_socket()


def remove_socket() -> None:
    """Take away the name at which the server is asked: a worker that is killed later leaves none."""
    _server.remove_socket()
