"""For workers that a test starts with ``-I poisonous_engine``: a stand-in that can be killed by a record.

Each window's prompt (which a test sets to tell its records apart) is noted in the file ``POISON_RUNS``, a line each.
The prompt ``poison`` kills the worker, ``fatal ...`` its engine; ``slow ...`` is not answered at once, so that a test
can kill the worker over it. When the file ``POISON_GO`` is there, only ``poison`` is special.
"""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import Future
from pathlib import Path

from workers.interface import WindowRequest, WindowResult
from workers.standin import StandInEngine

submit = StandInEngine.submit


def poisonous_submit(self: StandInEngine, request: WindowRequest) -> Future[WindowResult]:
    note(request.prompt or "")
    if request.prompt == "poison":
        os.kill(os.getpid(), signal.SIGKILL)
    if (request.prompt or "").startswith("fatal") and not go():
        self.fail("a test killed it")
    answered = submit(self, request)
    if not (request.prompt or "").startswith("slow"):
        return answered
    late: Future[WindowResult] = Future()
    threading.Thread(target=answer_late, args=(answered, late), daemon=True).start()
    return late


def note(line: str) -> None:
    with Path(os.environ["POISON_RUNS"]).open("a") as runs:
        runs.write(f"{os.getpid()} {line}\n")


def go() -> bool:
    return Path(os.environ["POISON_GO"]).exists()


def answer_late(answered: Future[WindowResult], late: Future[WindowResult]) -> None:
    pause = threading.Event()
    while not go():
        pause.wait(0.05)
    late.set_result(answered.result())


StandInEngine.submit = poisonous_submit  # type: ignore[method-assign]
