"""A message of a newer version waits for a worker that can read it; real workers, an old one and a new one."""

from __future__ import annotations

import base64
import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.result import AsyncResult
from hypothesis import given
from hypothesis import strategies as st

from fleet import Fleet, wait_for
from workers import messages
from workers.errors import TranscriptionError
from workers.messages import VERSION, newer_version, parse_options
from workers.presence import live_workers
from workers.versions import options_of

TESTS = str(Path(__file__).parent.parent)
SAID = "has version 2 of the message format"
DEADLINE_SECONDS = 120.0

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def test_newer_message_waits_for_a_newer_worker_and_nothing_else_does(fleet: Fleet, samples: Path) -> None:
    records = [{"audio": str(samples / "en_train.flac")}]
    client = Celery(broker=fleet.url, backend=fleet.url)

    def send(queue: str, options: dict[str, Any] | None = None) -> AsyncResult:
        # As another application does: it knows neither this package nor its settings
        return client.send_task(f"whisper.{queue}", [records, options], queue=queue)

    # Given a worker, and a message of a version that it does not know, with a field that it does not know, from a
    # client that writes an address into all of its messages to which they cannot go back (as gocelery does)
    fleet.start_worker(PYTHONPATH=TESTS)
    newer = client.AsyncResult("newer")
    push(fleet, newer.id, [records, {"version": 2, "added": True}], {"exchange": "celery", "routing_key": "celery"})
    log = fleet.log_path()
    wait_for(lambda: SAID in log.read_text(), DEADLINE_SECONDS)

    # Then it is back in its queue as it was, and the worker consumes that queue no longer, and the other one still
    (raw,) = fleet.redis.lrange("transcribe", 0, -1)
    message = json.loads(raw)
    assert message["headers"]["id"] == newer.id
    assert json.loads(base64.b64decode(message["body"]))[0] == [records, {"version": 2, "added": True}]
    older = send("transcribe")
    assert send("translate", {"version": 1}).get(timeout=DEADLINE_SECONDS)[0]["text"].startswith("stand-in ")
    assert wait_for(lambda: [one.queues for one in live_workers(fleet.redis)] == [["translate"]])
    assert "queues translate\n" in fleet.cli("workers").stdout

    # When the worker loses its connections and has new ones
    fleet.redis.client_kill_filter(_type="normal", skipme=True)
    assert send("translate").get(timeout=DEADLINE_SECONDS)

    # Then it has not met the message again
    assert fleet.redis.llen("transcribe") == 2
    assert log.read_text().count(SAID) == 1

    # When there is a worker that knows the version, it does both: the newer one and the one that names no version
    fleet.start_worker("-I", "version_two", PYTHONPATH=TESTS)
    assert newer.get(timeout=DEADLINE_SECONDS)[0]["text"].startswith("stand-in ")
    assert older.get(timeout=DEADLINE_SECONDS)[0]["text"].startswith("stand-in ")
    assert log.read_text().count(SAID) == 1
    client.close()


def push(fleet: Fleet, task_id: str, args: list[Any], delivery_info: dict[str, str]) -> None:
    """A message for `transcribe`, put there by hand."""
    properties = {"delivery_tag": str(uuid.uuid4()), "body_encoding": "base64", "delivery_info": delivery_info}
    message = {
        "body": base64.b64encode(json.dumps([args, {}, {}]).encode()).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"task": "whisper.transcribe", "id": task_id},
        "properties": properties,
    }
    fleet.redis.lpush("transcribe", json.dumps(message))


@pytest.mark.parametrize(
    "payload",
    [
        [[["record"], {"version": 3}], {}, {}],
        [[["record"]], {"options": {"version": 3}}, {"callbacks": None}],
        [[], {"records": ["record"], "options": {"version": 3}}],
        {"task": "whisper.transcribe", "args": [["record"], {"version": 3}], "kwargs": {}},
        {"task": "whisper.transcribe", "args": [["record"], {"version": 3}]},
        {"task": "whisper.transcribe", "args": [["record"]], "kwargs": {"options": {"version": 3}}},
        {"task": "whisper.transcribe", "kwargs": {"options": {"version": 3}}},
    ],
)
def test_options_are_found_wherever_a_client_puts_them(payload: Any) -> None:
    assert options_of(payload) == {"version": 3}
    assert newer_version(options_of(payload)) == 3


@given(payload=json_values | st.tuples(json_values, json_values, json_values).map(list))
def test_any_body_can_be_looked_at(payload: Any) -> None:
    version = newer_version(options_of(payload))

    assert version is None or version > VERSION


@pytest.mark.parametrize("version", [None, 0, 1, 1.0, -1, True, "2", [2], 1.5, float("inf")])
def test_what_is_no_newer_version_is_left_to_validation(version: object) -> None:
    assert newer_version({"version": version}) is None


def test_newer_options_are_refused_as_such_where_nobody_can_wait_for_another_worker() -> None:
    with pytest.raises(TranscriptionError, match=r"^newer_version: options: version 2 .* up to 1: update it$"):
        parse_options({"version": 2, "added": True})


def test_older_options_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "VERSION", 2)

    assert parse_options({"version": 2}).version == 2
    assert parse_options({"version": 1}).version == parse_options({}).version == parse_options(None).version == 1


def test_options_that_leave_out_defaults_still_say_a_later_version() -> None:
    assert messages.Options().model_dump(exclude_defaults=True) == {}
    assert messages.Options(version=2).model_dump(exclude_defaults=True) == {"version": 2}
