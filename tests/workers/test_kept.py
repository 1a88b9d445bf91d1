"""A Redis that refuses writes: no worker ends, and no message is lost."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from celery import Celery

from fleet import Fleet, wait_for
from workers.app import create_app
from workers.keys import UNACKED
from workers.settings import load_settings


def test_a_redis_that_refuses_writes_ends_no_worker_and_costs_no_message(fleet: Fleet, samples: Path) -> None:
    # Given an idle worker, and messages that wait elsewhere
    app = create_app(load_settings(REDIS_URL=fleet.url), set_as_current=False)
    train = str(samples / "en_train.flac")
    calls = [app.send_task("whisper.transcribe", [[{"audio": train, "start_s": n}]]) for n in range(3)]
    fleet.redis.rename("transcribe", "aside")
    worker, log = fleet.start_worker(), fleet.log_path()

    def refused() -> int:
        said = log.read_text()
        return said.count("Trying to re-establish the connection") + said.count("Cannot connect to")

    # When they come in the moment in which Redis is full, so that nobody may hold them
    with fleet.redis.pipeline() as pipe:
        pipe.rename("aside", "transcribe").config_set("maxmemory", 1).execute()
    wait_for(lambda: "a message is kept until Redis lets it be held" in log.read_text())
    left = fleet.redis.llen("transcribe")
    wait_for(lambda: refused() >= 3)
    # Then the worker is there, and asks for no more meanwhile; and then all are answered
    assert worker.poll() is None
    assert fleet.redis.llen("transcribe") == left
    assert "Frequent restarts" not in log.read_text()
    fleet.redis.config_set("maxmemory", 0)
    assert all(call.get(timeout=120)[0]["text"].startswith("stand-in ") for call in calls)
    # And a Redis that refuses even to be asked for messages is outlasted
    before = refused()
    fleet.redis.config_set("min-replicas-to-write", 1)
    wait_for(lambda: refused() >= before + 2)
    assert worker.poll() is None
    fleet.redis.config_set("min-replicas-to-write", 0)
    assert app.send_task("whisper.transcribe", [[{"audio": train}]]).get(timeout=120)
    app.close()


def test_a_worker_that_ends_says_which_message_redis_takes_from_nobody(fleet: Fleet) -> None:
    with Celery(broker=fleet.url) as client:
        id = client.send_task("whisper.transcribe", [[]], queue="aside").id
    worker = fleet.start_worker()
    with fleet.redis.pipeline() as pipe:
        pipe.rename("aside", "transcribe").config_set("maxmemory", 1).execute()
    wait_for(lambda: "a message is kept" in fleet.log_path().read_text())
    worker.terminate()
    assert worker.wait(60) == 0
    assert f"task {id} is lost: Redis" in fleet.log_path().read_text()


def test_a_message_that_is_held_is_not_kept(fleet: Fleet) -> None:
    """An expired member of a chord whose keys the fleet may not write: it would come back for ever."""
    # Given a worker that may do all that README says, but for what chords need
    worker = fleet.start_worker()
    keys = [
        "transcribe*",
        "translate*",
        "_kombu.*",
        "celeryev.*",
        "*.celery.pidbox*",
        "celery-task-meta-*",
        "whisper:*",
    ]
    fleet.redis.execute_command("ACL", "SETUSER", "default", "resetkeys", *(f"~{key}" for key in keys))
    # When such a message comes
    body = {"task": "whisper.transcribe", "args": [], "kwargs": {}, "options": {}, "chord_size": 2}
    with Celery(broker=fleet.url, backend=fleet.url) as client:
        past = datetime(2020, 1, 1, tzinfo=UTC)
        client.send_task("whisper.transcribe", [[]], queue="transcribe", group_id="group", chord=body, expires=past)
        # Then the worker says so, and goes on with others.
        wait_for(lambda: "its chord cannot be told" in fleet.log_path().read_text())
        call = client.send_task("whisper.transcribe", [[]], queue="transcribe")
        wait_for(call.ready)
    assert worker.poll() is None
    wait_for(lambda: not fleet.redis.hlen(UNACKED))
