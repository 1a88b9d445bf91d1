"""The answer of a call, on its way to a Redis that moves."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from celery.backends.redis import RedisBackend

from failover import MovingBroker
from fleet import wait_for
from workers.app import create_app
from workers.results import ResultsStep
from workers.settings import load_settings


def test_an_answer_finds_the_new_primary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failover the old server may still answer: as a replica, which takes nothing."""
    monkeypatch.setattr(RedisBackend, "exception_safe_to_retry", RedisBackend.exception_safe_to_retry)
    with MovingBroker(tmp_path) as broker:
        app = create_app(load_settings(redis_url=broker.url), set_as_current=False)
        ResultsStep(SimpleNamespace(app=app))
        backend = app.backend
        backend.store_result("first", ["text"], "SUCCESS")
        assert broker.redis.exists("celery-task-meta-first")
        # When another is the primary, and the connection to the first is as good as ever
        broker.move()
        storing = threading.Thread(target=backend.store_result, args=("second", ["text"], "SUCCESS"), daemon=True)
        storing.start()
        # Then the answer is there
        wait_for(lambda: broker.redis.exists("celery-task-meta-second"))
        storing.join(60)
        app.close()
