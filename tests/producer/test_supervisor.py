"""`whisper-fleet worker` keeps its worker going, hands signals on, and takes it along when it is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from fleet import CLI, Fleet, clean_environment, still_running, wait_for
from producer import restarts
from producer.embedded import end, start_guarded
from producer.restarts import Restarts
from producer.supervisor import Supervisor
from workers.presence import live_workers

#: Ends with the next code of its file each time it is started; negative: by that signal.
WORKER = """
import os, pathlib, sys
codes = pathlib.Path(sys.argv[1])
first, _, rest = codes.read_text().partition(" ")
codes.write_text(rest)
if int(first) < 0:
    os.kill(os.getpid(), -int(first))
sys.exit(int(first))
"""


@pytest.fixture
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarts, "FIRST_PAUSE_SECONDS", 0.001)


@pytest.mark.usefixtures("_short_pauses")
@pytest.mark.parametrize(
    ("codes", "result", "left"),
    [
        ("0 70", 0, "70"),
        ("70 -9 0 70", 0, "70"),
        ("1 0", 1, "0"),
        ("2 0", 2, "0"),
        ("70 1 0", 0, ""),
        ("70 70 70 70", 70, ""),
        ("-9 -9 -9 -9", 137, ""),
    ],
)
def test_a_worker_is_started_again_until_it_ends_well_or_too_often(
    tmp_path: Path, codes: str, result: int, left: str
) -> None:
    file = tmp_path / "codes"
    file.write_text(codes)
    before = signal.getsignal(signal.SIGTERM)

    ended_with = Supervisor([sys.executable, "-c", WORKER, str(file)], os.environ, Restarts(limit=3)).run()

    assert ended_with == result
    assert file.read_text() == left
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_supervisor_that_rests_ends_at_a_signal(tmp_path: Path) -> None:
    code = (
        "import os, sys; from producer import restarts; from producer.supervisor import Supervisor;"
        "restarts.FIRST_PAUSE_SECONDS = restarts.LONGEST_PAUSE_SECONDS = 600.0;"
        "import logging; logging.basicConfig();"
        "sys.exit(Supervisor([sys.executable, '-c', 'raise SystemExit(70)'], os.environ, restarts.Restarts(3)).run())"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        assert "it is started again in 600 s (1 of at most 3 times in a row)" in process.stderr.readline()
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()


def test_a_signal_that_was_ignored_stays_so() -> None:
    """As by `nohup`: the terminal goes, the worker stays."""
    code = (
        "import os, signal, sys, threading; from producer.restarts import Restarts;"
        "from producer.supervisor import Supervisor; signal.signal(signal.SIGHUP, signal.SIG_IGN);"
        "threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGHUP)).start();"
        "command = [sys.executable, '-c', 'import time; time.sleep(2); exit(1)'];"
        "sys.exit(Supervisor(command, os.environ, Restarts(3)).run())"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 1, "its own end"


# The real thing, with the stand-in engine.


@dataclass
class Kept:
    """A `whisper-fleet worker` with a broker of its own."""

    fleet: Fleet
    supervisor: psutil.Process


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Kept]]:
    """Two with live workers, started side by side. Nothing of them is left when the tests are over."""
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(2):
            folder = tmp_path_factory.mktemp("kept")
            fleet = stack.enter_context(Fleet(folder, {"WHISPER_ENGINE": "standin"}))
            command = [*CLI, "worker", "--name", "kept@%h"]
            process = start_guarded(command, fleet.environment(), folder / "worker.log")
            stack.callback(end, process, 15.0)
            found.append(Kept(fleet, psutil.Process(process.pid)))
        for one in found:
            wait_for(lambda redis=one.fleet.redis: live_workers(redis), 120.0)  # type: ignore[misc]
        yield found


def test_a_killed_worker_is_replaced_and_the_last_one_ends_with_its_supervisor(kept: list[Kept]) -> None:
    # Given a worker that is killed, with its decode processes
    fleet, supervisor = kept[0].fleet, kept[0].supervisor
    (worker,) = supervisor.children()
    decoders = worker.children(recursive=True)
    assert decoders
    worker.kill()
    fleet.redis.delete(*fleet.redis.keys("whisper:worker:*"))

    # Then nothing of it is left, and another one takes its place.
    wait_for(lambda: not still_running([worker, *decoders]))
    wait_for(lambda: live_workers(fleet.redis))
    (second,) = supervisor.children()
    processes = [second, *second.children(recursive=True)]

    # When the supervisor is told to end, the worker ends well.
    supervisor.terminate()
    assert supervisor.wait(60) == 0
    assert not still_running(processes)
    assert live_workers(fleet.redis) == []


def test_a_killed_supervisor_takes_its_worker_along(kept: list[Kept]) -> None:
    processes = kept[1].supervisor.children(recursive=True)
    assert len(processes) > 1, "a worker and its decode processes"

    kept[1].supervisor.kill()

    wait_for(lambda: not still_running(processes))


def test_a_model_that_cannot_load_is_tried_once(fleet: Fleet) -> None:
    done = fleet.cli("worker", "--model", "/nonexistent", WHISPER_ENGINE="vllm", timeout=120)
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert said.count("The worker cannot start: ") == 1
    assert "started again in" not in said


def test_wrong_settings_start_nothing() -> None:
    done = subprocess.run(
        [*CLI, "worker"],
        env=clean_environment(WHISPER_DRAIN_SECONDS="soon"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("whisper-fleet: WHISPER_DRAIN_SECONDS='soon'")
    assert done.stderr.count("\n") == 1
