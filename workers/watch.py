"""Watches over a worker from a thread of its own: a dead or hung engine, a grace that is over, an end that is stuck."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

from celery.worker import state

from workers import exit_codes
from workers.drain import AT_ONCE_SECONDS, LAST_RESORT_SECONDS, Ending
from workers.runtime import Runtime

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
#: After so long without a look this process itself stood still (a paused container or machine), and its engine with it.
STOOD_SECONDS = 5.0


class Watch:
    """Looks twice a second until the process ends: whatever goes wrong elsewhere, this worker does not linger."""

    def __init__(
        self, runtime: Runtime, ending: Ending, stall_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._runtime = runtime
        self._ending = ending
        self._stall_seconds = stall_seconds
        self._clock = clock
        self._looked = self._awake_since = clock()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def _run(self) -> None:
        lost = False
        while True:
            lost = lost or self._check_engine()
            overdue = self._ending.overdue_seconds()
            if overdue >= 0:
                self._runtime.stopping.set()
            if overdue > AT_ONCE_SECONDS + LAST_RESORT_SECONDS:
                log.critical("This worker does not come to its end; its messages are given out again.")
                os._exit(exit_codes.FAILED)
            time.sleep(LOOK_SECONDS)

    def _check_engine(self) -> bool:
        engine = self._runtime.engine
        now = self._clock()
        if now - self._looked > STOOD_SECONDS:
            self._awake_since = now
        self._looked = now
        stalled = min(engine.stalled_seconds(), now - self._awake_since)
        if not engine.healthy():
            reason = "its processes have ended, or what they compute is no number (the line before)"
        elif stalled > self._stall_seconds:
            reason = f"it has made no progress for {stalled:.0f} s (WHISPER_ENGINE_STALL_SECONDS)"
        else:
            return False
        if self._runtime.closing:  # then an engine that answers no more is no fault
            return False
        log.critical("The engine is lost: %s. This worker ends; its records go back to the queue.", reason)
        state.should_stop = exit_codes.FAILED
        self._ending.begin(at_once=True)
        # First the engine, so that tasks tell a dead engine from an end that was asked for.
        engine.fail(reason)
        self._runtime.stopping.set()
        return True
