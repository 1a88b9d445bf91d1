"""The engine loads beside the rest of a worker's start, and ends with it when that fails."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from doomed import start_doomed
from fleet import Fleet, wait_for
from workers import runtime, startup
from workers.app import create_app
from workers.errors import ModelLoadError, SettingsError
from workers.loading import Loading
from workers.presence import live_workers
from workers.settings import load_settings
from workers.startup import Startup, starting_workers

STANDIN = {"engine": "standin", "decode_processes": 1}


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


def test_an_engine_is_made_once_it_is_wanted() -> None:
    parts = Startup()
    loading = Loading(load_settings(**STANDIN), parts)
    engine = loading.result()
    try:
        assert engine.facts.model == "standin"
        assert startup.ENGINE in parts.seconds()
    finally:
        engine.close()


def test_an_engine_that_is_given_up_is_not_made() -> None:
    parts = Startup()
    Loading(load_settings(**STANDIN), parts).give_up()
    assert startup.ENGINE not in parts.seconds()


def test_a_model_that_is_not_there_is_told_to_whoever_waits(tmp_path: Any) -> None:
    loading = Loading(load_settings(model=str(tmp_path / "no-such-model")), parts := Startup())
    with pytest.raises(ModelLoadError, match="no-such-model"):
        loading.result()
    # And nothing of vLLM was imported for it
    assert startup.LIBRARIES not in parts.seconds()
    loading.give_up()


def test_the_broker_is_asked_while_the_engine_loads_and_its_answer_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """No clocks: the engine cannot be done before the broker was asked, nor the asking before the engine is on."""
    begun, asked = threading.Event(), threading.Event()

    def prepared(self: Loading) -> None:
        begun.set()
        assert asked.wait(60), "the broker is asked only after the engine"

    monkeypatch.setattr(Loading, "_load", prepared)

    def refuse() -> None:
        assert begun.wait(60), "the engine is on its way only after the broker"
        asked.set()
        raise SettingsError("it refuses this worker")

    before = children()
    with pytest.raises(SettingsError, match="refuses"):
        runtime.build(load_settings(**STANDIN), 2, check=refuse)
    wait_for(lambda: children() <= before)


def test_an_engine_that_was_on_its_way_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = threading.Event()

    class Slow:
        def close(self) -> None:
            closed.set()

    monkeypatch.setattr(Loading, "_load", lambda self: Slow())
    loading = Loading(load_settings(**STANDIN), Startup())
    loading.give_up()
    assert closed.is_set()


def test_a_worker_says_what_it_does_until_it_is_ready(fleet: Fleet) -> None:
    # Given a worker that starts, and whose engine takes its time
    doom = fleet.folder / "doom"
    doom.write_text("loading")
    start_doomed(fleet, doom)
    seen = wait_for(lambda: starting_workers(fleet.redis))
    doom.unlink()
    assert seen[0].name.startswith("test1@")
    # When it is ready
    ready = wait_for(told(fleet))
    # Then it has told how long each part took, and is starting no more
    assert {startup.PYTHON, startup.BROKER, startup.DECODERS, startup.ENGINE, startup.CONNECT, "total"} == set(ready)
    assert all(seconds >= 0 for seconds in ready.values())
    assert ready["total"] >= max(ready.values())
    assert starting_workers(fleet.redis) == []
    (line,) = wait_for(lambda: [line for line in fleet.log_path().read_text().splitlines() if "ready after" in line])
    assert "starting a decode process" in line
    # And whoever inspects it is told the same, and how busy its engine is
    fleet.wait_for_workers(1)
    app = create_app(load_settings(REDIS_URL=fleet.url))
    (stats,) = app.control.inspect(timeout=10).stats().values()
    assert stats["startup_seconds"] == ready
    assert stats["engine"] == {"running": 0, "waiting": 0, "busy_seconds": 0.0, "full_seconds": 0.0}
    said = fleet.cli("workers").stdout
    assert "standin on none, 0 windows running, 0 waiting, queues transcribe, translate" in said


def told(fleet: Fleet) -> Callable[[], dict[str, float]]:
    def seconds() -> dict[str, float]:
        (worker,) = live_workers(fleet.redis) or [None]
        return {} if worker is None else worker.startup_seconds

    return seconds
