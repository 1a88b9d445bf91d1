"""Marks on messages in a real Valkey: who runs what, what is settled, who died over it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from fleet import Fleet, wait_for
from workers import keys
from workers.errors import EngineLostError
from workers.marks import Claim, TaskMarks, mark_cancelled
from workers.messages import RowResult
from workers.settings import load_settings
from workers.sink import ResultSink

Worker = Callable[..., TaskMarks]


@pytest.fixture
def worker(fleet: Fleet) -> Iterator[Worker]:
    """Makes the marks of a worker process; with ``beats`` it renews them, as a live one does."""
    made: list[TaskMarks] = []

    def make(*, beats: bool = True, lease_seconds: float = 0.1) -> TaskMarks:
        config = load_settings(visibility_timeout_seconds=5, lease_seconds=lease_seconds)
        marks = TaskMarks(fleet.redis, threading.Event(), config)
        if beats:
            marks.start()
        made.append(marks)
        return marks

    yield make
    for marks in made:
        marks.close(release=False)


def test_message_runs_in_one_live_worker_at_a_time(worker: Worker, fleet: Fleet) -> None:
    first, second = worker(), worker()
    # Given a worker that runs it, and whose mark would have been silent by now
    assert first.claim("t") == Claim("mine")
    first.begin("t", alone=False)
    fleet.redis.pexpire(keys.held("t"), 1)
    wait_for(lambda: fleet.redis.pttl(keys.held("t")) > 1000)
    # Then no other one gets it, until it is released
    assert second.claim("t").state == "elsewhere"
    first.release("t")
    assert second.claim("t") == Claim("mine")
    # and the first one sees that
    assert first.claim("t").state == "elsewhere"


def test_end_leaves_nothing_but_that_it_is_done(worker: Worker, fleet: Fleet) -> None:
    marks, other = worker(), worker()
    for task_id, done in (("chunk", True), ("call", False)):
        marks.claim(task_id)
        marks.begin(task_id, alone=False)
        marks.settle(task_id, 3)
        marks.end(task_id, done_seconds=60 if done else 0, done=done)
    assert other.claim("chunk").state == "done"
    assert other.claim("call") == Claim("mine")
    assert not fleet.redis.exists(keys.task("chunk"), keys.task("call"))
    assert 0 < fleet.redis.ttl(keys.held("chunk")) <= 120


def test_claim_that_is_taken_back_leaves_what_others_left(worker: Worker, fleet: Fleet) -> None:
    # Given a message that a worker died over, and one that nobody has begun
    dead, marks = worker(beats=False), worker()
    dead.claim("orphan")
    dead.begin("orphan", alone=True)
    fleet.redis.delete(keys.held("orphan"))
    assert marks.claim("orphan").state == "orphaned"
    assert marks.claim("fresh").state == "mine"
    # When their claims are taken back
    for task_id in ("orphan", "fresh"):
        marks.unclaim(task_id)
        assert not fleet.redis.exists(keys.held(task_id))
    # Then another worker has them at once, and learns of the death
    other = worker()
    assert other.claim("fresh") == Claim("mine")
    assert (other.claim("orphan").state, other.claim("orphan").left_alone) == ("orphaned", True)
    # What is another's, begun or done is nobody's to take back
    marks.claim("fresh")
    marks.unclaim("fresh")
    assert other.claim("fresh") == Claim("mine")
    other.begin("fresh", alone=False)
    other.unclaim("fresh")
    assert marks.claim("fresh").state == "elsewhere"
    other.end("fresh", done_seconds=60, done=True)
    marks.claim("fresh")
    marks.unclaim("fresh")
    assert marks.claim("fresh").state == "done"


def test_claim_whose_reply_was_lost_is_taken_back(worker: Worker, fleet: Fleet) -> None:
    marks = worker(beats=False)
    marks.claim("t")
    # As if it had been claimed and begun by transactions whose replies did not come
    fleet.redis.hset(keys.task("t"), mapping={"holder": marks.instance, "alone": 0})
    marks.unclaim("t")
    assert not fleet.redis.exists(keys.task("t"), keys.held("t"))
    # Nor is one taken back that was silent for so long that another has the message
    marks.claim("t")
    fleet.redis.delete(keys.held("t"))
    other = worker()
    other.claim("t")
    marks.unclaim("t")
    assert other.still_mine("t")
    assert fleet.redis.exists(keys.held("t"))


@pytest.mark.parametrize(("done", "state"), [(True, "done"), (False, "mine")])
def test_that_a_copied_message_is_done_is_known_for_as_long_as_it_may_wait(
    worker: Worker, fleet: Fleet, done: bool, state: str
) -> None:
    """The copy goes to the end of a queue that takes hours."""
    marks, other = worker(), worker()
    marks.claim("t")
    marks.begin("t", alone=False)
    assert other.claim("t").state == "elsewhere"
    other.copied("t")
    marks.end("t", done_seconds=60 if done else 0, done=done)
    assert (int(fleet.redis.ttl(keys.held("t"))) > 120) is done  # type: ignore[arg-type]
    assert other.claim("t").state == state
    assert not fleet.redis.exists(keys.task("t"))


def test_a_worker_with_nothing_to_do_knows_that_a_full_redis_takes_no_marks(worker: Worker, fleet: Fleet) -> None:
    """Or it would take the others, whose marks are gone, for dead."""
    marks = worker(lease_seconds=0.3)
    wait_for(marks.undisturbed)
    fleet.redis.config_set("maxmemory", 1)
    try:
        wait_for(lambda: not marks.undisturbed())
    finally:
        fleet.redis.config_set("maxmemory", 0)
    wait_for(marks.undisturbed)


@pytest.mark.parametrize("alone", [False, True])
def test_mark_that_nobody_renews_tells_of_a_death(worker: Worker, fleet: Fleet, alone: bool) -> None:
    # Given a worker that answers a row and passes one on, and then is no more
    dead = worker(beats=False)
    dead.claim("t")
    dead.begin("t", alone=alone)
    ResultSink(fleet.redis, threading.Event()).add("job", RowResult(row=7, items=[]), "t")
    dead.settle("t", 9)
    wait_for(lambda: not fleet.redis.exists(keys.held("t")))

    # When another one takes the message, then it finds that out, once
    live = worker()
    claim = live.claim("t")
    assert (claim.state, claim.suspect, claim.settled, claim.left_alone) == ("orphaned", False, {7, 9}, alone)
    assert live.claim("t").state == "orphaned", "also if it asks again"
    counted = live.bury("t", claim)
    assert (counted.state, counted.deaths, counted.deaths_alone) == ("mine", int(not alone), int(alone))
    assert counted.suspect
    assert live.claim("t") == Claim("mine", counted.deaths, counted.deaths_alone, counted.settled)
    # and all of it is forgotten some day
    assert 0 < fleet.redis.ttl(keys.task("t")) <= keys.TASK_EXPIRES_SECONDS


def test_worker_that_was_only_cut_off_shows_itself(worker: Worker, fleet: Fleet) -> None:
    """An outage can outlast every mark. Whoever takes a message then has to give its worker the time to renew it."""
    cut_off = worker()
    cut_off.claim("t")
    cut_off.begin("t", alone=True)
    with cut_off._lock:  # no beat gets through
        fleet.redis.delete(keys.held("t"))
        other = worker(lease_seconds=10)
        assert other.claim("t").state == "orphaned"
        other._undisturbed_since = time.monotonic()
        assert not other.undisturbed(), "a worker that has just begun knows nothing of the others"
        assert other.still_mine("t")
    wait_for(lambda: not other.still_mine("t"))
    assert other.claim("t").state == "elsewhere"
    wait_for(other.undisturbed)


def test_outage_disturbs(worker: Worker, fleet: Fleet) -> None:
    marks = worker()
    wait_for(marks.undisturbed)
    fleet.kill_valkey()
    wait_for(lambda: not marks.undisturbed())
    fleet.valkey.start()
    wait_for(marks.undisturbed)


def test_process_that_stood_still_knows_nothing_of_the_others_for_a_while(worker: Worker) -> None:
    marks = worker(lease_seconds=0.3)
    wait_for(marks.undisturbed)
    before = marks._undisturbed_since
    with marks._lock:  # no beat ends
        time.sleep(4 * marks._beat_seconds)
    wait_for(lambda: marks._undisturbed_since > before)
    wait_for(marks.undisturbed)


def test_beats_do_not_put_back_the_mark_of_a_message_that_was_lost(worker: Worker) -> None:
    marks, other = worker(), worker()
    claim = marks.claim("t")
    marks.begin("t", alone=False)
    marks.lost("t", claim, alone=False)
    time.sleep(3 * marks._beat_seconds)
    assert other.claim("t").state == "mine"


def test_lost_engine_is_a_death_and_a_worker_that_ends_is_none(worker: Worker, fleet: Fleet) -> None:
    marks, other = worker(), worker()
    claim = marks.claim("t")
    marks.begin("t", alone=False)
    marks.lost("t", claim, alone=False)
    again = other.claim("t")
    assert (again.state, again.deaths, again.deaths_alone) == ("mine", 1, 0)
    other.begin("t", alone=True)
    other.lost("t", again, alone=True)
    marks.begin("t", alone=True)
    marks.close(release=True)
    last = other.claim("t")
    assert (last.state, last.deaths, last.deaths_alone) == ("mine", 1, 1)


def test_row_that_goes_on_takes_its_deaths_along(worker: Worker) -> None:
    marks = worker()
    marks.accuse("single", Claim("mine", deaths=1, deaths_alone=1, settled=frozenset({1})))
    assert marks.claim("single") == Claim("mine", deaths=1, deaths_alone=1)


def test_cancelled_call_is_known_for_a_day(worker: Worker, fleet: Fleet) -> None:
    mark_cancelled(fleet.redis, ["t", "u"])
    assert 0 < fleet.redis.ttl(keys.task("t")) <= keys.TASK_EXPIRES_SECONDS
    marks = worker()
    assert marks.claim("t") == Claim("mine", cancelled=True)
    # Also by who gets the message after a worker that had begun it
    assert not marks.claim("v").cancelled
    marks.begin("v", alone=False)
    mark_cancelled(fleet.redis, ["v"])
    marks.release("v")
    assert worker().claim("v") == Claim("mine", cancelled=True)
    # and it leaves nothing
    marks.end("u", done_seconds=0, done=False)
    assert not fleet.redis.exists(keys.task("u"))


def test_flushed_marks_only_mean_another_try(worker: Worker, fleet: Fleet) -> None:
    marks = worker(beats=False)
    marks.claim("t")
    marks.begin("t", alone=False)
    fleet.redis.flushall()
    assert worker().claim("t") == Claim("mine")


def test_worker_that_ends_does_not_wait_for_a_broker_that_is_away(fleet: Fleet, worker: Worker) -> None:
    marks = worker(beats=False)
    fleet.kill_valkey()
    marks._stopping.set()
    with pytest.raises(EngineLostError, match="the worker is ending"):
        marks.claim("t")
    marks.unclaim("t")
    marks.release("t")
    marks.lost("t", Claim(), alone=False)
    marks.close(release=True)


@pytest.mark.parametrize("begun", ["before", "after"])
def test_worker_that_was_told_to_end_says_so_at_once(worker: Worker, fleet: Fleet, begun: str) -> None:
    ending, other = worker(lease_seconds=30), worker()
    if begun == "after":
        ending.tell_ending()
    ending.claim("t")
    ending.begin("t", alone=True)
    ending.tell_ending()
    wait_for(lambda: fleet.redis.hexists(keys.task("t"), "told_to_end"))
    # Killed now, nobody renews its mark: it was told to end, and that is no death
    ending.close(release=False)
    fleet.redis.delete(keys.held("t"))
    claim = other.claim("t")
    assert (claim.state, claim.told_to_end, claim.suspect) == ("orphaned", True, False)
    # What the next worker dies over is its own
    other.begin("t", alone=False)
    assert not fleet.redis.hexists(keys.task("t"), "told_to_end")


def test_worker_that_was_paused_speaks_for_itself_alone(worker: Worker, fleet: Fleet) -> None:
    """A machine that stood still is told to end, and its message is another's by now: what that dies over counts."""
    paused, here, other = worker(lease_seconds=30), worker(beats=False), worker()
    paused.claim("t")
    paused.begin("t", alone=False)
    fleet.redis.delete(keys.held("t"))
    here.begin("t", alone=False)
    paused.tell_ending()
    wait_for(lambda: fleet.redis.hexists(keys.task("t"), "told_to_end"))
    assert fleet.redis.ttl(keys.task("t")) > 0
    paused.close(release=False)
    fleet.redis.delete(keys.held("t"))
    claim = other.claim("t")
    assert (claim.state, claim.told_to_end) == ("orphaned", False)
