"""From the decoding of a window to the answer that somebody waits for: each may end first. Knows no vLLM."""

from __future__ import annotations

import contextlib
import weakref
from concurrent.futures import Future, InvalidStateError

from workers.errors import EngineLostError
from workers.interface import WindowResult


def pass_on(running: Future[WindowResult], answer: Future[WindowResult]) -> None:
    """What ``running`` gives becomes the answer. A cancelled answer ends it, and vLLM's request with it."""
    # Weakly, or each would keep the other, and both the window's audio, until the garbage collector comes.
    decoding_now = weakref.ref(running)

    def done(running: Future[WindowResult]) -> None:
        if running.cancelled():  # by its answer, or by vLLM as it ends
            settle(answer, EngineLostError("the engine ended in the middle of a window"))
        else:
            settle(answer, running.exception() or running.result())

    def unwanted(answer: Future[WindowResult]) -> None:
        if answer.cancelled() and (running := decoding_now()) is not None:
            running.cancel()

    running.add_done_callback(done)
    answer.add_done_callback(unwanted)


def settle(answer: Future[WindowResult], outcome: WindowResult | BaseException) -> None:
    """Answer once: whoever comes second (the engine, after it was given up) is not heard."""
    with contextlib.suppress(InvalidStateError):
        if isinstance(outcome, BaseException):
            answer.set_exception(outcome)
        else:
            answer.set_result(outcome)
