"""Places of many threads: each is one thread's at a time, one more is for the urgent, and nobody is forgotten."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from fleet import wait_for
from workers.places import ClosedError, Places

SECONDS = 30.0


@pytest.fixture
def places() -> Places[str]:
    return Places(["coldest", "cold", "warm"])


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


def in_line(places: Places[str]) -> tuple[int, int]:
    """How many usual and urgent threads wait and were not told to look."""
    with places._usual:
        return len(places._usual._waiters), len(places._urgent._waiters)  # type: ignore[attr-defined]


def test_the_place_put_back_last_goes_first(places: Places[str]) -> None:
    assert places.take() == "warm"
    assert places.take() == "cold"
    places.put("warm")

    assert places.take(urgent=True) == "warm"


def test_one_place_more_is_for_the_urgent(places: Places[str]) -> None:
    # Given usual threads that have as many as they may, and another one that waits
    taken = [places.take(), places.take()]
    usual = begun(places.take)
    wait_for(lambda: in_line(places) == (1, 0))

    # When an urgent one comes, then it has the place that is left
    assert begun(lambda: places.take(urgent=True)).result(SECONDS) == "coldest"
    # And put back, that is not for the usual one
    places.put("coldest", urgent=True)
    assert in_line(places) == (1, 0)
    places.put(taken[0])
    assert usual.result(SECONDS) == "warm"


def test_the_usual_have_all_that_are_theirs_beside_an_urgent_one(places: Places[str]) -> None:
    places.take(urgent=True)

    assert [begun(places.take).result(SECONDS) for _ in range(2)] == ["cold", "coldest"]


def test_a_place_put_back_goes_to_the_urgent_first(places: Places[str]) -> None:
    # Given all places taken, a usual thread that waits and urgent ones that came later
    taken = [places.take(), places.take()]
    places.take(urgent=True)
    usual = begun(places.take)
    wait_for(lambda: in_line(places) == (1, 0))
    urgent = [begun(lambda: places.take(urgent=True)) for _ in range(2)]
    wait_for(lambda: in_line(places) == (1, 2))

    # When two are put back one after another
    for place in taken:
        places.put(place)

    # Then the urgent ones have them, and the usual one the next
    assert {one.result(SECONDS) for one in urgent} == set(taken)
    assert in_line(places) == (1, 0)
    places.put("again", urgent=True)
    assert usual.result(SECONDS) == "again"


def test_whoever_waits_when_it_is_closed_is_told(places: Places[str]) -> None:
    for _ in range(2):
        places.take()
    places.take(urgent=True)
    waiting = [begun(places.take), begun(lambda: places.take(urgent=True))]
    wait_for(lambda: in_line(places) == (1, 1))

    places.close()

    for one in waiting:
        with pytest.raises(ClosedError):
            one.result(SECONDS)
    places.put("warm")
    with pytest.raises(ClosedError):
        places.take()


@pytest.mark.parametrize("urgent", [False, True])
def test_whoever_should_not_wait_any_longer_leaves_the_line(places: Places[str], urgent: bool) -> None:
    # Given one that waits until it is told not to
    taken = [places.take(), places.take()]
    places.take(urgent=True)
    over = threading.Event()

    def check() -> None:
        if over.is_set():
            raise InterruptedError

    waiting = begun(lambda: places.take(urgent=urgent, check=check))
    wait_for(lambda: in_line(places) == (int(not urgent), int(urgent)))
    over.set()
    with pytest.raises(InterruptedError):
        waiting.result(SECONDS)

    # Then nothing is kept for it
    places.put(taken[0])
    assert begun(places.take).result(SECONDS) == taken[0]


@pytest.mark.parametrize("number", [2, 5])
def test_many_threads_share_them_and_none_waits_for_ever(number: int) -> None:
    places, free = Places(range(number)), set(range(number))

    def work(thread: int) -> None:
        for turn in range(300):
            urgent = (thread + turn) % 3 == 0
            place = places.take(urgent=urgent)
            free.remove(place)  # a KeyError: somebody else has it
            time.sleep(0)
            free.add(place)
            places.put(place, urgent=urgent)

    with ThreadPoolExecutor(16) as threads:
        try:
            for done in [threads.submit(work, thread) for thread in range(16)]:
                done.result(SECONDS)
        finally:
            places.close()
    assert free == set(range(number))
