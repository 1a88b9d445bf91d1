"""What a delivery leads to, decision by decision, with the marks in a real Valkey."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
from celery.exceptions import Reject

from fleet import Fleet, wait_for
from workers import alone, delivery, keys
from workers.delivery import Deliveries, Envelope
from workers.errors import EngineLostError, TranscriptionError
from workers.marks import DONE_SECONDS, Claim, TaskMarks
from workers.messages import Failure
from workers.settings import load_settings

WAIT_SECONDS = 30.0
ENVELOPE = Envelope("t", "whisper.transcribe", "transcribe", 5, redelivered=True)


@dataclass
class Told:
    """A message's work that tells what was asked of it; its run waits to be let go."""

    of_job: bool = True
    done_seconds: int = 60
    divisible: bool = False
    error: Exception | None = None
    go: threading.Event = field(default_factory=threading.Event)
    running: threading.Event = field(default_factory=threading.Event)
    asked: list[tuple[str, Any]] = field(default_factory=list)

    def run(self, claim: Claim) -> str:
        self.asked.append(("run", claim))
        self.running.set()
        assert self.go.wait(WAIT_SECONDS)
        if self.error is not None:
            raise self.error
        return "run"

    def divide(self, claim: Claim) -> str:
        return self._without_engine("divided", "divide", claim)

    def give_up(self, claim: Claim, failure: Failure) -> str:
        return self._without_engine("given up", "give up", failure.type)

    def repeat(self) -> str:
        return "repeated"

    def _without_engine(self, outcome: str, *asked: Any) -> str:
        self.asked.append(asked)
        if self.error is not None:
            raise self.error
        return outcome


def ready(**changes: Any) -> Told:
    """Work that is done at once."""
    told = Told(**changes)
    told.go.set()
    return told


@dataclass
class Worker:
    """The deliveries of one process, whose engine's health and end a test decides on."""

    deliveries: Deliveries
    marks: TaskMarks
    stopping: threading.Event
    healthy: list[bool]
    threads: ThreadPoolExecutor

    def start(self, work: Told, task_id: str = "t") -> Future[Any]:
        return self.threads.submit(self.deliveries.handle, replace(ENVELOPE, id=task_id), work)


@pytest.fixture
def worker(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Worker]]:
    made: list[Worker] = []
    monkeypatch.setattr(delivery, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(alone, "SHUT_SECONDS", WAIT_SECONDS)

    def make() -> Worker:
        stopping, healthy = threading.Event(), [True]
        marks = TaskMarks(fleet.redis, stopping, load_settings(visibility_timeout_seconds=5, lease_seconds=0.1))
        marks.start()
        deliveries = Deliveries(marks, stopping, lambda: healthy[0])
        made.append(Worker(deliveries, marks, stopping, healthy, ThreadPoolExecutor(8)))
        return made[-1]

    yield make
    for one in made:
        one.stopping.set()
        one.marks.close(release=False)
        one.threads.shutdown()


def test_suspect_runs_while_nothing_else_does(worker: Callable[[], Worker]) -> None:
    # Given a worker at work, and a suspect
    here = worker()
    before, suspect, after = Told(), Told(), Told()
    here.marks.accuse("suspect", Claim("mine", deaths=1))
    first = here.start(before, "before")
    assert before.running.wait(WAIT_SECONDS)
    # When it comes, and another message after it
    second = here.start(suspect, "suspect")
    wait_for(lambda: here.deliveries._gate._line)
    third = here.start(after, "after")
    wait_for(lambda: len(here.deliveries._gate._line) == 2)
    # Then it waits for the first, and the last waits for it
    assert not suspect.running.is_set()
    before.go.set()
    assert suspect.running.wait(WAIT_SECONDS)
    assert not after.running.is_set()
    suspect.go.set()
    after.go.set()
    assert [done.result(WAIT_SECONDS) for done in (first, second, third)] == ["run"] * 3


@pytest.mark.parametrize(("done", "outcome", "runs"), [(True, "repeated", 0), (False, "run", 1)])
def test_a_call_that_comes_again_runs_only_without_its_result(
    worker: Callable[[], Worker], monkeypatch: pytest.MonkeyPatch, done: bool, outcome: str, runs: int
) -> None:
    """Done and not acknowledged, as its connection broke: it leaves no mark, but its result."""
    monkeypatch.setattr(Deliveries, "_has_result", lambda *_: done)
    work = ready(of_job=False, done_seconds=0)
    assert worker().start(work).result(WAIT_SECONDS) == outcome
    assert [what for what, _ in work.asked] == ["run"] * runs


@pytest.mark.parametrize(("stored", "outcome"), [(True, "repeated"), (False, "run")])
def test_a_call_that_joins_its_own_run_has_no_result_of_its_own(
    worker: Callable[[], Worker], monkeypatch: pytest.MonkeyPatch, stored: bool, outcome: str
) -> None:
    """What follows it would be sent twice. Where no result comes, nobody wanted it, or storing it failed."""
    monkeypatch.setattr(Deliveries, "_has_result", lambda *_: stored)
    monkeypatch.setattr(delivery, "STORED_SECONDS", 0.1)
    here, work = worker(), Told(of_job=False, done_seconds=0)
    first = here.threads.submit(here.deliveries.handle, replace(ENVELOPE, redelivered=False), work)
    assert work.running.wait(WAIT_SECONDS)
    second = here.threads.submit(here.deliveries.handle, replace(ENVELOPE, redelivered=True), work)
    work.go.set()
    assert (first.result(WAIT_SECONDS), second.result(WAIT_SECONDS)) == ("run", outcome)
    assert len(work.asked) == 1


@pytest.mark.parametrize(
    ("claim", "divisible", "outcome"),
    [
        (Claim("mine", deaths=1), False, "run"),
        (Claim("mine", deaths=5), True, "run"),
        (Claim("mine", deaths=5, deaths_alone=1), False, "run"),
        (Claim("mine", deaths=5, deaths_alone=1), True, "divided"),
        (Claim("mine", deaths=1, deaths_alone=2), False, "given up"),
    ],
)
def test_deaths_decide(worker: Callable[[], Worker], fleet: Fleet, claim: Claim, divisible: bool, outcome: str) -> None:
    here, work = worker(), ready(divisible=divisible)
    here.marks.accuse("t", claim)

    assert here.start(work).result(WAIT_SECONDS) == outcome

    assert work.asked in ([("run", claim)], [("divide", claim)], [("give up", "quarantined")])
    assert fleet.redis.get(keys.held("t")) == b"done"
    assert here.start(ready()).result(WAIT_SECONDS) == outcome, "the same delivery again"
    assert worker().start(ready()).result(WAIT_SECONDS) == "repeated"


def test_end_of_the_engine_is_a_death_and_the_end_of_the_worker_is_none(
    worker: Callable[[], Worker], fleet: Fleet
) -> None:
    def given_back(end: Callable[[Worker], None]) -> dict[bytes, bytes]:
        here, work = worker(), Told(error=EngineLostError("gone"))
        fleet.redis.flushall()
        done = here.start(work)
        assert work.running.wait(WAIT_SECONDS)
        end(here)
        work.go.set()
        with pytest.raises(Reject) as caught:
            done.result(WAIT_SECONDS)
        assert caught.value.requeue
        assert not fleet.redis.exists(keys.held("t"))
        return fleet.redis.hgetall(keys.task("t"))

    def dies(here: Worker) -> None:
        here.healthy[0] = False
        here.stopping.set()

    def drains(here: Worker) -> None:
        here.stopping.set()

    def closes(here: Worker) -> None:
        here.stopping.set()
        here.deliveries.close()
        here.healthy[0] = False

    def is_told_with_its_engine(here: Worker) -> None:
        """As systemd and batch systems do, which signal all processes."""
        here.deliveries.told_to_end = lambda: True
        here.healthy[0] = False

    death = {b"deaths": b"1", b"deaths_alone": b"0"}
    assert given_back(dies) == death
    assert given_back(is_told_with_its_engine) == {}
    assert given_back(drains) == {}
    assert given_back(closes) == {}
    # and an engine that gave up on this message alone would do so for ever
    assert given_back(lambda here: None) == death


def test_worker_whose_engine_is_gone_begins_nothing(worker: Callable[[], Worker], fleet: Fleet) -> None:
    here, work = worker(), ready()
    here.healthy[0] = False
    here.marks.accuse("t", Claim("mine", deaths=1, deaths_alone=1))

    with pytest.raises(Reject, match="the engine is gone"):
        here.start(work).result(WAIT_SECONDS)

    assert work.asked == []
    assert fleet.redis.hget(keys.task("t"), "deaths_alone") == b"1"
    assert not fleet.redis.exists(keys.held("t")), "another worker has it at once"


def test_another_worker_has_a_message_while_one_without_an_engine_waits(
    worker: Callable[[], Worker], fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = worker(), worker()
    here.healthy[0] = False
    states: list[str] = []
    # In place of the pause, and of that alone: other threads may sleep meanwhile.
    pause = SimpleNamespace(sleep=lambda _: states.append(there.marks.claim("t").state))
    monkeypatch.setattr(delivery, "time", pause)
    with pytest.raises(Reject):
        here.start(ready()).result(WAIT_SECONDS)
    assert states == ["mine"]
    assert fleet.redis.get(keys.held("t")) == there.marks.instance, "the first one's end takes nothing from it"


@pytest.mark.parametrize("left", ["mine", "orphaned"])
def test_worker_that_ends_before_it_begins_keeps_no_claim(
    worker: Callable[[], Worker], fleet: Fleet, left: str
) -> None:
    """It stands still for as long as a mark lasts, and then in a thread of another worker."""
    here, before = worker(), Told()
    if left == "orphaned":
        fleet.redis.hset(keys.task("t"), mapping={"holder": "dead", "alone": 1})
        here.marks._undisturbed_since = float("inf")  # a worker that knows nothing of the others yet
    else:
        here.marks.accuse("t", Claim("mine", deaths=1))  # which waits for what runs
    running = here.start(before, "before")
    assert before.running.wait(WAIT_SECONDS)
    waits = here.start(ready())
    wait_for(lambda: here.deliveries._gate.shut() if left == "mine" else fleet.redis.exists(keys.held("t")))

    here.stopping.set()

    with pytest.raises(Reject, match="the worker is ending"):
        waits.result(WAIT_SECONDS)
    assert not fleet.redis.exists(keys.held("t"))
    assert fleet.redis.hget(keys.task("t"), "holder") == (b"dead" if left == "orphaned" else None)
    before.go.set()
    assert running.result(WAIT_SECONDS) == "run"


def test_worker_that_ends_waits_for_no_other(worker: Callable[[], Worker], fleet: Fleet) -> None:
    there, here, work = worker(), worker(), Told()
    done = there.start(work)
    assert work.running.wait(WAIT_SECONDS)
    waits = here.start(ready())
    wait_for(lambda: fleet.redis.hexists(keys.task("t"), "copied"))
    here.stopping.set()
    with pytest.raises(Reject, match="the worker is ending"):
        waits.result(WAIT_SECONDS)
    assert fleet.redis.get(keys.held("t")) == there.marks.instance
    work.go.set()
    assert done.result(WAIT_SECONDS) == "run"


@pytest.mark.parametrize(("deaths_alone", "asked"), [(1, "divide"), (2, "give up")])
def test_what_cannot_be_taken_apart_or_given_up_by_a_worker_that_ends_is_anothers(
    worker: Callable[[], Worker], fleet: Fleet, deaths_alone: int, asked: str
) -> None:
    here, work = worker(), ready(divisible=True, error=EngineLostError("Redis is away"))
    here.marks.accuse("t", Claim("mine", deaths_alone=deaths_alone))
    with pytest.raises(Reject):
        here.start(work).result(WAIT_SECONDS)
    assert [what for what, _ in work.asked] == [asked]
    assert not fleet.redis.exists(keys.held("t"))


def test_what_another_suspect_is_in_the_way_of_goes_back(
    worker: Callable[[], Worker], fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a suspect that runs
    monkeypatch.setattr(alone, "SHUT_SECONDS", 0.1)
    here, there, suspect = worker(), worker(), Told()
    here.marks.accuse("suspect", Claim("mine", deaths=1))
    running = here.start(suspect, "suspect")
    assert suspect.running.wait(WAIT_SECONDS)
    assert here.deliveries.shut()
    assert not there.deliveries.shut()
    # When another one that came with it, and a message, wait for it
    here.marks.accuse("second", Claim("mine", deaths=1))
    for task_id in ("second", "t"):
        with pytest.raises(Reject, match="runs alone here") as caught:
            here.start(ready(), task_id).result(WAIT_SECONDS)
        # Then they are another worker's
        assert caught.value.requeue
        assert there.start(ready(), task_id).result(WAIT_SECONDS) == "run"
    suspect.go.set()
    assert running.result(WAIT_SECONDS) == "run"


def test_what_runs_elsewhere_is_waited_for_and_then_left(
    worker: Callable[[], Worker], fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here, work = worker(), worker(), Told()
    done = there.start(work)
    assert work.running.wait(WAIT_SECONDS)
    # Given up after a while: the message goes to the tail
    monkeypatch.setattr(delivery, "ELSEWHERE_SECONDS", 0.2)
    with pytest.raises(Reject, match="another worker"):
        here.start(ready()).result(WAIT_SECONDS)
    # or seen to its end
    monkeypatch.setattr(delivery, "ELSEWHERE_SECONDS", 1000)
    waits = here.start(ready())
    work.go.set()
    assert (done.result(WAIT_SECONDS), waits.result(WAIT_SECONDS)) == ("run", "repeated")
    # The one at the tail may come up hours later: it is known until then that it was done
    assert int(fleet.redis.ttl(keys.held("t"))) > DONE_SECONDS  # type: ignore[arg-type]


def test_error_of_a_message_leaves_no_mark(
    worker: Callable[[], Worker], fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Deliveries, "_has_result", lambda *_: False)
    with pytest.raises(TranscriptionError):
        worker().start(ready(of_job=False, error=TranscriptionError("not_audio", "x"))).result(WAIT_SECONDS)

    assert fleet.redis.keys("whisper:task:*") == []


@pytest.mark.parametrize("told", [True, False])
def test_worker_that_is_killed_while_it_ends_has_not_died_over_anything(
    worker: Callable[[], Worker], fleet: Fleet, told: bool
) -> None:
    """A container that is killed before its grace is over: long recordings would be quarantined after three."""
    killed, here = worker(), worker()
    started, work = Told(), ready()
    killed.start(started)
    assert started.running.wait(WAIT_SECONDS)
    if told:
        killed.deliveries.tell_ending()
        wait_for(lambda: fleet.redis.hexists(keys.task("t"), "told_to_end"))
    killed.marks.close(release=False)
    fleet.redis.delete(keys.held("t"))
    assert here.start(work).result(WAIT_SECONDS) == "run"
    ((_, claim),) = work.asked
    assert claim.suspect is not told
    started.go.set()
