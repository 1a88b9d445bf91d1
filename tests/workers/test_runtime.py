"""What one worker process has: built whole or not at all, and gone when closed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from fleet import wait_for
from workers import runtime
from workers.errors import EngineLostError, ModelLoadError, TransientError
from workers.settings import load_settings


@pytest.fixture
def _nothing_installed() -> Iterator[None]:
    before = runtime._current
    runtime.install(None)
    yield
    runtime.install(before)


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


@pytest.mark.usefixtures("_nothing_installed")
def test_process_without_an_engine_says_how_to_get_one() -> None:
    with pytest.raises(RuntimeError, match="celery -A workers worker"):
        runtime.current()


@pytest.mark.usefixtures("_nothing_installed")
def test_runtime_is_whole_while_open_and_gone_when_closed(caplog: pytest.LogCaptureFixture, samples: Path) -> None:
    before = children()
    with caplog.at_level(logging.WARNING):
        built = runtime.build(load_settings(engine="standin", decode_processes=1), threads=2)
    try:
        # Given a runtime with the stand-in, which says so
        assert "STAND-IN ENGINE: this worker transcribes nothing" in caplog.text
        runtime.install(built)
        assert runtime.current() is built
        assert len(children() - before) == 1
        assert built.engine.healthy()
        assert not built.stopping.is_set()
    finally:
        # When it is closed
        built.close()
    # Then its processes are gone, and whoever still asks for its parts is told
    wait_for(lambda: children() <= before)
    assert built.stopping.is_set()
    assert not built.engine.healthy()
    with pytest.raises(TransientError), built.pool.open(str(samples / "en_train.flac")):
        pass
    with pytest.raises(EngineLostError):
        built.engine.submit(None)  # type: ignore[arg-type]


def test_model_that_cannot_load_leaves_no_processes(tmp_path: Path) -> None:
    before = children()

    with pytest.raises(ModelLoadError, match="no-such-model"):
        runtime.build(load_settings(model=str(tmp_path / "no-such-model"), decode_processes=1), threads=2)

    wait_for(lambda: children() <= before)
