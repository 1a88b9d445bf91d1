"""What the queues say of a job: a contract with the format of kombu's Redis transport."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from job_files import answer
from kombu import Connection, Exchange, Queue

from fleet import Fleet
from producer.in_flight import (
    PAGE,
    _job_of,
    _queued,
    rows_in_flight,
    rows_on_their_way,
    rows_uncollected,
    task_id,
    withdraw,
)
from workers import keys
from workers.app import PRIORITY_BULK, PRIORITY_INTERACTIVE, create_app
from workers.settings import load_settings


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with Fleet(tmp_path_factory.mktemp("in-flight")) as running:
        yield running


@pytest.fixture
def clean(broker: Fleet) -> Fleet:
    broker.redis.flushdb()
    return broker


def send(fleet: Fleet, job: str, rows: list[int], priority: int = PRIORITY_BULK, queue: str = "transcribe") -> None:
    """A message of ``job`` with ``rows``, as Celery writes it."""
    app = create_app(load_settings(REDIS_URL=fleet.url))
    records = [{"audio": f"/{row}.wav", "row": row} for row in rows]
    app.send_task(
        "whisper.transcribe",
        args=[records],
        kwargs={"options": {}, "job": job},
        task_id=task_id(job, rows[0], "x"),
        queue=queue,
        priority=priority,
        ignore_result=True,
    )
    app.close()


@contextlib.contextmanager
def consumer(fleet: Fleet) -> Iterator[Any]:
    """A channel that takes messages as a worker does."""
    options = create_app(load_settings(REDIS_URL=fleet.url)).conf.broker_transport_options
    with Connection(fleet.url, transport_options=options) as connection:
        channel = connection.channel()
        Queue("transcribe", Exchange("transcribe"), routing_key="transcribe", channel=channel).declare()
        yield channel


def test_queued_messages_of_the_job_are_seen_and_no_others(clean: Fleet) -> None:
    send(clean, "a_step1-1", [0, 1, 2])
    send(clean, "a_step1-1", [7], PRIORITY_INTERACTIVE)
    send(clean, "a_step1-11", [3])  # another job whose name begins like the first
    send(clean, "b_step1-1", [4])
    assert clean.redis.llen("transcribe") == 1
    assert clean.redis.llen(f"transcribe:{PRIORITY_BULK}") == 3
    assert rows_in_flight(clean.redis, "transcribe", "a_step1-1") == {0, 1, 2, 7}
    assert rows_in_flight(clean.redis, "transcribe", "a_step1-11") == {3}
    assert rows_in_flight(clean.redis, "transcribe", "a_step1") == set()
    assert rows_in_flight(clean.redis, "translate", "a_step1-1") == set()


def test_held_messages_count_until_they_are_acknowledged(clean: Fleet) -> None:
    send(clean, "a", [0, 1])
    send(clean, "a", [2])
    send(clean, "b", [5])
    with consumer(clean) as channel:
        first, second = channel.basic_get("transcribe"), channel.basic_get("transcribe")
        assert first is not None
        assert second is not None
        assert rows_in_flight(clean.redis, "transcribe", "a") == {0, 1, 2}
        channel.basic_ack(first.delivery_tag)
        assert rows_in_flight(clean.redis, "transcribe", "a") == {2}
        channel.basic_reject(second.delivery_tag, requeue=True)
        assert rows_in_flight(clean.redis, "transcribe", "a") == {2}
        assert clean.redis.llen(f"transcribe:{PRIORITY_BULK}") == 2
        assert rows_in_flight(clean.redis, "transcribe", "b") == {5}


def test_queues_of_many_pages_are_read_to_their_end(clean: Fleet) -> None:
    send(clean, "a", [0])
    (message,) = clean.redis.lrange(f"transcribe:{PRIORITY_BULK}", 0, -1)  # type: ignore[misc]
    send(clean, "b", [1])
    with clean.redis.pipeline() as pipe:
        for _ in range(2 * PAGE):
            pipe.lpush(f"transcribe:{PRIORITY_BULK}", message)
        pipe.execute()
    send(clean, "b", [2])
    assert rows_in_flight(clean.redis, "transcribe", "a") == {0}
    assert rows_in_flight(clean.redis, "transcribe", "b") == {1, 2}


def test_foreign_messages_are_passed_over(clean: Fleet) -> None:
    send(clean, "a", [0])
    for junk in (b"", b"not json", b"[]", b"7", json.dumps({"body": "?", "headers": {"id": "other"}}).encode()):
        clean.redis.lpush("transcribe", junk)
        clean.redis.lpush(f"transcribe:{PRIORITY_BULK}", junk)
    clean.redis.hset(keys.UNACKED, "tag", b"not json")
    assert rows_in_flight(clean.redis, "transcribe", "a") == {0}


def test_rows_whose_answers_wait_are_found(clean: Fleet) -> None:
    assert rows_uncollected(clean.redis, "a") == set()
    with clean.redis.pipeline() as pipe:
        for row in range(PAGE + 10):
            pipe.xadd(keys.results("a"), {keys.RESULT_FIELD: answer(row)})
        pipe.xadd(keys.results("a"), {keys.RESULT_FIELD: b"junk"})
        pipe.xadd(keys.results("a"), {"other": b"{}"})
        pipe.xadd(keys.results("b"), {keys.RESULT_FIELD: answer(9999)})
        pipe.execute()
    assert rows_uncollected(clean.redis, "a") == set(range(PAGE + 10))


def test_messages_say_whose_they_are(tmp_path: Path) -> None:
    assert task_id("data_step1-ab12", 64, "f0") == "data_step1-ab12.64.f0"


def test_jobs_with_names_from_anywhere_are_told_apart(clean: Fleet) -> None:
    """JSON escapes some of these letters."""
    jobs = ["größe_step1-1", "数.据_step1-2", 'a "b"\\_step1-3']
    for number, job in enumerate(jobs):
        send(clean, job, [number, number + 10])
    with consumer(clean) as channel:
        assert channel.basic_get("transcribe") is not None
        deliver_to = keys.results(jobs[2])
        clean.redis.xadd(deliver_to, {keys.RESULT_FIELD: answer(7)})
        found = rows_on_their_way(clean.redis, ["transcribe", "translate"], jobs)
    assert found == {jobs[0]: {0, 10}, jobs[1]: {1, 11}, jobs[2]: {2, 12, 7}}


def test_messages_that_come_and_go_meanwhile_hide_no_others(clean: Fleet) -> None:
    """A worker takes from one end while a producer adds at the other: what stays is seen."""
    send(clean, "a", [0])
    (message,) = clean.redis.lrange(f"transcribe:{PRIORITY_BULK}", 0, -1)  # type: ignore[misc]
    key = f"transcribe:{PRIORITY_BULK}"
    clean.redis.delete(key)
    kept = 3 * PAGE
    for row in range(2 * PAGE, 2 * PAGE + kept):
        clean.redis.lpush(key, message.replace(b'"a.0.x"', f'"job{row}.0.x"'.encode()))
    seen = set()
    for number, queued in enumerate(_queued(clean.redis, key)):
        seen.add(_job_of(queued))
        if number % 10 == 0:
            clean.redis.rpop(key)
            clean.redis.lpush(key, message)
    left = {_job_of(queued) for queued in clean.redis.lrange(key, 0, -1)}  # type: ignore[union-attr]
    assert left - {"a"} <= seen, "newcomers aside"


def test_messages_of_a_job_are_taken_back_and_no_others(clean: Fleet) -> None:
    for row in range(3):
        send(clean, "a", [row])
    send(clean, "a", [7], PRIORITY_INTERACTIVE)
    send(clean, "b", [4])
    with consumer(clean) as channel:
        assert channel.basic_get("transcribe") is not None
        clean.redis.lpush("transcribe", b"not json")
        assert withdraw(clean.redis, ["transcribe"], "a") == 3
        assert rows_in_flight(clean.redis, "transcribe", "a") == {7}, "a worker has it"
        assert rows_in_flight(clean.redis, "transcribe", "b") == {4}
        assert clean.redis.lrange("transcribe", 0, -1) == [b"not json"]
