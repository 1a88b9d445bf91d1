"""Calls to Redis that are made until it answers."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from job_files import new_job
from redis.exceptions import ConnectionError as RedisConnectionError

from fleet import Fleet, wait_for
from producer import patience
from producer.errors import FleetError
from producer.patience import Patience


def test_it_waits_for_redis_and_says_so_once(
    fleet: Fleet, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "RETRY_SECONDS", 0.01)
    job, tries = new_job(tmp_path), iter(range(10))
    patient = Patience(fleet.redis, job, threading.Event())

    def away() -> bool:
        if next(tries) < 5:
            raise RedisConnectionError("refused")
        return bool(fleet.redis.ping())

    assert patient.retried(away)
    assert [record.getMessage() for record in caplog.records] == [
        f"job {job.id}: Redis does not take it, trying again: refused"
    ]


def test_it_gives_up_when_it_is_stopped(fleet: Fleet, tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()

    def away() -> None:
        raise RedisConnectionError("refused")

    with pytest.raises(FleetError, match="Redis does not answer: refused"):
        Patience(fleet.redis, new_job(tmp_path), stop).retried(away)


def test_it_waits_for_room_in_redis(
    fleet: Fleet, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "RETRY_SECONDS", 0.01)
    used = int(fleet.redis.info("memory")["used_memory"])
    fleet.redis.config_set("maxmemory", used)
    waiting = threading.Thread(
        target=Patience(fleet.redis, new_job(tmp_path), threading.Event()).wait_for_memory, daemon=True
    )
    waiting.start()
    wait_for(lambda: "Redis is full" in caplog.text)
    assert waiting.is_alive()
    fleet.redis.config_set("maxmemory", 0)
    waiting.join(30)
    assert not waiting.is_alive()
