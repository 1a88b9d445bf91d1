"""How full an engine's batch is and was."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.interface import EngineLoad, WindowRequest
from workers.progress import Progress
from workers.settings import load_settings
from workers.standin import StandInEngine


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("in_flight", "batches"), [(0, 1), (1, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_a_window_waits_for_whole_batches(in_flight: int, batches: int) -> None:
    progress = Progress(room=4)
    for _ in range(in_flight):
        progress.started()
    assert progress.batches() == batches


def test_windows_beyond_the_batch_wait() -> None:
    clock = Clock()
    progress = Progress(room=2, clock=clock)
    assert progress.load() == EngineLoad()
    for _ in range(3):
        progress.started()
        clock.now += 1
    # Three in flight for one second, two for one, one for one
    assert progress.load() == EngineLoad(running=2, waiting=1, busy_seconds=3.0, full_seconds=2.0)
    for _ in range(3):
        progress.ended()
        clock.now += 10
    # Two for ten seconds more, then one, then none
    assert progress.load() == EngineLoad(running=0, waiting=0, busy_seconds=23.0, full_seconds=12.0)


@given(st.integers(1, 4), st.lists(st.tuples(st.booleans(), st.floats(0, 10))))
def test_an_engine_is_full_no_longer_than_it_is_busy(room: int, steps: list[tuple[bool, float]]) -> None:
    clock = Clock()
    progress = Progress(room=room, clock=clock)
    in_flight = 0
    for starts, seconds in steps:
        if starts:
            progress.started()
            in_flight += 1
        elif in_flight:
            progress.ended()
            in_flight -= 1
        clock.now += seconds
    load = progress.load()
    assert load.running + load.waiting == in_flight
    assert load.running <= room
    assert 0 <= load.full_seconds <= load.busy_seconds + 1e-6 <= clock.now - 100 + 2e-6


def test_an_engine_tells_what_it_has_in_hand() -> None:
    engine = StandInEngine(load_settings(engine="standin", max_num_seqs=2, standin_step_ms=20, standin_steps=1000))
    try:
        request = WindowRequest(np.zeros(1600, dtype=np.float32), "transcribe")
        futures = [engine.submit(request) for _ in range(5)]
        assert (engine.load().running, engine.load().waiting) == (2, 3)
    finally:
        engine.close()
    done = threading.Event()
    for future in futures:
        future.add_done_callback(lambda _: done.set())
    assert done.wait(60)
