"""Keeps one worker going: what ends it by accident starts it again, with longer and longer pauses, up to a limit.

Not for workers under a supervisor of their own that counts restarts (Kubernetes): `producer.embedded.worker_command`
is enough there.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any

from producer.restarts import Restarts
from workers.guard import guarded_command

log = logging.getLogger(__name__)


class Supervisor:
    """Runs one command until it ends well, is told to end, or fails too often. For the main thread."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], restarts: Restarts) -> None:
        self._command = command
        self._environment = dict(environment)
        self._restarts = restarts
        self._process: subprocess.Popen[bytes] | None = None
        #: The last signal that was passed on: whatever the worker ends with, it was told to.
        self._told: int | None = None

    def run(self) -> int:
        """The exit code: the worker's last one, 0 where it was told to end before it could listen."""
        passed_on = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
        heard = [number for number in passed_on if signal.getsignal(number) is not signal.SIG_IGN]  # `nohup` stays so
        before = {number: signal.signal(number, self._pass_on) for number in heard}
        try:
            return self._run()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _run(self) -> int:
        while self._told is None:
            began = time.monotonic()
            code = self._run_once()
            if self._told is not None:
                return 0 if -code in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT) else _shell_code(code)
            pause = self._restarts.pause_seconds(code, time.monotonic() - began)
            if pause is None:
                if code:
                    log.error("the worker ended with %s; it is not started again", _shown(code))
                return _shell_code(code)
            log.warning(
                "the worker ended with %s; it is started again in %.0f s (%d of at most %d times in a row)",
                _shown(code),
                pause,
                self._restarts.in_a_row,
                self._restarts.limit,
            )
            self._rest(pause)
        return 0

    def _run_once(self) -> int:
        # In a session of its own: a terminal's Ctrl-C reaches it through us, once.
        self._process = subprocess.Popen(
            guarded_command(os.getpid(), self._command), env=self._environment, start_new_session=True
        )
        if self._told is not None:  # a signal came while it was started
            self._process.send_signal(self._told)
        return self._process.wait()

    def _rest(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self._told is None and time.monotonic() < until:
            time.sleep(0.1)

    def _pass_on(self, number: int, _frame: Any) -> None:
        # A terminal that is closed is no reason for Celery's answer to SIGHUP, which is to start over.
        self._told = signal.SIGTERM if number == signal.SIGHUP else number
        if self._process is not None:
            self._process.send_signal(self._told)


def _shown(code: int) -> str:
    return f"code {code}" if code >= 0 else signal.Signals(-code).name


def _shell_code(code: int) -> int:
    return code if code >= 0 else 128 - code
