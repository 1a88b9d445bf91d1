"""An engine that dies or hangs takes its worker with it, and the worker's records go back to the queue."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.worker import state
from hypothesis import given
from hypothesis import strategies as st

from doomed import start_doomed
from fleet import Fleet
from workers import exit_codes, keys
from workers.drain import Ending
from workers.presence import live_workers
from workers.progress import Progress
from workers.watch import LOOK_SECONDS, Watch

DEADLINE_SECONDS = 120.0
FATES = ("die", "hang")


@pytest.fixture(scope="module")
def fleets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Fleet]]:
    """A doomed worker for each fate, started side by side."""
    environment = {"WHISPER_ENGINE": "standin", "WHISPER_ENGINE_STALL_SECONDS": "2"}
    with contextlib.ExitStack() as stack:
        found = {name: stack.enter_context(Fleet(tmp_path_factory.mktemp(name), environment)) for name in FATES}
        for fleet in found.values():
            start_doomed(fleet, fleet.folder / "doom")
        for fleet in found.values():
            fleet.wait_for_workers(1)
        yield found


@pytest.mark.parametrize("fate", FATES)
def test_lost_engine_ends_its_worker_and_loses_no_record(fleets: dict[str, Fleet], samples: Path, fate: str) -> None:
    # Given a worker that has answered a row, and whose engine then dies or hangs
    fleet = fleets[fate]
    client = Celery(broker=fleet.url, backend=fleet.url)
    records = [{"audio": str(samples / "en_train.flac"), "row": 0}]
    client.send_task("whisper.transcribe", [records], {"job": "before"}, queue="transcribe").get(timeout=60)
    (fleet.folder / "doom").write_text(fate)

    # When it gets another one
    sent = client.send_task("whisper.transcribe", [records], {"job": "after"}, queue="transcribe")
    client.close()

    # Then the worker ends with a code that says so, and one line that says why,
    assert fleet.workers[0].wait(DEADLINE_SECONDS) == exit_codes.FAILED
    lines = [line for line in fleet.log_path().read_text().splitlines() if "CRITICAL" in line]
    assert len(lines) == 1
    assert {"die": "The engine is lost", "hang": "made no progress for"}[fate] in lines[0]
    # no producer counts on it, and the record waits for another worker, unanswered.
    assert live_workers(fleet.redis) == []
    assert [json.loads(message)["headers"]["id"] for message in fleet.redis.lrange("transcribe", 0, -1)] == [sent.id]
    assert fleet.redis.hlen(keys.UNACKED) == 0
    assert fleet.redis.xlen(keys.results("before")) == 1
    assert fleet.redis.xlen(keys.results("after")) == 0


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_an_engine_that_stood_still_with_its_worker_gets_its_time_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A paused container or machine: nothing moved, and nothing is wrong."""
    monkeypatch.setattr(state, "should_stop", None)
    clock, failed = Clock(), list[str]()
    progress = Progress(clock=clock)
    engine = SimpleNamespace(healthy=lambda: True, stalled_seconds=progress.stalled_seconds, fail=failed.append)
    runtime: Any = SimpleNamespace(engine=engine, closing=False, stopping=threading.Event())
    watch = Watch(runtime, Ending(60.0), 180.0, clock)
    progress.started()

    def pass_seconds(seconds: float) -> None:
        for _ in range(int(seconds / LOOK_SECONDS)):
            clock.now += LOOK_SECONDS
            watch._check_engine()

    # Given an engine with work, and a worker that stands still for long
    pass_seconds(100)
    clock.now += 1000
    # When it goes on, then the engine has all of its time from there on
    pass_seconds(180)
    assert not failed
    # And no more
    pass_seconds(1)
    assert failed
    assert "no progress for 180 s" in failed[0]


@given(st.lists(st.tuples(st.sampled_from(["started", "moved", "ended"]), st.integers(0, 100))))
def test_stall_is_the_time_since_the_last_sign_while_windows_wait(events: list[tuple[str, int]]) -> None:
    clock = Clock()
    progress = Progress(clock=clock)
    in_flight, last_sign = 0, 0.0
    for name, seconds in events:
        clock.now += seconds
        if name == "ended" and not in_flight:
            continue
        getattr(progress, name)()
        if name == "moved" or (name == "started" and not in_flight):
            last_sign = clock.now
        in_flight += {"started": 1, "moved": 0, "ended": -1}[name]
        assert progress.stalled_seconds() == (clock.now - last_sign if in_flight else 0.0)
    clock.now += 7
    assert progress.stalled_seconds() == (clock.now - last_sign if in_flight else 0.0)
