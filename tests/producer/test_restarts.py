"""When a worker that has ended is started again."""

from __future__ import annotations

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.restarts import HEALTHY_SECONDS, LONGEST_PAUSE_SECONDS, Restarts
from workers import exit_codes


def test_pauses_grow_up_to_a_minute_and_end_with_the_limit() -> None:
    restarts = Restarts(limit=8)
    pauses = [restarts.pause_seconds(exit_codes.FAILED, 1.0) for _ in range(9)]
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, None]


def test_a_healthy_run_forgets_the_failures_before() -> None:
    restarts = Restarts(limit=2)
    assert [restarts.pause_seconds(-signal.SIGKILL, 1.0) for _ in range(2)] == [1, 2]
    assert restarts.pause_seconds(-signal.SIGKILL, HEALTHY_SECONDS) == 1
    assert restarts.pause_seconds(-signal.SIGKILL, 1.0) == 2
    assert restarts.pause_seconds(-signal.SIGKILL, 1.0) is None


@pytest.mark.parametrize("code", [exit_codes.CANNOT_START, exit_codes.USAGE])
def test_a_worker_that_cannot_start_is_given_up(code: int) -> None:
    assert Restarts(limit=10).pause_seconds(code, 1.0) is None


def test_a_worker_that_could_start_before_is_not() -> None:
    """The memory of a GPU whose engine has just died may not be free yet."""
    restarts = Restarts(limit=10)
    assert restarts.pause_seconds(exit_codes.FAILED, 100.0) == 1
    assert restarts.pause_seconds(exit_codes.CANNOT_START, 1.0) == 2


@given(st.integers(0, 20), st.lists(st.tuples(st.integers(-15, 255), st.floats(0, 2 * HEALTHY_SECONDS))))
def test_never_more_restarts_in_a_row_than_the_limit(limit: int, runs: list[tuple[int, float]]) -> None:
    restarts = Restarts(limit)
    in_a_row = 0
    for code, ran_seconds in runs:
        pause = restarts.pause_seconds(code, ran_seconds)
        if code == 0:
            assert pause is None
        if pause is None:
            return
        in_a_row = 1 if ran_seconds >= HEALTHY_SECONDS else in_a_row + 1
        assert in_a_row <= max(limit, 1)
        assert 0 < pause <= LONGEST_PAUSE_SECONDS
    assert limit > 0 or not runs
