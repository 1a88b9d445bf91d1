"""Remote control and routes of clients that know nothing of this app, and what such clients leave behind."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery
from kombu import Connection, Consumer, Exchange, Queue
from kombu.transport.redis import Channel

from fleet import Fleet, wait_for
from producer.embedded import end, start_guarded
from workers.app import PRIORITY_BULK, create_app
from workers.bindings import REPLIES, FleetChannel
from workers.settings import load_settings

#: Where Celery notes the queues of those who wait for a worker's reply.
NOTES = f"_kombu.binding.{REPLIES}"
#: What contract.md has those set who send with a priority.
BULK = {"sep": ":", "priority_steps": [0, 5]}
APPLICATION = """
from os import environ
from celery import Celery
app = Celery("shop", broker=environ["REDIS_URL"], backend=environ["REDIS_URL"])
@app.task(name="shop.add")
def add(a, b): return a + b
"""
#: Of the fleet's, as Flower is one: waits for replies until it is killed.
INSPECTOR = """
from workers.app import app
app.control.inspect(timeout=600).ping()
"""


@pytest.fixture
def app(fleet: Fleet) -> Iterator[Celery]:
    """The fleet's, as a client has it."""
    made = create_app(load_settings(REDIS_URL=fleet.url), set_as_current=False)
    yield made
    made.close()


def test_clients_with_and_without_the_apps_settings_get_their_replies(standin_fleet: Fleet) -> None:
    redis = standin_fleet.redis
    with (
        Celery(broker=standin_fleet.url) as plain,
        Celery(broker=standin_fleet.url) as bulk,
        create_app(load_settings(REDIS_URL=standin_fleet.url), set_as_current=False) as own,
    ):
        bulk.conf.broker_transport_options = BULK
        # Given a note of a plain client that was killed while it waited, one of another kind, and what is neither
        left = ["0\x06\x16\x06\x160.reply.celery.pidbox", "1::1.reply.celery.pidbox", "nonsense", "a:b"]
        redis.sadd(NOTES, *left)
        try:
            # When each kind asks
            replies = [one.control.inspect(timeout=60, limit=1).ping() for one in (plain, own, bulk, plain)]
        finally:
            redis.srem(NOTES, *left)

    # Then each has its answer
    assert all(replies), replies
    assert [list(reply.values()) for reply in replies] == [[{"ok": "pong"}]] * 4
    assert "Control command error" not in standin_fleet.log_path().read_text()


def test_an_applications_worker_replies_whoever_of_the_fleet_asks_beside(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(APPLICATION)
    environment = fleet.environment(PYTHONPATH=str(tmp_path))
    command = [sys.executable, "-m", "celery", "-A", "shop", "worker", "-P", "solo", "-n", "shop@h"]
    own = start_guarded(command, environment, tmp_path / "shop.log")
    with Celery(broker=fleet.url) as plain:

        def replies() -> bool:
            return plain.control.inspect(timeout=5, limit=1).ping() == {"shop@h": {"ok": "pong"}}

        try:
            wait_for(replies)
            inspector = start_guarded(
                [sys.executable, "-c", INSPECTOR], fleet.environment(), tmp_path / "inspector.log"
            )
            try:
                # While one of the fleet waits for replies
                wait_for(lambda: fleet.redis.scard(NOTES))
                wait_for(replies)
            finally:
                inspector.kill()
                inspector.wait(20)
            # And when it was killed: then its note stays
            assert fleet.redis.scard(NOTES)
            wait_for(replies)
        finally:
            end(own, 20.0)
    assert "ValueError" not in (tmp_path / "shop.log").read_text()


def test_an_application_sends_by_exchange_and_routing_key(fleet: Fleet, samples: Path) -> None:
    fleet.start_worker()
    with Celery(broker=fleet.url, backend=fleet.url) as plain:
        plain.conf.task_routes = {"whisper.transcribe": {"exchange": "transcribe", "routing_key": "transcribe"}}
        call = plain.send_task("whisper.transcribe", [[{"audio": str(samples / "en_train.flac")}]])
        assert call.get(timeout=120)[0]["text"].startswith("stand-in ")


def test_lists_have_the_names_that_others_send_to(app: Celery, fleet: Fleet) -> None:
    with Celery(broker=fleet.url) as bulk:
        bulk.conf.broker_transport_options = BULK
        for sender in (app, bulk):
            sender.send_task("whisper.transcribe", [[]], queue="transcribe", priority=PRIORITY_BULK)
    assert fleet.redis.llen("transcribe:5") == 2
    # And who consumes gets them as what they are, by the queue
    got = []
    with app.connection_for_read() as connection:
        consumer = Consumer(connection, app.amqp.queues["transcribe"])
        consumer.register_callback(lambda _, message: got.append(message.properties["priority"]) or message.ack())
        with consumer:
            while len(got) < 2:
                connection.drain_events(timeout=20)
    assert got == [PRIORITY_BULK] * 2


def test_notes_are_refreshed_and_deleted_as_they_were_written(app: Celery, fleet: Fleet) -> None:
    queue = Queue("waiting", Exchange("shared"), routing_key="r", expires=60)
    note = b"r\x06\x16\x06\x16waiting"
    with app.connection_for_read() as connection:
        channel = connection.default_channel
        with Consumer(connection, queue):
            assert fleet.redis.smembers("_kombu.binding.shared") == {note}
            fleet.redis.delete("_kombu.binding.shared")
            channel.maybe_refresh_binding_expiry()
            assert fleet.redis.smembers("_kombu.binding.shared") == {note}
            assert fleet.redis.zscore("_kombu.binding_deadlines", "shared")
        channel.queue_delete("waiting")
        assert not fleet.redis.exists("_kombu.binding.shared")


def test_notes_that_others_cannot_read_do_not_stay(app: Celery, fleet: Fleet) -> None:
    others = [b"id::id.reply.celery.pidbox", b"a\x06\x16\x06\x16a.reply.celery.pidbox", b"nonsense"]
    with app.connection_for_read() as connection, Consumer(connection, Queue("waiting", expires=60)):
        app.amqp.queues["transcribe"](connection.default_channel).declare()
        fleet.redis.sadd(NOTES, *others)
        fleet.redis.sadd("_kombu.binding.transcribe", "transcribe::transcribe", "mine::mine")
        channel = connection.default_channel

        def a_minute_later() -> None:
            channel._bindings_swept_at = float("-inf")
            channel.maybe_refresh_binding_expiry()

        # Given who may be waiting still
        a_minute_later()
        assert set(others) == fleet.redis.smembers(NOTES)
        a_minute_later()
        assert set(others[1:]) == fleet.redis.smembers(NOTES)
        notes = {b"transcribe\x06\x16\x06\x16transcribe", b"mine\x06\x16\x06\x16mine"}
        assert fleet.redis.smembers("_kombu.binding.transcribe") == notes


def test_connections_of_an_application_beside_a_client_are_as_they_were(app: Celery, fleet: Fleet) -> None:
    for options in ({}, BULK):
        with Connection(fleet.url, transport_options=options) as connection:
            channel = connection.default_channel
            assert type(channel) is Channel
            assert channel.sep == options.get("sep", Channel.sep)
    for url in ("redis://h", "rediss://h", "redis+socket:///h", "sentinel://a;sentinel://b"):
        theirs = Connection(url).transport.Channel
        assert not issubclass(theirs, FleetChannel)
        own = create_app(load_settings(REDIS_URL=url), set_as_current=False)
        for connection in (own.connection(), own.pool.connection.Pool().new()):
            assert issubclass(connection.transport.Channel, (theirs, FleetChannel))
            assert set(theirs.from_transport_options) - set(connection.transport.Channel.from_transport_options) == {
                "sep"
            }
