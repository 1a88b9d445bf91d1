"""Places of many threads: each is one thread's at a time, one is left for the urgent, and nobody is forgotten."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from workers.places import ClosedError, Places

SECONDS = 30.0


@pytest.fixture
def places() -> Places[str]:
    return Places(["cold", "warm"])


def begun(action: Callable[[], str]) -> Future[str]:
    """What ``action`` will give, in a thread that does not keep the test from ending."""
    future: Future[str] = Future()

    def run() -> None:
        try:
            future.set_result(action())
        except BaseException as error:  # noqa: BLE001 - for who looks at the future
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def waits(future: Future[str]) -> bool:
    """Whether it is not done for a while: what should wait and does not is done at once."""
    with pytest.raises(TimeoutError):
        future.result(0.2)
    return True


def test_the_place_put_back_last_goes_first(places: Places[str]) -> None:
    assert places.take() == "warm"
    places.put("warm")

    assert places.take(urgent=True) == "warm"


def test_one_place_is_left_for_the_urgent(places: Places[str]) -> None:
    # Given a usual thread that has its place, and another one that waits
    taken = places.take()
    usual = begun(places.take)
    assert waits(usual)

    # When an urgent one comes, then it has the other place
    assert begun(lambda: places.take(urgent=True)).result(SECONDS) == "cold"
    # And put back, that is not for the usual one
    places.put("cold")
    assert waits(usual)
    places.put(taken)
    assert usual.result(SECONDS) == "warm"


def test_a_place_put_back_goes_to_the_urgent_first(places: Places[str]) -> None:
    # Given all places taken, a usual thread that waits and an urgent one that came later
    both = [places.take(), places.take(urgent=True)]
    usual = begun(places.take)
    assert waits(usual)
    urgent = begun(lambda: places.take(urgent=True))
    assert waits(urgent)

    # When both are put back one after another
    places.put(both[0])

    # Then the urgent one has the first
    assert urgent.result(SECONDS) == both[0]
    places.put(both[1])
    assert waits(usual)
    places.put(both[0])
    assert usual.result(SECONDS) == both[0]


def test_whoever_waits_when_it_is_closed_is_told(places: Places[str]) -> None:
    places.take()
    places.take(urgent=True)
    waiting = [begun(places.take), begun(lambda: places.take(urgent=True))]
    assert all(waits(one) for one in waiting)

    places.close()

    for one in waiting:
        with pytest.raises(ClosedError):
            one.result(SECONDS)
    places.put("warm")
    with pytest.raises(ClosedError):
        places.take()


@pytest.mark.parametrize("number", [2, 5])
def test_many_threads_share_them_and_none_waits_for_ever(number: int) -> None:
    places, free = Places(range(number)), set(range(number))

    def work(thread: int) -> None:
        for turn in range(300):
            place = places.take(urgent=(thread + turn) % 3 == 0)
            free.remove(place)  # a KeyError: somebody else has it
            time.sleep(0)
            free.add(place)
            places.put(place)

    with ThreadPoolExecutor(16) as threads:
        try:
            for done in [threads.submit(work, thread) for thread in range(16)]:
                done.result(SECONDS)
        finally:
            places.close()
    assert free == set(range(number))
