"""What a live worker says of itself, in a real Valkey."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from fleet import Fleet, wait_for
from workers import keys
from workers.interface import EngineFacts, EngineLoad
from workers.presence import Presence, live_workers
from workers.publisher import EXPIRES_SECONDS, Publisher, publish

FACTS = EngineFacts(
    model="openai/whisper-tiny",
    revision="abc",
    device="cpu",
    version="0.1.0",
    tasks=("transcribe", "translate"),
    languages=("en", "de"),
    max_num_seqs=8,
)


def presence(name: str = "one@host", facts: EngineFacts = FACTS) -> Presence:
    return Presence.of(name, ["transcribe", "translate"], facts, 4)


def test_presence_tells_the_models_facts() -> None:
    said = presence()

    assert (said.name, said.queues, said.threads) == ("one@host", ["transcribe", "translate"], 4)
    assert (said.model, said.revision, said.device) == (FACTS.model, FACTS.revision, FACTS.device)
    assert (said.tasks, said.languages) == (list(FACTS.tasks), list(FACTS.languages))
    assert Presence.model_validate_json(said.model_dump_json()) == said


def test_workers_are_seen_while_they_live_and_gone_when_they_stop(fleet: Fleet) -> None:
    redis = fleet.redis
    assert live_workers(redis) == []

    # Given two workers with different models
    other = presence("two@host", replace(FACTS, model="openai/whisper-large-v3-turbo", tasks=("transcribe",)))
    first = Publisher(fleet.redis, keys.WORKERS, keys.worker("one@host", "1"), presence)
    second = Publisher(fleet.redis, keys.WORKERS, keys.worker("two@host", "2"), lambda: other)
    first.start()
    second.start()
    try:
        # Then both are seen, and would expire by themselves
        wait_for(lambda: len(live_workers(redis)) == 2)
        assert live_workers(redis) == [presence(), other]
        assert 0 < redis.ttl(keys.worker("one@host", "1")) <= EXPIRES_SECONDS
    finally:
        # When one stops
        first.stop()
        try:
            # Then nobody counts on it any more
            assert live_workers(redis) == [other]
        finally:
            second.stop()
    assert live_workers(redis) == []


def test_workers_of_one_name_are_as_many_as_they_are(fleet: Fleet) -> None:
    """Several on one host, say, each with a GPU: the last to speak would hide the others, and take them with it."""
    other = presence(facts=replace(FACTS, model="another"))
    first = Publisher(fleet.redis, keys.WORKERS, keys.worker("one@host", "1"), presence)
    second = Publisher(fleet.redis, keys.WORKERS, keys.worker("one@host", "2"), lambda: other)
    first.start()
    second.start()
    try:
        wait_for(lambda: live_workers(fleet.redis) == [presence(), other])
    finally:
        first.stop()
        second_alone = live_workers(fleet.redis)
        second.stop()
    assert second_alone == [other]


def test_a_look_at_who_is_live_does_not_grow_with_what_redis_holds(fleet: Fleet) -> None:
    # Given a worker, and a Redis full of other things
    redis = fleet.redis
    publish(redis, keys.WORKERS, keys.worker("one@host", "1"), presence().model_dump_json())
    redis.mset({f"foreign:{number}": b"" for number in range(10_000)})

    def commands() -> int:
        return int(redis.info("stats")["total_commands_processed"])

    before = commands()
    between = commands() - before  # what asking costs
    before = commands()
    # When it is looked for
    assert live_workers(redis) == [presence()]
    # Then that takes a handful of commands
    assert commands() - before <= between + 3


def test_news_are_published_at_once(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.publisher.REPEAT_SECONDS", 1000.0)
    # Given a worker that says each time what is true then
    queues = ["transcribe", "translate"]
    key = keys.worker("one@host", "1")
    publisher = Publisher(fleet.redis, keys.WORKERS, key, lambda: Presence.of("one@host", queues, FACTS, 4))
    publisher.start()
    try:
        wait_for(lambda: live_workers(fleet.redis))
        # When that changes, and it is told so
        queues.remove("translate")
        publisher.refresh()
        # Then nobody has to wait for its next word
        wait_for(lambda: [worker.queues for worker in live_workers(fleet.redis)] == [["transcribe"]])
    finally:
        publisher.stop()


def test_presence_tells_how_busy_the_engine_is() -> None:
    said = Presence.of("one@host", [], FACTS, 4, EngineLoad(running=8, waiting=3), {"total": 3.5})

    assert (said.windows_running, said.windows_waiting) == (8, 3)
    assert said.startup_seconds == {"total": 3.5}
    # A worker of an older version does not say
    older = {name: value for name, value in said.model_dump().items() if not name.startswith(("windows_", "startup"))}
    assert Presence.model_validate(older).windows_running == 0


def test_worker_in_a_fleet_publishes_what_it_is(standin_fleet: Fleet) -> None:
    (worker,) = live_workers(standin_fleet.redis)

    assert worker.name.startswith("test1@")
    assert (worker.model, worker.queues, worker.tasks) == (
        "standin",
        ["transcribe", "translate"],
        ["transcribe", "translate"],
    )


def test_workers_of_other_versions_do_not_hide_the_fleet(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    # Given a newer worker that says more, one that says something else, and what is no worker at all
    newer = {**presence("newer@host").model_dump(), "tasks": ["transcribe", "diarize"], "memory_bytes": 1}
    said = {
        "newer@host": json.dumps(newer),
        "other@host": '{"name": "other@host"}',
        "junk@host": b"\xff",
        "one@host": presence().model_dump_json(),
    }
    for name, payload in said.items():
        publish(fleet.redis, keys.WORKERS, keys.worker(name, "1"), payload)

    # Then all that can be read is there, and the rest is named
    live = {worker.name: worker for worker in live_workers(fleet.redis)}
    assert live.keys() == {"newer@host", "one@host"}
    assert live["newer@host"].tasks == ["transcribe", "diarize"]
    for name in ("other@host", "junk@host"):
        assert f"{keys.worker(name, '1')}: not a worker that this version can read" in caplog.text
