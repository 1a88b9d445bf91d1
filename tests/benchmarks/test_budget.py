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


@pytest.mark.parametrize(("preparation", "series"), [(0.0, 3), (60.0, 2), (99.0, 2), (101.0, 1)])
def test_a_series_begins_only_with_time_for_what_comes_before_its_first_repeat(preparation: float, series: int) -> None:
    # Given ten minutes, series of one repeat of 200 s, and their preparation (loading an engine)
    clock = Clock()
    budget = Budget(10.0, 0.0, clock)

    given = []
    for one in budget.series("abc"):
        given.append(one)
        clock.now += preparation / 2
        for _ in budget.repeats("x"):
            clock.now += 200.0
        clock.now += preparation / 2

    assert given == list("abc"[:series])


def test_the_longest_counts_in_later_series_too() -> None:
    clock = Clock()
    budget = Budget(10.0, 0.0, clock)
    for _ in budget.repeats("a"):
        clock.now += 250.0

    clock.now += 101.0
    assert list(budget.repeats("b")) == []
    assert list(budget.series("c")) == []
