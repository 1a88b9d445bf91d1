"""Fixtures that every test may use."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from fleet import Fleet, environment_kept

if TYPE_CHECKING:
    from workers.runtime import Runtime

SAMPLES = Path(__file__).parent / "samples"

# A slow or busy machine fails no property.
settings.register_profile(
    "patient", parent=settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("patient")

# What a script starts in the background ignores Ctrl-C, and so would every process that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    """What a test sets in the environment, its fixtures or a library, the processes of later tests do not inherit.

    vLLM, for one, preloads an OpenMP for the children of every process in which it builds a configuration.
    """
    with environment_kept():
        return (yield)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """A broker of the test's own, without workers; workers started on it use the stand-in engine."""
    with Fleet(tmp_path / "fleet", {"WHISPER_ENGINE": "standin"}) as running:
        yield running


@pytest.fixture(scope="session")
def standin_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A broker and one worker with the stand-in engine, shared by tests that leave nothing behind."""
    with Fleet(tmp_path_factory.mktemp("standin"), {"WHISPER_ENGINE": "standin"}) as running:
        running.start_worker()
        yield running


@pytest.fixture(scope="session")
def samples() -> Path:
    """The folder of the recordings that come with the repository."""
    return SAMPLES / "audio"


@pytest.fixture(scope="session")
def standin_runtime() -> Iterator[Runtime]:
    """A worker's inside in this process: the stand-in engine and real decode processes, shared and left open."""
    from workers import runtime
    from workers.settings import load_settings

    built = runtime.build(load_settings(engine="standin"), threads=4)
    yield built
    built.close()


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows to a JSONL file in the test's folder and returns its path."""

    def write(rows: list[object], name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    return write
