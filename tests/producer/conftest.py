"""Fixtures of the producer's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fleet import Fleet

#: Five decode steps of this length make a row last about 0.3 s: long enough to interrupt a job in the middle.
SLOW_STEP_MS = "50"


@pytest.fixture(scope="session")
def slow_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A broker and one slow stand-in worker. Jobs end when their test does; nobody collects but the test."""
    environment = {"WHISPER_ENGINE": "standin", "WHISPER_STANDIN_STEP_MS": SLOW_STEP_MS}
    with Fleet(tmp_path_factory.mktemp("slow"), environment) as running:
        running.start_worker()
        yield running
