"""Machines whose clocks differ: who holds a message, and for how long, is told by Redis's clock."""

from __future__ import annotations

from collections.abc import Iterator
from time import time

import pytest
from kombu import Connection
from kombu.transport import redis as transport

from fleet import Fleet
from workers import broker_clock, keys
from workers.app import create_app
from workers.bootsteps import renew_leases
from workers.settings import load_settings

AHEAD_SECONDS = 3600.0


@pytest.fixture
def _ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process's clock is an hour ahead of Redis's, also in kombu's eyes."""
    monkeypatch.setattr(broker_clock, "local_time", lambda: time() + AHEAD_SECONDS)
    monkeypatch.setattr(broker_clock, "_ahead_seconds", 0.0)
    monkeypatch.setattr(transport, "time", broker_clock.local_time)
    monkeypatch.setattr(transport.QoS, "restore_visible", transport.QoS.restore_visible)


@pytest.fixture
def connection(fleet: Fleet) -> Iterator[Connection]:
    """That of a worker which holds the only message of its queue."""
    app = create_app(load_settings(redis_url=fleet.url), set_as_current=False)
    with app.connection_for_read() as opened:
        yield opened
    app.close()


@pytest.mark.usefixtures("_ahead")
@pytest.mark.parametrize("installed", [True, False])
def test_a_worker_whose_clock_is_ahead_takes_nobody_for_dead(
    fleet: Fleet, connection: Connection, installed: bool
) -> None:
    if installed:
        broker_clock.install()
    redis = fleet.redis
    # Given a message that another worker holds, and said so a moment ago
    with connection.SimpleQueue("transcribe") as queue:
        queue.put({})
        queue.get(timeout=30)
        (tag,) = redis.zrange(keys.UNACKED_INDEX, 0, -1)  # type: ignore[misc]
        redis.zadd(keys.UNACKED_INDEX, {tag: time()})
        # When this one looks for what silent workers held
        queue.channel.qos.restore_visible(num=10, interval=1)
        # Then it is where it was, and would not be without this
        assert redis.hlen(keys.UNACKED) == installed


@pytest.mark.usefixtures("_ahead")
def test_what_a_worker_holds_is_stamped_with_the_time_of_redis(fleet: Fleet, connection: Connection) -> None:
    """Or it would stay out of reach for an hour after such a worker has died."""
    broker_clock.install()
    broker_clock.measure(fleet.redis)
    redis = fleet.redis

    def stamp() -> float:
        ((_, score),) = redis.zrange(keys.UNACKED_INDEX, 0, -1, withscores=True)  # type: ignore[misc]
        return float(score)

    with connection.SimpleQueue("transcribe") as queue:
        queue.put({})
        queue.get(timeout=30)
        assert stamp() < time() + 60
        redis.zadd(keys.UNACKED_INDEX, dict.fromkeys(redis.zrange(keys.UNACKED_INDEX, 0, -1), 1.0))  # type: ignore[arg-type]
        assert renew_leases(queue.channel) == 1
        assert time() - 60 < stamp() < time() + 60
