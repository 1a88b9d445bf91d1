"""Redis goes away while a worker waits for messages and holds some."""

from __future__ import annotations

import contextlib

import pytest
from kombu import Connection, Exchange, Queue
from kombu.common import ignore_errors
from kombu.transport.redis import Channel

from fleet import Fleet
from workers.app import create_app
from workers.lost_connection import LostConnectionStep, install
from workers.settings import load_settings


def lose(fleet: Fleet) -> None:
    """What `celery.worker.consumer.Consumer.on_connection_error_after_connected` does with its connection."""
    app = create_app(load_settings(REDIS_URL=fleet.url))
    app.send_task("whisper.transcribe", args=[[]], queue="transcribe")
    connection = Connection(fleet.url, transport_options=app.conf.broker_transport_options)
    first, second = connection.default_channel, connection.channel()
    for channel, name in ((first, "transcribe"), (second, "translate")):
        Queue(name, Exchange(name), routing_key=name, channel=channel).declare()
    # Given: one channel holds a message, and both wait for more.
    assert first.basic_get("transcribe") is not None
    first.basic_consume("transcribe", False, lambda message: None, "one")
    second.basic_consume("translate", False, lambda message: None, "two")
    connection.transport.cycle.on_poll_start()
    # When
    fleet.kill_valkey()
    try:
        with contextlib.suppress(Exception):
            connection.collect(socket_timeout=1)
        ignore_errors(connection, connection.close)
    finally:
        fleet.valkey.start()
        # What kombu does at the end of the process is no part of this.
        first.qos._on_collect.cancel()
        app.close()


def test_a_lost_connection_is_closed_without_an_error(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Channel, "_connparams", Channel._connparams)  # as it was, afterwards
    install()
    lose(fleet)


def test_workers_have_it() -> None:
    steps = create_app(load_settings()).steps["worker"]
    assert f"{LostConnectionStep.__module__}:{LostConnectionStep.__name__}" in steps
