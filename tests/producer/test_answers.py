"""The answers of calls, from the keys where Celery's workers put them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fleet import Fleet, wait_for
from producer.answers import READ, READ_SECONDS, RESULT_KEY, Answers, Meta
from producer.errors import CallCancelledError, FleetError

ANSWER_SECONDS = 60.0


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with Fleet(tmp_path_factory.mktemp("answers")) as running:
        yield running


@pytest.fixture
def answers(broker: Fleet) -> Iterator[Answers]:
    made = Answers(broker.redis)
    yield made
    made.close()


def put(broker: Fleet, id: str, result: Any = None, status: str = "SUCCESS") -> None:
    broker.redis.set(RESULT_KEY.format(id), json.dumps({"status": status, "result": result}))


def result_of(meta: Meta) -> Any:
    return meta["result"]


def test_each_call_gets_its_own_answer_and_no_text_stays_in_redis(broker: Fleet, answers: Answers) -> None:
    ids = [f"many-{number}" for number in range(1200)]  # more than one look asks for
    futures = {id: answers.expect(id, result_of) for id in ids}
    put(broker, "of-another-client", 1)
    with broker.redis as redis:
        for id in reversed(ids):
            redis.set(RESULT_KEY.format(id), json.dumps({"status": "SUCCESS", "result": id.upper()}))
    assert [future.result(ANSWER_SECONDS) for future in futures.values()] == [id.upper() for id in ids]
    assert answers.outstanding() == []
    left = broker.redis.mget([RESULT_KEY.format(id) for id in ids])
    assert set(left) == {READ.encode()}  # type: ignore[arg-type]
    assert 0 < int(broker.redis.ttl(RESULT_KEY.format(ids[0]))) <= READ_SECONDS  # type: ignore[arg-type]
    assert json.loads(broker.redis.get(RESULT_KEY.format("of-another-client")))["result"] == 1  # type: ignore[arg-type]


def test_a_full_redis_keeps_not_even_that_a_call_is_done(broker: Fleet, answers: Answers) -> None:
    put(broker, "full", "done")
    broker.redis.config_set("maxmemory", 1)
    try:
        assert answers.expect("full", result_of).result(ANSWER_SECONDS) == "done"
        wait_for(lambda: not broker.redis.exists(RESULT_KEY.format("full")))
    finally:
        broker.redis.config_set("maxmemory", 0)


def test_a_task_that_goes_on_has_no_answer_yet(broker: Fleet, answers: Answers) -> None:
    future = answers.expect("slow", result_of)
    put(broker, "slow", status="STARTED")
    put(broker, "other", "done")
    assert answers.expect("other", result_of).result(ANSWER_SECONDS) == "done"
    assert not future.done()
    put(broker, "slow", "done")
    assert future.result(ANSWER_SECONDS) == "done"


@pytest.mark.parametrize("payload", [b"no json", b"[]", b"\xff", b"{}"])
def test_what_cannot_be_read_harms_no_other_call(broker: Fleet, answers: Answers, payload: bytes) -> None:
    ids = [f"{name}-{payload!r}" for name in ("broken", "whole")]
    broken, whole = (answers.expect(id, result_of) for id in ids)
    broker.redis.set(RESULT_KEY.format(ids[0]), payload)
    assert isinstance(broken.exception(ANSWER_SECONDS), KeyError), "what reading it raises"
    put(broker, ids[1], "done")
    assert whole.result(ANSWER_SECONDS) == "done"


def test_an_answer_that_was_read_is_given_though_redis_keeps_it(broker: Fleet, answers: Answers) -> None:
    put(broker, "kept", "done")
    broker.redis.config_set("min-replicas-to-write", 1)  # reads are answered, writes refused
    try:
        assert answers.expect("kept", result_of).result(ANSWER_SECONDS) == "done"
        answers.expect("waited for", result_of)
        wait_for(lambda: answers.trouble is None)
    finally:
        broker.redis.config_set("min-replicas-to-write", 0)
        broker.redis.delete(RESULT_KEY.format("kept"))


def test_a_call_that_was_given_up_stays_so(broker: Fleet, answers: Answers) -> None:
    first, second = answers.expect("first", result_of), answers.expect("second", result_of)
    assert answers.give_up(["first", "unknown"], CallCancelledError("no")) == ["first"]
    assert answers.give_up(["first"], CallCancelledError("again")) == []
    put(broker, "first", 1)
    put(broker, "second", 2)
    assert second.result(ANSWER_SECONDS) == 2
    with pytest.raises(CallCancelledError, match=r"^no$"):
        first.result(0)


def test_a_hopeless_fleet_fails_all_calls(broker: Fleet) -> None:
    hopeless: list[FleetError] = []

    def check() -> None:
        for error in hopeless:
            raise error

    with closing(Answers(broker.redis, check)) as answers:
        futures = [answers.expect(id, result_of) for id in ("a", "b")]
        hopeless.append(FleetError("the local worker ended"))
        for future in futures:
            with pytest.raises(FleetError, match=r"^the local worker ended$"):
                future.result(ANSWER_SECONDS)


def test_an_outage_of_redis_fails_no_call(tmp_path: Path) -> None:
    with Fleet(tmp_path / "away") as broker, closing(Answers(broker.redis)) as answers:
        future = answers.expect("patient", result_of)
        broker.kill_valkey()
        wait_for(lambda: answers.trouble)
        assert not future.done()
        broker.valkey.start()
        put(broker, "patient", "done")
        assert future.result(ANSWER_SECONDS) == "done"
        assert answers.trouble is None
