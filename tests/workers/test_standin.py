"""The stand-in behaves like an engine where queues care, and never looks like one that transcribes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import wait

import numpy as np
import pytest

from fleet import wait_for
from workers.errors import EngineLostError
from workers.interface import WindowRequest, WindowSegment
from workers.languages import LANGUAGES
from workers.settings import load_settings
from workers.standin import StandInEngine


def engine_of(**settings: float) -> StandInEngine:
    return StandInEngine(load_settings(engine="standin", **settings))


@pytest.fixture
def engine() -> Iterator[StandInEngine]:
    made = engine_of()
    yield made
    made.close()


def window(seed: int = 0, seconds: float = 1.0, **changes: object) -> WindowRequest:
    samples = np.random.default_rng(seed).normal(0, 0.1, round(seconds * 16_000)).astype(np.float32)
    return WindowRequest(**{"samples": samples, "task": "transcribe", **changes})  # type: ignore[arg-type]


def test_says_loudly_what_it_is(engine: StandInEngine) -> None:
    result = engine.submit(window()).result(30)

    assert result.text.startswith("stand-in ")
    assert result.flags == ("standin",)
    assert (engine.facts.model, engine.facts.device) == ("standin", "none")
    assert engine.facts.languages == tuple(LANGUAGES)


def test_same_audio_gives_the_same_text_and_other_audio_another(engine: StandInEngine) -> None:
    one, again, other = (engine.submit(window(seed)).result(30).text for seed in (1, 1, 2))

    assert one == again != other


def test_request_is_reflected(engine: StandInEngine) -> None:
    request = window(seconds=2.5, language="de", timestamps=True, temperature=0.2)

    result = engine.submit(request).result(30)

    assert (result.language, result.temperature) == ("de", 0.2)
    assert result.segments == (WindowSegment(0.0, 2.5, result.text),)


def test_windows_that_nobody_wants_any_more_are_left_out() -> None:
    # Given a window in the engine's only place, where it stays, and three that wait
    engine = engine_of(max_num_seqs=1, standin_steps=1_000_000)
    try:
        first, *unwanted, last = (engine.submit(window(seed)) for seed in range(4))
        wait_for(lambda: len(engine._waiting) == 3)

        # When the others are cancelled, and the running one as well
        assert all(future.cancel() for future in (*unwanted, first))

        # Then the last one gets the place
        wait_for(lambda: not engine._waiting)
        assert (engine.load().running, engine.load().waiting) == (1, 0)
        # And cancelled ones are no obstacle to closing, of which those that run or wait hear
        unwanted, waiting = (engine.submit(window(seed)) for seed in range(2))
        assert unwanted.cancel()
    finally:
        engine.close()
    for future in (last, waiting):
        with pytest.raises(EngineLostError):
            future.result(30)


def test_urgent_windows_go_before_those_that_wait() -> None:
    # Given an engine with one place, which all windows reach together
    engine = engine_of(max_num_seqs=1, standin_steps=3)
    requests = [window(seed, urgent=seed in (2, 4)) for seed in range(5)]
    done: list[int] = []
    try:
        with engine._changed:
            futures = [engine.submit(request) for request in requests]
            for seed, future in enumerate(futures):
                future.add_done_callback(lambda _, seed=seed: done.append(seed))
        wait_for(lambda: len(done) == len(futures))
    finally:
        engine.close()
    assert done == [2, 4, 0, 1, 3]


def test_decodes_no_more_windows_together_than_its_batch_holds() -> None:
    """With a batch of one, no window can have been decoded when one before it is done."""
    engine = engine_of(max_num_seqs=1, standin_steps=3)
    done_before: list[int] = []
    try:
        with engine._changed:  # it begins none before all are here
            futures = [engine.submit(window(seed)) for seed in range(4)]
            for future in futures:
                # Called in the engine's own thread, between two steps.
                future.add_done_callback(lambda _: done_before.append(sum(one.done() for one in futures)))
        assert not wait(futures, 30).not_done
    finally:
        engine.close()
    assert done_before == [1, 2, 3, 4]


def test_closing_fails_what_runs_and_what_waits() -> None:
    # Given an engine that would need minutes
    engine = engine_of(max_num_seqs=1, standin_steps=10_000, standin_step_ms=20)
    running, waiting = engine.submit(window(1)), engine.submit(window(2))
    assert engine.healthy()

    # When it is closed
    engine.close()

    # Then both are lost at once, and nothing more is taken
    for future in (running, waiting):
        with pytest.raises(EngineLostError):
            future.result(30)
    assert not engine.healthy()
    with pytest.raises(EngineLostError):
        engine.submit(window(3))
