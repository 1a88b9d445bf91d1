"""Registrations and published progress, on a real server."""

from __future__ import annotations

from collections import Counter

from fleet import Fleet
from producer import registry
from producer.registry import Progress, Registration
from workers import keys


def test_a_registration_is_there_until_it_is_forgotten(fleet: Fleet) -> None:
    redis = fleet.redis
    one = Registration(id="a_step1-1", output="/data/ä b/a_step1.jsonl", rows=3, created="2026-01-01T00:00:00+00:00")
    two = one.model_copy(update={"id": "b_step1-2"})
    registry.register(redis, one)
    registry.register(redis, two)
    registry.register(redis, one)
    assert sorted(registry.registered(redis), key=lambda entry: entry.id) == [one, two]

    redis.xadd(keys.results(one.id), {keys.RESULT_FIELD: b"x"})
    registry.publish(redis, one.id, Progress(rows=3, answered=3, complete=True))
    registry.forget(redis, one.id)
    assert registry.registered(redis) == [two]
    assert not redis.exists(keys.results(one.id))
    progress = registry.read(redis, one.id)
    assert progress is not None
    assert progress.complete, "still there for whoever waits for it"
    assert 0 < int(redis.ttl(keys.progress(one.id))) <= registry.FINISHED_EXPIRES_SECONDS  # type: ignore[arg-type]


def test_progress_comes_back_as_it_was_published(fleet: Fleet) -> None:
    published = Progress(
        rows=10_000_000,
        answered=7,
        failed=2,
        audio_seconds=12.345,
        reasons=Counter({"no_audio": 1, "not_audio": 1}),
        step_path="/data/ä b/a_step1.jsonl",
    )
    assert registry.read(fleet.redis, "job") is None
    registry.publish(fleet.redis, "job", published)
    assert registry.read(fleet.redis, "job") == published


def test_what_another_version_registered_is_left_alone(fleet: Fleet) -> None:
    known = Registration(id="a", output="/a_step1.jsonl", rows=1, created="now")
    registry.register(fleet.redis, known)
    fleet.redis.hset(keys.JOBS, "future", '{"id": "future", "shards": []}')
    fleet.redis.hset(keys.JOBS, "junk", "not json")
    assert registry.registered(fleet.redis) == [known]
    assert int(fleet.redis.hlen(keys.JOBS)) == 3  # type: ignore[arg-type]
