"""The parts of a worker's start: what each takes, and what others see of them."""

from __future__ import annotations

import os
import threading

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet import Fleet
from workers import keys
from workers.publisher import publish
from workers.startup import Starting, Startup, in_words, overview, process_age_seconds, starting_workers


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_process_knows_its_age() -> None:
    def by_psutil() -> float:
        return float(psutil.time.time() - psutil.Process(os.getpid()).create_time())

    # psutil's boot time is in whole seconds
    assert by_psutil() - 1.5 < (age := process_age_seconds()) < by_psutil() + 1.5, age


def test_parts_beside_each_other_each_have_their_time() -> None:
    clock = Clock()
    parts = Startup(age_seconds=2.0, clock=clock)
    # Given a part, and one beside it
    first = parts.begin("first")
    clock.now += 1
    second = parts.begin("second")
    clock.now += 3
    # Then the last one that is not done is what the worker does
    assert parts.doing == "second"
    parts.end(second)
    assert parts.doing == "first"
    clock.now += 1
    parts.end(first)
    # And each took what it took, the process before them too
    assert parts.seconds() == {"starting Python": 2.0, "first": 5.0, "second": 3.0}
    assert parts.total_seconds == 7.0
    assert overview(parts.seconds()) == "starting Python 2.0, first 5.0, second 3.0"


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.01, 100)), max_size=8))
def test_parts_one_after_another_add_up(steps: list[tuple[str, float]]) -> None:
    clock = Clock()
    parts = Startup(clock=clock)
    for name, took in steps:
        with parts.part(name):
            clock.now += took
    assert sum(parts.seconds().values()) == pytest.approx(parts.total_seconds, abs=0.01)
    assert list(parts.seconds()) == list(dict.fromkeys(name for name, _ in steps))


def test_a_part_that_fails_is_done() -> None:
    parts = Startup()
    with pytest.raises(ValueError, match="no"), parts.part("failing"):
        raise ValueError("no")
    with parts.part("next"):
        assert parts.doing == "next"
    assert parts.doing == "starting Python"


def test_whoever_wants_to_know_is_told_of_each_part() -> None:
    parts, told = Startup(), list[str]()
    parts.changed = lambda: told.append(parts.doing)
    threads = [threading.Thread(target=parts.begin, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
        thread.join()
    assert told == ["a", "b"]


def test_starting_workers_are_found_and_what_cannot_be_read_is_not(fleet: Fleet) -> None:
    for name, doing in (("two@b", "importing vLLM"), ("one@a", "warming up")):
        said = Starting(name=name, doing=doing, total_seconds=3.0)
        publish(fleet.redis, keys.STARTING, keys.starting(name, "1"), said.model_dump_json())
    publish(fleet.redis, keys.STARTING, keys.starting("odd@c", "1"), b"\xff")

    found = starting_workers(fleet.redis)

    assert [one.name for one in found] == ["one@a", "two@b"]
    assert in_words(found) == "one: warming up; two: importing vLLM"
    assert in_words([]) == ""
