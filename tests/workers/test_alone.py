"""The gate before a worker's engine: many together, suspects alone, in the order in which they came."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet import wait_for
from workers import alone
from workers.alone import Gate, ShutError
from workers.errors import EngineLostError

WAIT_SECONDS = 30.0


class Visitors:
    """Threads that go through one gate, each until it is told to leave."""

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self.gate = Gate(self.stopping)
        self.inside: set[str] = set()
        self._threads = ThreadPoolExecutor(16)
        self._leave: dict[str, threading.Event] = {}

    def come(self, name: str, *, alone: bool = False) -> Future[None]:
        """Stand in line; returns when the place is taken or the thread inside."""
        self._leave[name] = threading.Event()
        before = len(self.gate._line)
        entered = threading.Event()
        done = self._threads.submit(self._visit, name, alone, entered)
        wait_for(lambda: entered.is_set() or len(self.gate._line) > before or done.done())
        return done

    def leave(self, *names: str) -> None:
        for name in names:
            self._leave[name].set()

    def close(self) -> None:
        self.stopping.set()
        self.leave(*self._leave)
        self._threads.shutdown()

    def _visit(self, name: str, alone: bool, entered: threading.Event) -> None:
        with self.gate.entered(alone=alone):
            self.inside.add(name)
            entered.set()
            assert self._leave[name].wait(WAIT_SECONDS)
            self.inside.remove(name)


@pytest.fixture
def visitors(monkeypatch: pytest.MonkeyPatch) -> Iterator[Visitors]:
    monkeypatch.setattr(alone, "SHUT_SECONDS", WAIT_SECONDS)
    made = Visitors()
    yield made
    made.close()


def test_a_suspect_waits_for_those_inside_and_those_behind_it_wait_for_the_suspect(visitors: Visitors) -> None:
    visitors.come("a")
    visitors.come("b")
    assert visitors.inside == {"a", "b"}
    visitors.come("suspect", alone=True)
    visitors.come("c")
    visitors.come("second suspect", alone=True)
    # None behind the suspect goes before it, or it could wait for ever
    assert visitors.inside == {"a", "b"}
    visitors.leave("a")
    visitors.leave("b")
    wait_for(lambda: visitors.inside == {"suspect"})
    visitors.leave("suspect")
    wait_for(lambda: visitors.inside == {"c"})
    visitors.leave("c")
    wait_for(lambda: visitors.inside == {"second suspect"})


def test_who_waits_at_the_end_of_the_worker_does_not_get_in(visitors: Visitors) -> None:
    visitors.come("suspect", alone=True)
    waiting = visitors.come("a")
    visitors.stopping.set()
    with pytest.raises(EngineLostError, match="the worker is ending"):
        waiting.result(WAIT_SECONDS)
    assert visitors.inside == {"suspect"}


def test_whoever_waits_for_anothers_suspect_gives_up_and_a_suspect_that_is_first_does_not(
    visitors: Visitors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alone, "SHUT_SECONDS", 0.1)
    # Given a suspect that waits for somebody inside, and others behind it
    assert not visitors.gate.shut()
    visitors.come("a")
    assert not visitors.gate.shut()
    first = visitors.come("suspect", alone=True)
    assert visitors.gate.shut()
    # Then these go, be they suspects or not, and it stays
    for name, is_suspect in (("b", False), ("second suspect", True)):
        with pytest.raises(ShutError):
            visitors.come(name, alone=is_suspect).result(WAIT_SECONDS)
    assert not first.done()
    visitors.leave("a")
    wait_for(lambda: visitors.inside == {"suspect"})
    # Also while it is inside
    assert visitors.gate.shut()
    with pytest.raises(ShutError):
        visitors.come("c").result(WAIT_SECONDS)
    visitors.leave("suspect")
    first.result(WAIT_SECONDS)
    assert not visitors.gate.shut()


def test_an_error_inside_opens_the_gate(visitors: Visitors) -> None:
    with pytest.raises(ZeroDivisionError), visitors.gate.entered(alone=True):
        raise ZeroDivisionError
    visitors.come("a")
    assert visitors.inside == {"a"}


@settings(max_examples=25)
@given(st.lists(st.booleans(), min_size=1, max_size=24))
def test_whatever_comes_all_get_through_and_suspects_are_alone(kinds: list[bool]) -> None:
    gate = Gate(threading.Event())
    lock = threading.Lock()
    inside: list[bool] = []
    wrong: list[list[bool]] = []

    def visit(alone: bool) -> None:
        with gate.entered(alone=alone):
            with lock:
                inside.append(alone)
                if any(inside) and len(inside) > 1:
                    wrong.append(list(inside))
            threading.Event().wait(0.001)
            with lock:
                inside.remove(alone)

    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(visit, alone) for alone in kinds]:
            done.result(WAIT_SECONDS)
    assert wrong == []
