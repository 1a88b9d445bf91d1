"""What a window's answer and its decoding have to do with each other."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future

import pytest

from scripted_engine import heard
from workers.errors import EngineLostError
from workers.handover import pass_on
from workers.interface import WindowResult


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in a thread of its own, as the engine's."""
    made = asyncio.new_event_loop()
    thread = threading.Thread(target=made.run_forever, daemon=True)
    thread.start()
    yield made
    made.call_soon_threadsafe(made.stop)
    thread.join(60)
    made.close()


def test_an_answer_that_is_cancelled_ends_its_decoding(loop: asyncio.AbstractEventLoop) -> None:
    # Given a window that is being decoded
    began, ended = threading.Event(), threading.Event()

    async def decode() -> WindowResult:
        began.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            ended.set()
            raise
        return heard()

    answer: Future[WindowResult] = Future()
    pass_on(asyncio.run_coroutine_threadsafe(decode(), loop), answer)
    assert began.wait(60)

    # When nobody wants it any more
    assert answer.cancel()

    # Then it ends
    assert ended.wait(60)
    with pytest.raises(CancelledError):
        answer.result(0)


def test_what_the_decoding_gives_is_the_answer() -> None:
    for outcome in (heard(), EngineLostError("gone")):
        running, answer = Future[WindowResult](), Future[WindowResult]()
        pass_on(running, answer)
        if isinstance(outcome, WindowResult):
            running.set_result(outcome)
            assert answer.result(0) is outcome
        else:
            running.set_exception(outcome)
            assert answer.exception(0) is outcome


def test_an_answer_is_let_go_with_its_decoding_at_once() -> None:
    """The window's audio hangs on it, by way of who waits for it."""
    running, answer = Future[WindowResult](), Future[WindowResult]()
    pass_on(running, answer)
    running.set_result(heard())
    known = weakref.ref(answer)

    gc.disable()
    try:
        del running, answer
        assert known() is None
    finally:
        gc.enable()


def test_an_engine_given_up_has_answered_already() -> None:
    running, answer = Future[WindowResult](), Future[WindowResult]()
    pass_on(running, answer)
    answer.set_exception(EngineLostError("given up"))

    running.set_result(heard())

    with pytest.raises(EngineLostError):
        answer.result(0)


def test_a_decoding_that_vllm_cancels_is_an_engine_that_is_gone() -> None:
    running, answer = Future[WindowResult](), Future[WindowResult]()
    pass_on(running, answer)
    assert running.cancel()
    with pytest.raises(EngineLostError):
        answer.result(1)
