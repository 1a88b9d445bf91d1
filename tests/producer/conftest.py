"""Fixtures of the producer's tests."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator

import pytest

from fleet import Fleet, clean_environment

#: Five decode steps of this length make a row last about 0.3 s: long enough to interrupt a job in the middle.
SLOW_STEP_MS = "50"


@pytest.fixture(scope="session")
def slow_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A broker and one slow stand-in worker. Jobs end when their test does; nobody collects but the test."""
    environment = {"WHISPER_ENGINE": "standin", "WHISPER_STANDIN_STEP_MS": SLOW_STEP_MS}
    with Fleet(tmp_path_factory.mktemp("slow"), environment) as running:
        running.start_worker()
        yield running


@pytest.fixture
def alone() -> Iterator[dict[str, str]]:
    """The environment of a command that starts its own fleet, and a place for its sockets."""
    folder = tempfile.mkdtemp(prefix="wf-")  # short: a socket's path holds 107 bytes
    yield clean_environment(WHISPER_ENGINE="standin", TMPDIR=folder)
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def done_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A collector waits for what it merges or opens, however slow the disk: what it leaves for later has tests too."""
    monkeypatch.setattr("producer.collector.AT_ONCE_SECONDS", 60.0)
