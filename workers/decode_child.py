"""The worker's hold on one decode process: starts it, talks to it, ends it. Part of `workers.audio.DecodePool`."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import site
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from workers.decode_wire import REQUEST
from workers.device import CPU_MALLOC

REAP_SECONDS = 2.0
#: Where this package lies.
HOME = Path(__file__).resolve().parents[1]
#: What is for the worker alone: how its engine's memory is kept, and where Python looks (`workers.__main__`), which
#: programs of the user's that ask for a storage's key need not know.
NOT_HANDED_ON = {*CPU_MALLOC, "PYTHONSAFEPATH"}


class DecodeChild:
    """One decode process and this side of its socket pair. ``limits``: the fields of `workers.audio.AudioLimits`.

    Raises OSError when it cannot be started.
    """

    def __init__(self, limits: Mapping[str, Any]) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        # Not multiprocessing.Process: that would import the worker's main module again. Descriptors are closed on
        # exec, so a child holds its own end only and sees end-of-file when the worker is gone.
        # This package, whatever the current folder holds.
        command = [sys.executable, "-P", "-m", "workers.decode_process", str(theirs.fileno()), str(os.getpid())]
        # What a worker sets for its engine would have this process keep whatever a recording took.
        kept = {name: value for name, value in os.environ.items() if name not in NOT_HANDED_ON}
        sites = map(Path, [*site.getsitepackages(), site.getusersitepackages()])
        if HOME not in {folder.resolve() for folder in sites}:
            # A checkout, which perhaps only the current folder names.
            kept["PYTHONPATH"] = os.pathsep.join([str(HOME), kept.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        with theirs:
            self._process = subprocess.Popen(
                [*command, json.dumps(limits)],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**kept, **threads},
                process_group=0,  # not for a terminal's signals, also before it ignores them
            )

    def request(self, wanted: Mapping[str, Any]) -> None:
        """Ask for a recording: the fields of `workers.decode_wire`'s ``Q``."""
        self._connection.send_bytes(REQUEST + json.dumps(wanted).encode())

    def answer(self, word: bytes) -> None:
        """GO_ON or HALT at the end of a span."""
        self._connection.send_bytes(word)

    def receive(self, timeout_seconds: float) -> bytes:
        """The next message. Raises TimeoutError, or EOFError or OSError when the child is gone."""
        if not self._connection.poll(timeout_seconds):
            raise TimeoutError(f"no message for {timeout_seconds:g} s")
        return self._connection.recv_bytes()

    def idle(self) -> bool:
        """Whether it can take a request: it lives, and has nothing to say (end-of-file would be something)."""
        return self._process.poll() is None and not self._connection.poll()

    def kill(self) -> None:
        """SIGKILL: a decode process ignores the polite signals, and has nothing to tidy up."""
        self._process.kill()

    def reap(self) -> None:
        """Wait for a killed child's end. One stuck in the kernel (a dead network mount) is left to end when it can."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(REAP_SECONDS)

    def release(self) -> None:
        """Reap a killed child and close this side of the pair."""
        self.reap()
        self._connection.close()

    def cause_of_death(self) -> str:
        try:
            code = self._process.wait(REAP_SECONDS)
        except subprocess.TimeoutExpired:
            return "it closed its pipe"
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"
