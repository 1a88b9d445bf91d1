"""Retries and threads: errors reach the one who waits, closing leaves nobody waiting, the engine's loop stays free."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from fleet import wait_for
from scripted_engine import FACTS, heard, in_turn, scripted
from workers.errors import EngineLostError, TranscriptionError
from workers.fallback import FallbackDecoder
from workers.interface import EngineLoad, WindowRequest, WindowResult

REQUEST = WindowRequest(np.zeros(16_000, np.float32), "transcribe", "en")
GOOD, LOW, EMPTY = heard(), heard("mumble", avg_logprob=-1.5), heard("")

Decoders = Callable[..., FallbackDecoder]


# Errors reach the one who waits.


@pytest.mark.parametrize("error", [EngineLostError("gone"), TranscriptionError("bad_argument", "no")])
@pytest.mark.parametrize("at", [0, 1, 5])
def test_error_of_any_try_is_the_windows(decoders: Decoders, error: Exception, at: int) -> None:
    future = decoders(in_turn(*[LOW] * at, error)).submit(REQUEST, 10.0, "0")

    assert future.exception(timeout=60) is error


def test_engine_that_takes_no_retry_reaches_the_waiter(decoders: Decoders) -> None:
    def answer(request: WindowRequest, number: int) -> WindowResult:
        if number:
            raise EngineLostError("the engine is shutting down")
        return LOW

    future = decoders(scripted(answer)).submit(REQUEST, 10.0, "0")

    assert isinstance(future.exception(timeout=60), EngineLostError)


def test_engine_that_takes_no_window_says_so_to_the_caller(decoders: Decoders) -> None:
    def answer(request: WindowRequest, number: int) -> WindowResult:
        raise EngineLostError("the engine is shutting down")

    decoder = decoders(scripted(answer))

    with pytest.raises(EngineLostError):
        decoder.submit(REQUEST, 10.0, "0")


def test_result_that_cannot_be_judged_does_not_leave_anybody_waiting(decoders: Decoders) -> None:
    odd = heard(compression_ratio=None)

    assert isinstance(decoders(in_turn(odd)).submit(REQUEST, 10.0, "0").exception(timeout=60), TypeError)


# Closing.


def test_no_retry_is_started_after_closing(decoders: Decoders) -> None:
    engine = in_turn(LOW)
    decoder = decoders(engine)
    decoder.close()

    future = decoder.submit(REQUEST, 10.0, "0")

    assert isinstance(future.exception(timeout=60), EngineLostError)
    assert len(engine.requests) == 1


def test_good_window_needs_no_retry_and_is_answered_after_closing(decoders: Decoders) -> None:
    decoder = decoders(in_turn(GOOD))
    decoder.close()

    assert decoder.submit(REQUEST, 10.0, "0").result(timeout=60) == GOOD


def test_closing_fails_the_retries_that_wait_and_leaves_the_running_ones(decoders: Decoders) -> None:
    # Given an engine that holds up each retry it is given
    held, go_on = threading.Semaphore(0), threading.Event()

    def answer(request: WindowRequest, number: int) -> WindowResult:
        if not request.temperature:
            return LOW
        held.release()
        assert go_on.wait(60)
        return GOOD

    decoder = decoders(scripted(answer))
    try:
        # and as many windows as there are threads, then one more
        running = [decoder.submit(REQUEST, 10.0, str(number)) for number in range(2)]
        assert all(held.acquire(timeout=60) for _ in running)
        waiting = decoder.submit(REQUEST, 10.0, "2")

        decoder.close()

        assert isinstance(waiting.exception(timeout=60), EngineLostError)
    finally:
        go_on.set()
    assert [future.result(timeout=60).text for future in running] == [GOOD.text] * 2


# The engine's own thread.


class OneThreadEngine:
    """Answers in its own thread, when told to, as vLLM's loop does; notes which thread brings each window."""

    def __init__(self, *results: WindowResult) -> None:
        self.facts = FACTS
        self.brought_by: list[str] = []
        self.told_by: list[str] = []
        self.submitted = threading.Event()
        self._results = list(results)
        self._loop = ThreadPoolExecutor(1, thread_name_prefix="engine")

    def submit(self, request: WindowRequest) -> Future[WindowResult]:
        self.brought_by.append(threading.current_thread().name)
        future: Future[WindowResult] = Future()
        future.add_done_callback(lambda _: self.told_by.append(threading.current_thread().name))
        result = self._results.pop(0)

        def work() -> None:
            assert self.submitted.wait(60)
            future.set_result(result)

        self._loop.submit(work)
        return future

    def healthy(self) -> bool:
        return True

    def load(self) -> EngineLoad:
        return EngineLoad(running=self.facts.max_num_seqs)

    def close(self) -> None:
        self._loop.shutdown()


def test_retries_do_not_run_in_the_engines_thread(decoders: Decoders) -> None:
    """Log-mel of a retry would keep the engine's loop from all other windows' answers."""
    prompted = replace(REQUEST, prompt="names: Ada Lovelace, Grace Hopper")
    engine = OneThreadEngine(LOW, LOW, heard("Ada Lovelace, Grace Hopper."), EMPTY)
    try:
        future = decoders(engine, temperatures=(0.0, 0.2, 0.4)).submit(prompted, 0.1, "0")
        engine.submitted.set()

        assert future.result(timeout=60).flags == ("no_speech", "prompt_echo")
        wait_for(lambda: len(engine.told_by) == 4)
    finally:
        engine.submitted.set()
        engine.close()

    assert engine.told_by == ["engine_0"] * 4
    assert engine.brought_by[0] == threading.current_thread().name
    assert all(name.startswith("retry") for name in engine.brought_by[1:]), engine.brought_by


def test_many_windows_at_once_each_get_their_own_answer(decoders: Decoders) -> None:
    """A window's first sample is its number; odd ones need a retry."""

    def answer(request: WindowRequest, _: int) -> WindowResult:
        number = int(request.samples[0])
        bad = number % 2 and not request.temperature
        return heard(f"window {number}", avg_logprob=-1.5 if bad else -0.2)

    decoder = decoders(scripted(answer))
    numbers = range(200)

    futures = [
        decoder.submit(replace(REQUEST, samples=np.array([number], np.float32)), 10.0, str(number))
        for number in numbers
    ]

    results = [future.result(timeout=60) for future in futures]
    assert [result.text for result in results] == [f"window {number}" for number in numbers]
    assert [result.attempts for result in results] == [1 + number % 2 for number in numbers]
