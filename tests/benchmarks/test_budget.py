"""A benchmark on a slow machine does less, and says what it has done."""

from __future__ import annotations

import pytest

from benchmarks.budget import Budget


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("minutes", "reserve", "seconds", "done"),
    [
        (None, 0.5, [1e6] * 5, 5),
        (10.0, 0.0, [60.0] * 5, 5),
        (10.0, 0.0, [120.0] * 8, 5),
        (10.0, 0.5, [120.0] * 8, 4),  # 8 minutes, and one for what comes after
        (10.0, 0.0, [60.0, 240.0, 60.0, 60.0, 60.0], 4),  # at 7 there is no room for another of 4
        (10.0, 0.0, [700.0, 1.0], 1),  # the first one always
    ],
)
def test_as_many_as_there_is_time_for(minutes: float | None, reserve: float, seconds: list[float], done: int) -> None:
    clock = Clock()
    budget = Budget(minutes, reserve, clock)

    given = []
    for one in budget.repeats(range(len(seconds))):
        clock.now += seconds[one]
        given.append(one)

    assert given == list(range(done))


def test_the_longest_counts_in_later_series_too() -> None:
    clock = Clock()
    budget = Budget(10.0, 0.0, clock)
    for _ in budget.repeats("a"):
        clock.now += 250.0

    assert not budget.over
    clock.now += 101.0
    assert budget.over
    assert list(budget.repeats("b")) == []
