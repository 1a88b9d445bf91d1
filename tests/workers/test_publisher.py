"""What a process says of itself in a real Valkey, and what is left of it."""

from __future__ import annotations

import logging

import pytest

from fleet import Fleet, wait_for
from workers import keys, publisher
from workers.publisher import EXPIRES_SECONDS, Publisher, publish, published, take_back
from workers.startup import Starting

INDEX = keys.STARTING


def said(name: str = "one@host") -> Starting:
    return Starting(name=name, doing="warming up", total_seconds=1.0)


def test_what_is_no_longer_said_is_no_longer_found(fleet: Fleet) -> None:
    redis, key = fleet.redis, keys.starting("one@host", "1")
    publish(redis, INDEX, key, "first")
    publish(redis, INDEX, key, "second")
    publish(redis, INDEX, keys.starting("two@host", "2"), "other")
    assert published(redis, INDEX) == [(key, b"second"), (keys.starting("two@host", "2"), b"other")]

    take_back(redis, INDEX, key)

    assert published(redis, INDEX) == [(keys.starting("two@host", "2"), b"other")]
    assert redis.zcard(INDEX) == 1


def test_names_of_the_dead_are_trimmed_and_the_list_is_not_kept_for_ever(fleet: Fleet) -> None:
    # Given one whose word has expired, by Redis's clock
    redis, dead = fleet.redis, keys.starting("dead@host", "1")
    now = redis.time()[0]  # type: ignore[index]
    redis.zadd(INDEX, {dead: now - 2})
    assert published(redis, INDEX) == []
    # When another one speaks
    publish(redis, INDEX, keys.starting("one@host", "2"), "here")
    # Then it is forgotten, and what the other one left would be too
    assert redis.zscore(INDEX, dead) is None
    assert 0 < redis.ttl(INDEX) <= EXPIRES_SECONDS  # type: ignore[operator]


def test_a_flushed_redis_is_told_again(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "REPEAT_SECONDS", 0.1)
    speaking = Publisher(fleet.redis, INDEX, keys.starting("one@host", "1"), said)
    speaking.start()
    try:
        wait_for(lambda: published(fleet.redis, INDEX))
        fleet.redis.flushall()
        wait_for(lambda: published(fleet.redis, INDEX))
    finally:
        speaking.stop()
    assert published(fleet.redis, INDEX) == []


def test_another_of_the_same_name_is_complained_of_once(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(publisher, "REPEAT_SECONDS", 0.05)
    monkeypatch.setattr(publisher, "EXPIRES_SECONDS", 3)
    times: list[float] = []

    def counted() -> Starting:
        times.append(0.0)
        return said()

    names = {"1": "one@host", "2": "other@host", "3": "one@host"}
    speaking = [Publisher(fleet.redis, INDEX, keys.starting(name, id), counted) for id, name in names.items()]
    # Given two of different names, for longer than anything is remembered
    for one in speaking[:2]:
        one.start()
    try:
        wait_for(lambda: min(one._namesakes_at for one in speaking[:2]) == float("inf"))
        assert "another live worker" not in caplog.text
        # When one comes that has another's name
        speaking[2].start()
        # Then it says so, and what to do
        wait_for(lambda: "another live worker is called one@host too" in caplog.text)
        count = len(times)
        wait_for(lambda: len(times) > count + 6)
    finally:
        for one in speaking:
            if one._thread.is_alive():
                one.stop()
    complaints = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(complaints) == 1
    assert "--name gpu0@%h" in complaints[0].getMessage()
