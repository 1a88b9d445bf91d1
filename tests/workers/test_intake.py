"""Whatever is pushed into a queue: it costs itself, the worker goes on, and whoever waits for a result is told."""

from __future__ import annotations

import base64
import contextlib
import json
import uuid
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st
from kombu.utils.json import dumps

from fleet import Fleet, wait_for
from workers import keys
from workers.intake import MAX_ENVELOPE_BYTES, check
from workers.messages import MAX_MESSAGE_BYTES

Raw = dict[str, Any]
BODY = [[[]], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]


def encoded(body: Any) -> str:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return base64.b64encode(content).decode()


def message(**parts: Any) -> Raw:
    """What Celery's own client would push, with ``parts`` of it replaced, or added to its headers."""
    id = str(uuid.uuid4())
    headers = {
        "lang": "py",
        "task": "whisper.transcribe",
        "id": id,
        "root_id": id,
        "argsrepr": "",
        "eta": None,
        "expires": None,
        "retries": 0,
        "timelimit": [None, None],
        "shadow": None,
        "ignore_result": False,
    }
    properties = {
        "correlation_id": id,
        "reply_to": str(uuid.uuid4()),
        "delivery_info": {"exchange": "", "routing_key": "transcribe"},
        "priority": 0,
        "body_encoding": "base64",
        "delivery_tag": str(uuid.uuid4()),
    }
    raw = {
        "body": encoded(BODY),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": headers,
        "properties": properties,
    }
    for name, value in parts.items():
        name = name.replace("content_", "content-")
        place = next((one for one in (raw, properties) if name in one), headers)
        place[name] = value
    return raw


def without(name: str) -> Raw:
    raw = message()
    for place in (raw, raw["headers"], raw["properties"]):
        place.pop(name, None)
    return raw


def _without_timelimit(**parts: Any) -> Raw:
    raw = message(**parts)
    raw["headers"].pop("timelimit")
    return raw


#: Each by what the log and the result say of it.
REFUSED: dict[str, list[Callable[[], Any]]] = {
    "its body is not JSON": [
        lambda: message(body=encoded(b"{nope")),
        lambda: message(body=encoded(b"[" * 100_000)),
        lambda: message(content_type="application/x-nope"),
        lambda: message(content_type="application/x-python-serialize", content_encoding="binary"),
    ],
    "its body is no list of args, kwargs and more": [
        lambda: message(body=encoded(b"null")),
        lambda: message(body=encoded(5)),
        lambda: message(body=encoded([1])),
        lambda: message(body=""),
    ],
    "its arguments are no list and object": [
        lambda: message(body=encoded({"a": 1})),
        lambda: message(body=encoded([5, 6, 7])),
        lambda: message(body=encoded([{"a": 1}, [1], {}])),
    ],
    "the third part of its body is no object": [lambda: message(body=encoded([[], {}, 7]))],
    "it has no body": [lambda: without("body"), lambda: message(body=5)],
    "its body is not base64": [lambda: message(body="!!!!a")],
    "its body_encoding is not base64": [lambda: message(body_encoding="rot13")],
    "its compression is neither zlib nor gzip": [lambda: message(compression="bzip2")],
    "its body is not compressed as its headers say": [lambda: message(compression="zlib")],
    "it is no message of Celery's": [
        lambda: {"audio": "a.wav"},
        lambda: without("properties"),
        lambda: message(headers=[1]),
        lambda: message(headers=None),
    ],
    "its priority is infinite": [
        lambda: message(priority=float("inf")),
        lambda: message(delivery_info={"exchange": "", "routing_key": "transcribe", "priority": float("-inf")}),
        lambda: message(priority=Decimal("Infinity")),
    ],
    "it has no delivery_tag": [lambda: without("delivery_tag")],
    "it has no delivery_info": [lambda: without("delivery_info"), lambda: message(delivery_info=5)],
    "its delivery_info has no exchange or routing_key": [lambda: message(delivery_info={"exchange": ""})],
    "its headers are no valid Unicode": [
        lambda: message(delivery_tag="\ud800"),
        lambda: message(shadow="caf\udce9"),
        lambda: message(id="\ud800", body=encoded(5)),
    ],
    "its headers have more than": [lambda: message(argsrepr="x" * MAX_ENVELOPE_BYTES)],
    "it is no object": [lambda: 5, lambda: "text", lambda: [1]],
    "it names no task": [lambda: message(headers={})],
    "its task is no text": [lambda: message(task=[1]), lambda: message(headers={}, body=encoded({"task": 1}))],
    "its id is no text": [
        lambda: without("id"),
        lambda: message(id=[1]),
        lambda: message(id="x" * 2000),
        lambda: message(headers={}, body=encoded({"task": "whisper.transcribe"})),
        lambda: message(headers={"id": [1]}, body=encoded({"task": "whisper.transcribe", "id": "one", "args": [[]]})),
        lambda: message(headers={}, body=encoded({"task": "whisper.transcribe", "id": "\ud800", "args": [[]]})),
    ],
    "shadow is no text": [lambda: message(shadow=[1])],
    "timelimit is no pair of numbers": [
        lambda: message(timelimit=[1]),
        lambda: message(timelimit=["a", "b"]),
        # Of a body that is an object Celery takes what its headers do not say.
        lambda: _without_timelimit(body=encoded({"args": [[]], "kwargs": {}, "timelimit": "abc"})),
        lambda: message(headers={}, body=encoded({"task": "t", "id": "one", "args": [[]], "timelimit": "abc"})),
    ],
    "stamped_headers is no list of texts": [
        lambda: message(stamped_headers=5),
        lambda: message(stamped_headers=[[1]], stamps={}),
    ],
    "eta is no time": [
        lambda: message(eta=""),
        lambda: message(eta="tomorrow"),
        lambda: message(eta=False),
        lambda: message(eta=[]),
    ],
    "expires is no time": [
        lambda: message(expires=0),
        lambda: message(expires={}),
        lambda: message(
            headers={}, body=encoded({"task": "whisper.transcribe", "id": "one", "args": [[]], "expires": ""})
        ),
    ],
    "stamps is no object": [lambda: message(stamps=5)],
    f"its body has more than {MAX_MESSAGE_BYTES} bytes, which is the limit: send several tasks": [
        lambda: message(body=encoded([[["x" * MAX_MESSAGE_BYTES]], {}, {}])),
        lambda: message(body="x" * (MAX_MESSAGE_BYTES + 1), body_encoding="utf-8"),
        # A few kilobytes that would become many megabytes.
        lambda: message(body=encoded(zlib.compress(b" " * (MAX_MESSAGE_BYTES + 1))), compression="gzip"),
    ],
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_celery_cannot_make_a_task_of_is_named(reason: str) -> None:
    for make in REFUSED[reason]:
        with pytest.raises(ValueError, match="^" + reason):
            check(make())


@pytest.mark.parametrize(
    "taken",
    [
        message(),
        message(body=json.dumps(BODY), body_encoding="utf-8"),
        message(body=encoded(zlib.compress(json.dumps(BODY).encode())), compression="application/x-gzip"),
        message(body=encoded([[["x" * (MAX_MESSAGE_BYTES - 100)]], {}, None])),
        message(body=encoded({"args": [[]], "kwargs": {}})),  # protocol 2's headers and protocol 1's body
        message(headers={}, body=encoded({"task": "whisper.transcribe", "id": "one", "args": [[]], "kwargs": {}})),
        message(task="unknown.here"),  # Celery's to refuse, which tells its sender
        message(timelimit=[None, 60.0], shadow="other", stamped_headers=["a"], stamps={"a": "b"}),
        message(eta="2026-01-01T00:00:00+00:00", expires=None, retries=3),
        # What kombu's reader makes of the JSON that its writer makes of these.
        message(request_id=uuid.uuid4(), asked=datetime(2026, 1, 1, tzinfo=UTC), price=Decimal("1.5"), raw=b"x"),
    ],
)
def test_what_clients_of_all_kinds_send_is_taken(taken: Raw) -> None:
    check(taken)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = [*message(), *message()["headers"], *message()["properties"], "compression", "stamps", "stamped_headers"]


@given(st.dictionaries(st.sampled_from(FIELDS), VALUES, min_size=1, max_size=3), VALUES)
def test_nothing_else_than_a_refusal_comes_of_any_message(parts: dict[str, Any], body: Any) -> None:
    for raw in (message(**parts), message(body=encoded(body)), body):
        with contextlib.suppress(ValueError):
            check(raw)


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Fleet, Celery]]:
    """A worker of its own, which may end, and a client."""
    with Fleet(tmp_path_factory.mktemp("intake"), {"WHISPER_ENGINE": "standin"}) as fleet:
        fleet.start_worker("--concurrency", "3")  # of which one is for calls: it looks at priorities
        with Celery(broker=fleet.url, backend=fleet.url) as client:
            yield fleet, client


def works(fleet: Fleet, client: Celery) -> None:
    """Fails unless a call is answered by the worker that was started first, and nothing is queued or held."""
    call = client.send_task("whisper.transcribe", [[]], queue="transcribe")
    wait_for(lambda: call.ready() or fleet.workers[0].poll() is not None)
    call.forget()
    assert fleet.workers[0].poll() is None, fleet.log_path().read_text()[-3000:]
    wait_for(lambda: not fleet.redis.llen("transcribe") and not fleet.redis.hlen(keys.UNACKED))


def test_the_worker_goes_on_and_senders_are_told(worker: tuple[Fleet, Celery]) -> None:
    fleet, client = worker
    sent = [make() for makers in REFUSED.values() for make in makers]
    for raw in sent:
        fleet.redis.lpush("transcribe", dumps(raw))  # as Celery's clients write it
    unreadable = (
        *("hello", b"\xff\xfe\0", b"[" * 100_000),
        *('{"__type__": "bytes", "__value__": 5}', '{"__type__": "decimal", "__value__": "x"}'),
        *('{"__type__": [], "__value__": 1}', '{"__type__": "uuid", "__value__": {}}'),
    )
    for raw in unreadable:
        fleet.redis.lpush("transcribe", raw)
    works(fleet, client)

    log = fleet.log_path().read_text()
    assert log.count("message discarded: ") == len(sent) + len(unreadable)
    assert log.count("message discarded: it is not JSON (") == len(unreadable)
    assert "Traceback" not in log
    waiting = [raw["headers"]["id"] for raw in sent if _tells(raw)]
    assert len(waiting) > 15
    for id in waiting:
        result = client.AsyncResult(id)
        assert result.state == "FAILURE"
        assert "bad_argument" in str(result.result), result.result
        result.forget()


def _tells(raw: Any) -> bool:
    headers = raw.get("headers") if isinstance(raw, dict) else None
    id = headers.get("id") if isinstance(headers, dict) else None
    return isinstance(id, str) and len(id) < 1000 and id.isprintable()


def test_headers_of_any_kind_that_celery_can_send_are_taken(worker: tuple[Fleet, Celery]) -> None:
    fleet, client = worker
    headers = {"request_id": uuid.uuid4(), "asked": datetime.now(UTC), "price": Decimal("1.5")}
    call = client.send_task("whisper.transcribe", [[]], queue="transcribe", headers=headers)
    assert "at least one record" in str(call.get(timeout=60, propagate=False)), "the task ran"
    works(fleet, client)


def test_a_call_whose_id_is_a_uuid_is_answered(worker: tuple[Fleet, Celery]) -> None:
    """As with Celery's own workers; a Django model's primary key is one."""
    fleet, client = worker
    id = uuid.uuid4()
    call = client.send_task("whisper.transcribe", [[]], queue="transcribe", task_id=id)
    assert "at least one record" in str(call.get(timeout=60, propagate=False)), "the task ran"
    assert fleet.redis.exists(f"celery-task-meta-{id}")
    works(fleet, client)


def test_what_is_to_follow_a_call_costs_no_thread(worker: tuple[Fleet, Celery]) -> None:
    """Whatever it is: the worker would hold the message for ever, and take no more after as many as it has threads."""
    fleet, client = worker
    follow: list[dict[str, Any]] = [{"chain": [5]}, {"errbacks": [[1]]}, {"chain": [5], "errbacks": [5]}]
    records = [[[{"audio": "/nowhere.wav"}, {"audio": "/nowhere.wav"}]], [[{"audio": "/nowhere.wav"}]]]
    for args in records:
        for embed in follow:
            fleet.redis.lpush("transcribe", dumps(message(body=encoded([args, {}, embed]))))
    works(fleet, client)
    assert "what was to follow it failed" in fleet.log_path().read_text()


def test_a_result_that_nobody_wants_is_not_stored(worker: tuple[Fleet, Celery]) -> None:
    fleet, client = worker
    raw = message(body=encoded(5), ignore_result=True)
    fleet.redis.lpush("transcribe", json.dumps(raw))
    works(fleet, client)
    assert not fleet.redis.exists(f"celery-task-meta-{raw['headers']['id']}")


def test_remote_control_is_no_other_way_in(worker: tuple[Fleet, Celery]) -> None:
    fleet, client = worker
    channel = "/0.celery.pidbox"  # of database 0
    assert fleet.redis.publish(channel, "hello"), "nobody listens"
    for raw in ({"a": 1}, 5, message(body="!!!!a"), message(body=encoded(5)), message(headers=[1])):
        fleet.redis.publish(channel, json.dumps(raw))
    works(fleet, client)
    unreadable = '{"__type__": "bytes", "__value__": 5}'
    fleet.redis.publish(channel, unreadable)
    wait_for(lambda: "it is not JSON (AttributeError)" in fleet.log_path().read_text())
    with fleet.redis.pipeline(transaction=False) as pipe:  # read at once
        pipe.publish(channel, json.dumps({"a": 1})).publish(channel, unreadable).execute()
    works(fleet, client)
    assert client.control.inspect(timeout=60, limit=1).ping()
    assert "onnection to broker lost" not in fleet.log_path().read_text()


def test_a_refused_message_keeps_no_worker_from_its_others_while_redis_is_full(fleet: Fleet, samples: Path) -> None:
    # Given a worker, and messages that are none, in a moment in which their senders cannot be told
    fleet.start_worker()
    for _ in range(3):
        fleet.redis.lpush("aside", json.dumps(message(body=encoded(5))))
    with fleet.redis.pipeline() as pipe:
        pipe.rename("aside", "transcribe").config_set("maxmemory", 1).execute()
    # Then it goes through all of them
    wait_for(lambda: fleet.log_path().read_text().count("its result cannot be stored") == 3)
    fleet.redis.config_set("maxmemory", 0)
    with Celery(broker=fleet.url, backend=fleet.url) as client:
        works(fleet, client)


def test_the_door_is_there_again_after_a_lost_connection(worker: tuple[Fleet, Celery]) -> None:
    fleet, client = worker
    lost = fleet.log_path().read_text().count("onnection to broker lost")
    own = fleet.redis.client_id()
    for one in fleet.redis.client_list():
        if int(one["id"]) != own:
            fleet.redis.client_kill_filter(_id=one["id"])
    wait_for(lambda: fleet.log_path().read_text().count("onnection to broker lost") > lost)
    fleet.redis.lpush("transcribe", json.dumps(message(body=encoded(5))))
    works(fleet, client)
