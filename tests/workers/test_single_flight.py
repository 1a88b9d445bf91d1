"""Work under way is joined, not repeated."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from fleet import wait_for
from workers.errors import EngineLostError, TranscriptionError
from workers.single_flight import SingleFlight

WAIT_SECONDS = 30.0


class Work:
    """Counts its runs; each waits to be let go."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go = threading.Event()
        self.runs = 0

    def __call__(self) -> str:
        self.runs += 1
        self.begun.set()
        assert self.go.wait(WAIT_SECONDS)
        return f"run {self.runs}"


@pytest.mark.parametrize("reuse", [True, False])
def test_second_delivery_gets_the_outcome_of_the_first(reuse: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    flights, work = SingleFlight(), Work()
    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(flights.run, "id", work, reuse=reuse)
        assert work.begun.wait(WAIT_SECONDS)
        others = [threads.submit(flights.run, "id", work, reuse=reuse) for _ in range(2)]
        assert flights.run("another id", lambda: "other", reuse=reuse) == "other"
        wait_for(lambda: caplog.text.count("joined to the run") == 2)
        work.go.set()
        assert [one.result(WAIT_SECONDS) for one in (first, *others)] == ["run 1"] * 3
    assert work.runs == 1


def test_what_joins_a_run_may_make_something_else_of_it() -> None:
    flights = SingleFlight()
    assert flights.run("id", lambda: "outcome", reuse=True, joined=lambda _: "not this one") == "outcome"
    assert flights.run("id", lambda: "again", reuse=True, joined=lambda flight: [flight.result()]) == ["outcome"]


def test_outcome_is_kept_for_a_while_for_who_may_use_it() -> None:
    flights, outcomes = SingleFlight(), iter("abcd")

    assert flights.run("id", lambda: next(outcomes), reuse=True) == "a"
    assert flights.run("id", lambda: next(outcomes), reuse=True) == "a"
    # A message that was never delivered before is new, whatever its id
    assert flights.run("id", lambda: next(outcomes), reuse=False) == "b"

    forgets = SingleFlight(keep_seconds=-1.0)
    assert [forgets.run("id", lambda: next(outcomes), reuse=True) for _ in range(2)] == ["c", "d"]
    assert len(forgets._flights) == 1


def test_refusal_is_an_outcome_and_a_message_given_back_is_none() -> None:
    flights, runs = SingleFlight(), []

    def fail(error: Exception) -> None:
        runs.append(error)
        raise error

    for _ in range(2):
        with pytest.raises(TranscriptionError):
            flights.run("refused", lambda: fail(TranscriptionError("too_long", "x")), reuse=True)
    assert len(runs) == 1
    for _ in range(2):
        with pytest.raises(EngineLostError):
            flights.run("given back", lambda: fail(EngineLostError()), reuse=True)
    assert len(runs) == 3
