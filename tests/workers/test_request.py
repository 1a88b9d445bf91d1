"""What a worker makes of Celery's own features, whoever uses them: expiry, revoking, names, what follows a call."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, chord, group
from celery.backends.redis import RedisBackend
from celery.worker import state
from kombu import Producer
from kombu.exceptions import OperationalError

from fleet import Fleet, wait_for
from workers import app as module
from workers import results
from workers.app import create_app
from workers.pool import TaskPool
from workers.request import FleetRequest
from workers.results import ResultsStep
from workers.settings import load_settings

EXPIRED = "2020-01-01T00:00:00+00:00"


def request(app: Celery, *, redelivered: bool = False, **headers: Any) -> FleetRequest:
    """A worker's request for a message."""
    known = {"id": "t", "task": "whisper.transcribe", "lang": "py", "argsrepr": "", "kwargsrepr": "", **headers}
    message = SimpleNamespace(
        headers=known,
        properties={},
        delivery_info={"redelivered": redelivered, "routing_key": "transcribe"},
        body=b"",
        payload=[[[]], {}, {}],
        content_type="application/json",
        content_encoding="utf-8",
        decode=lambda: None,
    )
    task = app.tasks["whisper.transcribe"]
    return FleetRequest(message, app=app, task=task, headers=known, body=message.payload, decoded=True)


@pytest.fixture
def app(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> Iterator[Celery]:
    """A worker's app, as far as what follows a call goes."""
    for name in ("exception_safe_to_retry", "on_chord_part_return"):
        monkeypatch.setattr(RedisBackend, name, getattr(RedisBackend, name))
    monkeypatch.setattr(results, "AGAIN_SECONDS", 0.05)
    monkeypatch.setattr(module, "SEND_AGAIN_SECONDS", 0.05)
    made = create_app(load_settings(redis_url=fleet.url), set_as_current=False)
    made.loader.import_default_modules()
    ResultsStep(SimpleNamespace(app=made))
    made.backend.remove_pending_result = lambda result: result  # what results do at their end, after Redis's
    yield made
    made.close()


@pytest.mark.parametrize("redelivered", [False, True])
def test_a_call_that_comes_again_does_not_expire(app: Celery, redelivered: bool) -> None:
    """It was begun in time, and may still run: its sender would be told that it was revoked, before it is answered."""
    made = request(app, expires=EXPIRED, redelivered=redelivered)
    try:
        assert bool(made.maybe_expire()) is not redelivered
    finally:
        state.revoked.discard("t")


def test_a_senders_own_name_for_a_call_is_not_kept(app: Celery) -> None:
    """A worker counts what it has done by name, for as long as it lives."""
    made = request(app, shadow="https://host/a.wav?signature=secret")
    assert made.name == "whisper.transcribe"
    assert "shadow" not in made.request_dict


def test_a_call_that_is_to_be_terminated_runs_and_is_done_with() -> None:
    """Threads cannot be terminated: Celery's error for that would hold the message, and its thread's turn, for ever."""
    pool, ended = TaskPool(1, app=SimpleNamespace(steps={})), threading.Event()
    pool.on_start()

    def accept(*_: Any) -> None:
        raise NotImplementedError

    try:
        done: list[Any] = []
        pool.on_apply(
            lambda *_: (0, "text", 0.1),
            (),
            {},
            accept_callback=accept,
            callback=lambda value: (done.append(value), ended.set()),
        )
        assert ended.wait(30)
        assert done == [(0, "text", 0.1)]
    finally:
        pool.on_stop()


def full(fleet: Fleet) -> None:
    fleet.redis.config_set("maxmemory", 1)


def test_a_part_of_a_chord_is_counted_once_redis_has_room(
    app: Celery, fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    """Else the chord never ends, and all that its calls were for is lost."""
    calls = [app.signature("whisper.transcribe", args=([],), queue="nobody") for _ in range(2)]
    body = app.signature("app.all", queue="after")
    header = chord(calls)(body).parent
    parts = [
        SimpleNamespace(id=one.id, group=header.id, group_index=at, chord=body) for at, one in enumerate(header.results)
    ]
    full(fleet)
    returned = [
        threading.Thread(target=app.backend.on_chord_part_return, args=(part, "SUCCESS", ["text"]), daemon=True)
        for part in parts
    ]
    for one in returned:
        one.start()
    wait_for(lambda: caplog.text.count("a part of a chord is not counted yet") > 4)
    assert all(one.is_alive() for one in returned)
    fleet.redis.config_set("maxmemory", 0)
    for one in returned:
        one.join(30)
        assert not one.is_alive()
    assert fleet.redis.llen("after") == 1, "what is to be done with both"


def test_what_follows_a_call_is_sent_once_redis_has_room(
    app: Celery, fleet: Fleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Given two calls that follow, of which the first is sent before Redis is full
    following = group([app.signature("app.next", args=(number,), queue="after") for number in range(2)])
    publish, published = Producer.publish, list[object]()

    def publishes(*arguments: Any, **options: Any) -> Any:
        sent = publish(*arguments, **options)
        if not published:
            full(fleet)
        published.append(sent)
        return sent

    monkeypatch.setattr(Producer, "publish", publishes)
    sending = threading.Thread(target=app.amqp._retry_publish, args=(following.apply_async,), daemon=True)
    sending.start()
    wait_for(
        lambda: caplog.text.count("what follows a call is not sent yet") > 1
    )  # longer than Celery itself would try
    assert sending.is_alive()
    fleet.redis.config_set("maxmemory", 0)
    sending.join(30)
    assert not sending.is_alive()
    assert fleet.redis.llen("after") == 2, "neither twice"


def test_what_no_waiting_mends_is_not_waited_for(app: Celery, fleet: Fleet) -> None:
    fleet.redis.set("after", "no list")
    with pytest.raises(OperationalError):
        app.amqp._retry_publish(app.signature("app.next", queue="after").apply_async)
