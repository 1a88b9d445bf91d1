"""Remote control by a client that knows nothing of this app, and what such a client leaves behind."""

from __future__ import annotations

from celery import Celery

from fleet import Fleet
from workers.app import create_app
from workers.settings import load_settings

#: Where Celery notes the queues of those who wait for a worker's reply.
NOTES = "_kombu.binding.reply.celery.pidbox"


def test_clients_with_and_without_the_apps_settings_get_their_replies(standin_fleet: Fleet) -> None:
    redis = standin_fleet.redis
    with (
        Celery(broker=standin_fleet.url) as plain,
        create_app(load_settings(REDIS_URL=standin_fleet.url), set_as_current=False) as own,
    ):
        # Given a note of a plain client that was killed while it waited, one of ours, and what is neither
        left = ["0\x06\x16\x06\x160.reply.celery.pidbox", "1::1.reply.celery.pidbox", "nonsense", "a:b"]
        redis.sadd(NOTES, *left)
        try:
            # When each kind asks
            replies = [app.control.inspect(timeout=60, limit=1).ping() for app in (plain, own, plain)]
        finally:
            redis.srem(NOTES, *left)

    # Then each has its answer
    assert all(replies), replies
    assert [list(reply.values()) for reply in replies] == [[{"ok": "pong"}]] * 3
    assert "Control command error" not in standin_fleet.log_path().read_text()
