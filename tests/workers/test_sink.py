"""Answers on their way to a job's stream, with a real Valkey that is there, comes late, is full or stays away."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from failover import MovingBroker
from fleet import Fleet, free_port, wait_for
from producer.embedded import Valkey
from workers import keys
from workers.errors import EngineLostError
from workers.messages import Failure, RowResult, Transcript
from workers.redis_client import connect
from workers.sink import ResultSink

JOB = "job-1"
ROWS = [
    RowResult(row=7, items=[Transcript(text="guten Tag — 你好", flags=["standin"])]),
    RowResult(row=3, items=[Failure(type="not_audio", message="x"), Transcript(text="")]),
]


def delivered(url: str) -> list[RowResult]:
    entries = connect(url).xrange(keys.results(JOB))
    return [RowResult.model_validate_json(fields[keys.RESULT_FIELD]) for _, fields in entries]


def waits(caplog: pytest.LogCaptureFixture) -> bool:
    return any("does not take it yet" in record.getMessage() for record in caplog.records)


def test_rows_arrive_whole_and_in_order(fleet: Fleet) -> None:
    sink = ResultSink(fleet.redis, threading.Event())

    for row in ROWS:
        sink.add(JOB, row)

    assert delivered(fleet.url) == ROWS
    # And what nobody ever collects does not stay for ever.
    assert 0 < int(fleet.redis.ttl(keys.results(JOB))) <= keys.RESULTS_EXPIRE_SECONDS


def test_answer_waits_for_a_broker_that_is_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # Given a broker that does not answer
    valkey = Valkey(tmp_path, port=free_port())
    stopping = threading.Event()
    sink = ResultSink(connect(valkey.url), stopping)
    with ThreadPoolExecutor(1) as threads:
        adding = threads.submit(sink.add, JOB, ROWS[0])
        try:
            wait_for(lambda: waits(caplog) or adding.done())
            assert not adding.done()
            # When it comes
            valkey.start()
            # Then it gets the answer, once
            adding.result(60)
            assert delivered(valkey.url) == [ROWS[0]]
        finally:
            stopping.set()
            valkey.stop()


def test_answer_waits_for_a_full_broker(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    stopping = threading.Event()
    sink = ResultSink(fleet.redis, stopping)
    fleet.redis.config_set("maxmemory", 1)
    with ThreadPoolExecutor(1) as threads:
        adding = threads.submit(sink.add, JOB, ROWS[0])
        try:
            wait_for(lambda: waits(caplog) or adding.done())
            assert not adding.done()
            fleet.redis.config_set("maxmemory", 0)
            adding.result(60)
        finally:
            stopping.set()
    assert delivered(fleet.url) == [ROWS[0]]


def test_worker_that_ends_gives_the_record_back(tmp_path: Path) -> None:
    valkey = Valkey(tmp_path, port=free_port())  # never started
    stopping = threading.Event()
    stopping.set()
    try:
        with pytest.raises(EngineLostError, match="the worker is ending"):
            ResultSink(connect(valkey.url), stopping).add(JOB, ROWS[0])
    finally:
        valkey.stop()


def test_answer_finds_the_new_primary(tmp_path: Path) -> None:
    """After a failover the old server may still answer: as a replica, which takes nothing."""
    with MovingBroker(tmp_path) as broker:
        sink = ResultSink(broker.redis, threading.Event())
        sink.add(JOB, ROWS[0])
        assert delivered(broker.url) == ROWS[:1]
        # When another is the primary, and the connection to the first is as good as ever
        broker.move()
        sink.add(JOB, ROWS[1])
        # Then the answer is there
        assert delivered(broker.url) == ROWS[1:]
