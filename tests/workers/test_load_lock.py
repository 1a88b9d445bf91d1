"""Engines of one GPU load one after another, whichever process they are in; those of others do not wait."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from workers import load_lock, startup
from workers.load_lock import gpus_of, loading_alone
from workers.settings import load_settings
from workers.startup import Startup

ROOT = Path(__file__).parents[2]
#: A load that lasts until it is told to end: it says what it does when that changes, and when it is in.
LOAD = """
import sys
from workers.load_lock import loading_alone
from workers.startup import Startup
parts = Startup()
parts.changed = lambda: print(parts.doing, flush=True)
with loading_alone(sys.argv[1:], parts):
    print("loading", flush=True)
    sys.stdin.readline()
    print("loaded", flush=True)
"""


class Load:
    """A process that loads on these GPUs."""

    def __init__(self, folder: Path, *gpus: str) -> None:
        environment = {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", LOAD, *gpus]
        self.process = subprocess.Popen(command, env=environment, text=True, stdin=-1, stdout=subprocess.PIPE)

    def says(self) -> str:
        """Its next line."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        """It has loaded."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()


@pytest.fixture
def loads() -> Iterator[ExitStack]:
    """What is started in a test ends with it."""
    with ExitStack() as started:
        yield started


def started(loads: ExitStack, folder: Path, *gpus: str) -> Load:
    load = Load(folder, *gpus)
    loads.callback(load.process.wait)
    loads.callback(load.process.kill)
    return load


def test_a_second_engine_of_a_gpu_waits_and_says_so(loads: ExitStack, tmp_path: Path) -> None:
    # Given an engine that loads on a GPU
    first = started(loads, tmp_path, "GPU-1/a")
    assert first.says() == "loading"

    # When another is to load there, and one on that and others
    second, third = started(loads, tmp_path, "GPU-1/a"), started(loads, tmp_path, "GPU-9", "GPU-1/a")

    # Then both wait
    assert second.says() == third.says() == startup.OTHER_ENGINE
    # And each goes on when those before it have loaded
    first.end()
    assert first.says() == "loaded"
    second.end()
    third.end()
    assert [load.says() for load in (second, third) for _ in range(2)] == ["loading", "loaded"] * 2


def test_an_engine_that_dies_while_it_loads_keeps_no_other_from_it(loads: ExitStack, tmp_path: Path) -> None:
    first = started(loads, tmp_path, "GPU-1")
    assert first.says() == "loading"
    second = started(loads, tmp_path, "GPU-1")
    assert second.says() == startup.OTHER_ENGINE

    first.process.kill()

    assert second.says() == "loading"


def test_engines_of_other_gpus_do_not_wait(loads: ExitStack, tmp_path: Path) -> None:
    both = [started(loads, tmp_path, "GPU-1", "GPU-2"), started(loads, tmp_path, "GPU-3")]

    assert [load.says() for load in both] == ["loading"] * 2


def test_what_failed_to_load_waits_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    parts = Startup()
    for _ in range(2):
        with pytest.raises(MemoryError), loading_alone(["GPU-1", "GPU-1"], parts):
            raise MemoryError
    assert parts.seconds() == {}


def test_a_temporary_folder_that_cannot_be_written_keeps_nothing_from_loading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "not there"))
    with loading_alone(["GPU-1"], Startup()):
        pass
    assert "may load at the same time" in caplog.text


def test_an_engine_on_a_cpu_takes_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for kind, locks in (("cpu", 0), ("cuda", 2)):
        monkeypatch.setattr(load_lock, "device_kind", lambda: kind)  # noqa: B023
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-5, GPU-6, GPU-7")
        with loading_alone(gpus_of(load_settings(tensor_parallel_size=2)), Startup()):
            assert len(list(tmp_path.iterdir())) == locks
