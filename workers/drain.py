"""How a worker ends: no new messages, a grace for what runs, the rest back into the queue.

What Celery 5.7 with kombu 5.7 does by itself after SIGTERM: it stops taking messages, then waits for the pool's threads
with its event loop standing still, however long they take; only then are their acknowledgements sent, and whatever is
not acknowledged is put back when the connection closes. During the wait nothing renews the hold on the messages, so
that those of a long record are given out again, and a kill makes finished ones run twice. SIGQUIT is no way out:
threads cannot be cancelled, and the messages go back while their records still run. So the wait is ours: the event
loop runs on until the threads have ended (acknowledgements go out, leases are renewed), within a time limit.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from celery import signals
from celery.apps.worker import _reload_current_worker
from celery.worker import state

from workers.forked_engine import remove_socket
from workers.guard import end_descendants
from workers.socket_names import remove_sockets

log = logging.getLogger(__name__)

#: After its grace a record is told to end; one that does not within this time (a dead network mount) is left behind.
AT_ONCE_SECONDS = 10.0
#: A worker that has not ended this long after that is stuck itself.
LAST_RESORT_SECONDS = 60.0
#: Two SIGTERM within this time are one.
ONE_SIGNAL_SECONDS = 0.5
#: How often the wait looks whether the threads have ended.
LOOK_SECONDS = 0.1


@dataclass(slots=True)
class Ending:
    """Whether this worker is ending, and when the grace of its running records is over (`time.monotonic`).

    Plain attributes: signal handlers write them, and may interrupt whoever holds a lock.
    """

    grace_seconds: float
    deadline: float | None = None
    #: Whether somebody has told it so: an engine that goes away from then on was told, too, or is closed.
    told: bool = False

    def begin(self, *, at_once: bool = False) -> None:
        """Start the grace. A second call ends it, and so does ``at_once``."""
        now = time.monotonic()
        if at_once or self.deadline is not None:
            self.deadline = min(now, self.deadline or now)
        else:
            self.deadline = now + self.grace_seconds

    def overdue_seconds(self) -> float:
        """Seconds since the grace was over; negative before, and without an end in sight."""
        return -1.0 if self.deadline is None else time.monotonic() - self.deadline


def _end_signals() -> tuple[signal.Signals, ...]:
    """Those that end a worker. None in a worker that is a thread of somebody's tests: they are not its to answer."""
    in_main = threading.current_thread() is threading.main_thread()
    return (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT) if in_main else ()


@contextlib.contextmanager
def ended_at_once() -> Iterator[None]:
    """Within this block, while the engine loads, a signal ends the process as it is: it holds no messages yet."""

    def end(number: int, _frame: Any) -> None:
        log.warning("%s while the engine loads: this worker ends", signal.Signals(number).name)
        end_descendants()
        remove_socket()
        remove_sockets()
        os._exit(0)

    before = {number: signal.signal(number, end) for number in _end_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def handle_signals(ending: Ending, hostname: str) -> None:
    """SIGTERM and SIGINT begin the end, a second one or SIGQUIT ends the grace: in place of Celery's handlers.

    Celery's own answer to SIGQUIT and a second SIGINT is to cancel the tasks, which threads cannot be.
    """
    last_s = float("-inf")

    def handle(number: int, _frame: Any) -> None:
        nonlocal last_s
        ending.told = True
        if number == signal.SIGTERM:
            # systemd and batch systems tell all processes, and the supervisor passes on what it was told.
            if time.monotonic() - last_s < ONE_SIGNAL_SECONDS:
                return
            last_s = time.monotonic()
        atexit.unregister(_reload_current_worker)  # what Celery does at the end of this process after a SIGHUP
        ending.begin(at_once=number == signal.SIGQUIT)
        if state.should_stop is None:  # an engine that was lost before has set its own exit code
            state.should_stop = 0
        signals.worker_shutting_down.send(sender=hostname, sig=signal.Signals(number).name, how="Warm", exitcode=0)

    for number in _end_signals():
        signal.signal(number, handle)


def reloads(ending: Ending) -> bool:
    """Whether this process is to start anew at its end: nothing else of a SIGHUP is to be seen, which Celery takes."""
    return state.should_stop == 0 and not ending.told


def wait_for_threads(worker: Any, ending: Ending) -> bool:
    """Run the event loop until no task runs any more; False when some still do `AT_ONCE_SECONDS` after the grace.

    For the main thread, with the consumer stopped and the pool not. Uses the executor of Celery's threads pool and
    kombu's event loop: tests/workers/test_drain.py holds them to it.
    """
    executor = worker.pool.executor
    executor.shutdown(wait=False, cancel_futures=True)  # a thread ends with its task; what waits for one does not begin
    timer = worker.timer.call_repeatedly(LOOK_SECONDS, lambda: None)  # so that no poll is longer
    turn = _turns(worker.hub)
    try:
        while any(thread.is_alive() for thread in list(executor._threads)):
            if ending.overdue_seconds() > AT_ONCE_SECONDS:
                return False
            turn()
        return True
    finally:
        timer.cancel()


def _turns(hub: Any) -> Callable[[], None]:
    """A turn of the event loop, which goes on after errors: Redis may be away during the whole wait."""
    loop = hub.create_loop()
    complained = False

    def turn() -> None:
        nonlocal loop, complained
        try:
            next(loop)
        except Exception as error:  # noqa: BLE001 - nothing of it may keep a worker from ending well
            if not complained and not isinstance(error, StopIteration):
                log.warning("while the last records finish: %s", error)
                complained = True
            time.sleep(LOOK_SECONDS)
            loop = hub.create_loop()

    return turn
