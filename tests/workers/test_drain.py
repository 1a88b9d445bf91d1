"""A worker that is told to end: what runs may finish and is not run again elsewhere, the rest goes back once."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery

from doomed import start_doomed
from fleet import Fleet, wait_for
from workers import exit_codes, keys
from workers.drain import ONE_SIGNAL_SECONDS, Ending, handle_signals
from workers.messages import RowResult
from workers.presence import live_workers

DEADLINE_SECONDS = 120.0
#: A window takes 6 s, one after another, and a silent worker's messages are given out again after 5 s.
SLOW = {
    "WHISPER_ENGINE": "standin",
    "WHISPER_MAX_NUM_SEQS": "1",
    "WHISPER_STANDIN_STEP_MS": "500",
    "WHISPER_STANDIN_STEPS": "12",
    "WHISPER_VISIBILITY_TIMEOUT_SECONDS": "5",
    "WHISPER_RESTORE_SECONDS": "1",
    "WHISPER_LEASE_SECONDS": "1",
}


@dataclass
class Case:
    """A broker with one worker of two threads; ``client`` sends it rows."""

    fleet: Fleet
    client: Celery
    worker: subprocess.Popen[bytes]
    doom: Path

    def send(self, samples: Path, job: str) -> str:
        records = [{"audio": str(samples / "en_train.flac"), "row": 0}]
        sent = self.client.send_task("whisper.transcribe", [records], {"job": job}, queue="transcribe")
        return str(sent.id)

    def answers(self, job: str) -> list[RowResult]:
        entries = self.fleet.redis.xrange(keys.results(job))
        return [RowResult.model_validate_json(fields[keys.RESULT_FIELD]) for _, fields in entries]

    def waiting(self) -> list[str]:
        """Ids of the messages in the queue, in the order of Redis's list."""
        return [json.loads(message)["headers"]["id"] for message in self.fleet.redis.lrange("transcribe", 0, -1)]

    def held(self) -> int:
        return int(self.fleet.redis.hlen(keys.UNACKED))

    def log(self, number: int = 1) -> str:
        return self.fleet.log_path(number).read_text()

    def received(self, task: str, number: int = 1) -> int:
        return self.log(number).count(f"{task}] received")


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Case]]:
    """Started side by side: a start costs seconds."""
    settings = {
        "finishes": {},
        "twice": {"WHISPER_DRAIN_SECONDS": "600", "WHISPER_STANDIN_STEPS": "1000"},
        "quit": {"WHISPER_DRAIN_SECONDS": "600", "WHISPER_STANDIN_STEPS": "1000"},
        "anew": {"WHISPER_DRAIN_SECONDS": "600", "WHISPER_STANDIN_STEPS": "1000"},
        "stuck": {"WHISPER_DRAIN_SECONDS": "0"},
        "stuck anew": {"WHISPER_DRAIN_SECONDS": "0"},
        "killed": {"WHISPER_DRAIN_SECONDS": "600"},
        "remote": {"WHISPER_STANDIN_STEPS": "1"},
        "loading": {},
    }
    with contextlib.ExitStack() as stack:
        found = {}
        for name, changes in settings.items():
            folder = tmp_path_factory.mktemp(name)
            fleet = stack.enter_context(Fleet(folder, {**SLOW, **changes}))
            doom = folder / "doom"
            if fate := re.match("stuck|loading", name):
                doom.write_text(fate[0])
            client = Celery(broker=fleet.url, backend=fleet.url)
            stack.callback(client.close)
            found[name] = Case(fleet, client, start_doomed(fleet, doom, "--concurrency", "2"), doom)
        for name, case in found.items():
            if name != "loading":
                case.fleet.wait_for_workers(1)
        yield found


def test_what_finishes_within_the_grace_is_not_run_elsewhere(cases: dict[str, Case], samples: Path) -> None:
    # Given a worker with two records, of which the second takes longer than the visibility timeout
    case = cases["finishes"]
    first, second = case.send(samples, "first"), case.send(samples, "second")
    wait_for(lambda: case.received(first) and case.received(second))

    # When it is told to end, and another one starts, which has nothing to do
    start_doomed(case.fleet, case.doom)
    case.worker.send_signal(signal.SIGTERM)

    # Then the record that is ready first is acknowledged while the other still runs,
    wait_for(lambda: case.answers("first") or case.answers("second"), DEADLINE_SECONDS)
    wait_for(lambda: case.held() == 1)
    assert case.worker.poll() is None
    # both are answered once, by this worker, and it ends well.
    assert case.worker.wait(DEADLINE_SECONDS) == 0
    assert [len(case.answers(job)) for job in ("first", "second")] == [1, 1]
    assert (case.held(), case.waiting()) == (0, [])
    wait_for(lambda: live_workers(case.fleet.redis), DEADLINE_SECONDS)
    assert [case.received(task, 2) for task in (first, second)] == [0, 0]
    assert "Traceback" not in case.log()


@pytest.mark.parametrize(
    ("name", "signals"),
    [
        ("twice", [signal.SIGTERM] * 2),
        ("quit", [signal.SIGQUIT]),
        # Celery's answer to a SIGHUP is to start anew in the end, which is not to be any more.
        ("anew", [signal.SIGHUP, signal.SIGQUIT]),
    ],
)
def test_end_at_once_puts_back_what_runs_once(
    cases: dict[str, Case], samples: Path, name: str, signals: list[signal.Signals]
) -> None:
    case = cases[name]
    tasks = {case.send(samples, "first"), case.send(samples, "second")}
    wait_for(lambda: all(case.received(task) for task in tasks))

    for number in signals:
        case.worker.send_signal(number)
        # Taken notice of: two signals in a row are one.
        wait_for(lambda: not live_workers(case.fleet.redis))
        time.sleep(2 * ONE_SIGNAL_SECONDS)

    assert case.worker.wait(DEADLINE_SECONDS) == 0
    assert sorted(case.waiting()) == sorted(tasks)
    assert case.held() == 0
    assert (case.answers("first"), case.answers("second")) == ([], [])
    assert "do not stop" not in case.log()


def test_worker_that_is_killed_within_its_grace_has_not_died_over_what_it_runs(
    cases: dict[str, Case], samples: Path
) -> None:
    """As a container is whose own grace is shorter: three such ends would make its record a suspect, and the last."""
    case = cases["killed"]
    task = case.send(samples, "first")
    wait_for(lambda: case.fleet.redis.hexists(keys.task(task), "holder"), DEADLINE_SECONDS)
    case.worker.send_signal(signal.SIGTERM)
    wait_for(lambda: case.fleet.redis.hexists(keys.task(task), "told_to_end"))
    case.worker.kill()

    start_doomed(case.fleet, case.doom, "--concurrency", "2")
    wait_for(lambda: case.answers("first"), DEADLINE_SECONDS)
    assert "the worker that ran it was killed while it ended" in case.log(2)
    assert "the worker that ran it is gone" not in case.log(2)


@pytest.mark.parametrize(
    ("name", "number", "code"),
    # Celery would start the process anew after a SIGHUP, which one that leaves its threads cannot: a supervisor does.
    [("stuck", signal.SIGTERM, 0), ("stuck anew", signal.SIGHUP, exit_codes.FAILED)],
)
def test_record_that_does_not_stop_is_left_behind(
    cases: dict[str, Case], samples: Path, name: str, number: signal.Signals, code: int
) -> None:
    # Given a thread that hangs in something that no event reaches
    case = cases[name]
    task = case.send(samples, "stuck")
    wait_for(lambda: Path(f"{case.doom}.reached").exists())

    # When the worker is told to end
    case.worker.send_signal(number)

    # Then it ends without that thread, and the message waits for another worker.
    assert case.worker.wait(DEADLINE_SECONDS) == code
    assert case.waiting() == [task]
    assert case.held() == 0
    assert case.answers("stuck") == []
    assert "do not stop" in case.log()


def test_worker_that_is_shut_down_from_afar_ends_well(cases: dict[str, Case]) -> None:
    case = cases["remote"]
    case.client.control.shutdown()
    assert case.worker.wait(DEADLINE_SECONDS) == 0


def test_worker_that_loads_its_engine_ends_at_once(cases: dict[str, Case]) -> None:
    case = cases["loading"]
    wait_for(lambda: Path(f"{case.doom}.reached").exists())

    case.worker.send_signal(signal.SIGTERM)

    assert case.worker.wait(DEADLINE_SECONDS) == 0
    assert "while the engine loads" in case.log()


def test_worker_that_ends_while_vllm_loads_leaves_no_sockets(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, tempfile, threading, time\n"
        "from pathlib import Path\n"
        "from workers.drain import ended_at_once\n"
        "from workers.socket_names import VARIABLE, short_lived_sockets\n"
        "def load():\n"
        "    with short_lived_sockets():\n"
        "        Path(os.environ[VARIABLE], 'socket').touch()\n"
        "        loading.set()\n"
        "        time.sleep(600)\n"
        "loading = threading.Event()\n"
        "with ended_at_once():\n"
        "    threading.Thread(target=load, daemon=True).start()\n"
        "    loading.wait()\n"
        "    assert any(Path(tempfile.gettempdir()).iterdir())\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "    time.sleep(600)\n"
    )
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # pytest's own path is too long for a socket
        environment = {**os.environ, "TMPDIR": folder, "PYTHONPATH": str(Path(__file__).parents[2])}
        environment.pop("VLLM_RPC_BASE_PATH", None)
        done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, timeout=60, check=False)
        assert done.returncode == 0
        assert list(Path(folder).iterdir()) == []


def test_wrong_setting_is_one_line_without_the_command_line(tmp_path: Path) -> None:
    environment = {**os.environ, "WHISPER_DRAIN_SECONDS": "soon"}
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "workers", "worker"],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("The worker cannot start: WHISPER_DRAIN_SECONDS='soon'")
    assert done.stderr.count("\n") == 1


def test_grace_begins_once_and_a_second_call_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("workers.drain.time.monotonic", lambda: now)
    ending = Ending(grace_seconds=60)
    assert ending.overdue_seconds() < 0
    ending.begin()
    assert ending.overdue_seconds() == -60
    now = 110.0
    ending.begin()
    assert ending.overdue_seconds() == 0
    now = 115.0
    ending.begin(at_once=True)
    assert ending.overdue_seconds() == 5, "a third call must not give it more time"


class Told:
    """A worker's end, and its handlers of signals, at a time that a test decides on."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.ending = Ending(grace_seconds=60)
        self._handlers: dict[int, Any] = {}
        patch.setattr("workers.drain.time.monotonic", lambda: self.now)
        patch.setattr("workers.drain._end_signals", lambda: (signal.SIGTERM, signal.SIGINT))
        patch.setattr("workers.drain.signal.signal", self._handlers.__setitem__)
        patch.setattr("workers.drain.state", SimpleNamespace(should_stop=None))
        handle_signals(self.ending, "worker@here")

    def deadline_after(self, seconds: float, number: signal.Signals) -> float | None:
        """When the grace is over, once a signal came so many seconds later."""
        self.now += seconds
        self._handlers[number](number, None)
        return self.ending.deadline


def test_two_sigterms_at_once_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd tells the supervisor and the worker, and the supervisor passes it on."""
    told = Told(monkeypatch)
    assert not told.ending.told
    assert told.deadline_after(0, signal.SIGTERM) == 160.0
    assert told.ending.told
    assert told.deadline_after(ONE_SIGNAL_SECONDS / 2, signal.SIGTERM) == 160.0
    assert told.deadline_after(ONE_SIGNAL_SECONDS, signal.SIGTERM) == told.now


def test_two_ctrl_c_are_two(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(monkeypatch)
    assert told.deadline_after(0, signal.SIGINT) == 160.0
    assert told.deadline_after(0.01, signal.SIGINT) == told.now
