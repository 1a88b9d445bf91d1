"""The real thing: one broker and one worker with real whisper-base weights, shared by the whole session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fleet import Fleet


@pytest.fixture(scope="session")
def real_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Loading takes about a minute, so tests share it and leave nothing behind."""
    with Fleet(tmp_path_factory.mktemp("real"), {"WHISPER_MODEL": "whisper-base"}) as running:
        running.start_worker()
        yield running
