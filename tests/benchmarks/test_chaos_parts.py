"""What a chaos run is made of: moments, sightings, what is left over, and the verdict. No fleet is started here."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.chaos import left_over, witness
from benchmarks.chaos.faults import FAULTS, Struck
from benchmarks.chaos.job import Outcome, Plan
from benchmarks.chaos.judge import Line, judge
from benchmarks.chaos.schedule import moment
from benchmarks.chaos.witness import Sightings, Taken, recover_seconds
from fleet import ended, wait_for

ROWS = 4


@given(st.integers(0, 2**32), st.sampled_from(sorted(FAULTS)))
def test_a_seed_decides_the_moment_and_the_victim(seed: int, fault: str) -> None:
    drawn = moment(seed, "standin", fault)
    assert drawn == moment(seed, "standin", fault)
    assert 0.2 <= drawn.share <= 0.7
    assert drawn.choose(["a", "b", "c"]) in ("a", "b", "c")


def test_seeds_faults_and_engines_have_moments_of_their_own() -> None:
    drawn = [moment(seed, engine, fault) for seed in (1, 2) for engine in ("standin", "real") for fault in FAULTS]
    assert len({one.share for one in drawn}) == len(drawn)


def test_what_workers_wrote_down_is_read(tmp_path: Path) -> None:
    path = tmp_path / "witness.log"
    assert witness.read(path) == Sightings()
    path.write_text(
        "started 10.000 7\ntaken 11.000 7 3 4\nwindow 11.500 7 0a0a0a0a 0.0\nwindow 11.600 7 0a0a0a0a 0.2\n"
        "started 11.700 8\npoisoned 12.000 7\ntaken 13.000 8 4\ntaken 14.000 8 4\nwindow 14.500 8 0a0a0a0a 0.0\n"
    )
    found = witness.read(path)
    assert found.workers == {7, 8}
    assert found.windows == Counter({"0a0a0a0a": 2}), "a retry at a higher temperature is no run of its own"
    assert found.poisoned == [12.0]
    assert found.held_by({7}, before=12.0) == {3, 4}
    assert found.held_by({7}, before=10.5) == set()
    assert found.taken_elsewhere({3, 4}, {7}, after=12.0) == {4: 13.0}
    assert found.taken_elsewhere({3, 4}, {8}, after=10.0) == {3: 11.0, 4: 11.0}


@pytest.mark.parametrize(
    ("answered_at", "held", "expected"),
    [
        ({}, set(), 0.0),
        ({0: 90.0, 1: 99.0}, {0, 1}, 0.0),  # answered before the fault
        ({0: 90.0, 1: 101.0, 2: 102.0}, set(), 1.0),  # answers went on coming
        ({0: 90.0, 1: 101.0, 2: 130.0}, set(), 29.0),  # a silence
        ({0: 101.0, 1: 120.0, 2: 121.0}, {1}, 20.0),  # a row that was held
        ({0: 101.0}, {1}, 1.0),  # one that never came is counted as lost, not as slow
    ],
)
def test_recovery_lasts_until_the_fault_is_not_felt_any_more(
    answered_at: dict[int, float], held: set[int], expected: float
) -> None:
    assert recover_seconds(100.0, answered_at, held) == expected


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[str]]:
    """A process that carries the mark ``chaos-test``."""
    with left_over.marked("chaos-test"):
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], text=True)
    with ended(process):
        yield process


def test_a_process_that_carries_the_mark_is_left_over(
    sleeper: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(left_over, "GRACE_SECONDS", 0.5)
    wait_for(lambda: left_over.processes("chaos-test", tmp_path))
    shared = left_over.shared_memory()
    (left,) = left_over.find("chaos-test", tmp_path, tmp_path, shared)
    assert left.startswith(f"process {sleeper.pid}: ")
    assert left_over.find("another", tmp_path, tmp_path, shared) == []
    left_over.kill("chaos-test", tmp_path)
    sleeper.wait(20)
    assert left_over.find("chaos-test", tmp_path, tmp_path, shared) == []


def test_what_is_killed_leaves_no_shared_memory(tmp_path: Path) -> None:
    # Given a process that has a segment, and Python's own process that takes it away when that one is gone
    code = (
        "import sys; from multiprocessing.shared_memory import SharedMemory\n"
        "segment = SharedMemory(create=True, size=4096); print(segment.name, flush=True); sys.stdin.read()"
    )
    with left_over.marked("chaos-memory"):
        process = subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=subprocess.PIPE, text=True)
    with ended(process):
        assert process.stdout is not None
        path = left_over.SHARED_MEMORY / process.stdout.readline().strip()
        assert path.exists()
        # A process that is just being started has no environment to be known by
        wait_for(lambda: len(left_over.processes("chaos-memory", tmp_path)) == 2)
        left_over.kill("chaos-memory", tmp_path)
        process.wait(20)
        wait_for(lambda: not path.exists(), 10)
        wait_for(lambda: not left_over.processes("chaos-memory", tmp_path), 10)


def test_intels_openmp_leaves_a_note_of_the_dead_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(left_over, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(left_over, "GRACE_SECONDS", 0.5)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait(20)
    for pid in (os.getpid(), dead.pid):
        (tmp_path / f"__KMP_REGISTERED_LIB_{pid}_0").write_bytes(b"0" * 1024)

    left = left_over.find("nobody", tmp_path / "folder", tmp_path / "temporary", set())

    assert left == [f"shared memory {tmp_path}/__KMP_REGISTERED_LIB_{dead.pid}_0"]


def test_a_process_that_hides_its_mark_is_found_by_its_folder(tmp_path: Path) -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    (tmp_path / "a").mkdir()
    with (tmp_path / "a" / "log").open("w") as log:
        writes = subprocess.Popen(sleep, stdout=log, text=True)
    works = subprocess.Popen(sleep, cwd=tmp_path / "a", text=True)
    with ended(writes), ended(works):
        found = wait_for(lambda: left_over.processes("nobody", tmp_path))
        assert {process.pid for process in found} == {writes.pid, works.pid}
        assert left_over.processes("nobody", tmp_path / "b") == []


def test_shared_memory_and_folders_are_left_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = tmp_path / "shm"
    shared.mkdir()
    monkeypatch.setattr(left_over, "SHARED_MEMORY", shared)
    monkeypatch.setattr(left_over, "GRACE_SECONDS", 0.5)
    (shared / "older").touch()
    before = left_over.shared_memory()
    (shared / "newer").write_bytes(b"\0" * 4096)
    (tmp_path / "whisper-fleet-x").mkdir()
    assert left_over.find("nobody", tmp_path, tmp_path, before) == [
        f"folder {tmp_path}/whisper-fleet-x",
        f"shared memory {shared}/newer",
    ]


def test_shared_memory_that_somebody_uses_is_not_left_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(left_over, "GRACE_SECONDS", 0.5)
    before = left_over.shared_memory()
    # Given: a segment that is mapped under another name than it has now, as semaphores are.
    path = left_over.SHARED_MEMORY / f"chaos-test-{os.getpid()}"
    with path.open("w+b") as file:
        file.write(b"\0" * 4096)
        file.flush()
        renamed = path.with_name(f"{path.name}-named")
        renamed.hardlink_to(path)
        path.unlink()
        try:
            with mmap.mmap(file.fileno(), 4096):
                found = left_over.find("nobody", tmp_path, tmp_path, before)
                assert f"shared memory {renamed}" not in found
            assert f"shared memory {renamed}" in left_over.find("nobody", tmp_path, tmp_path, before)
        finally:
            renamed.unlink()


def row(number: int, text: str | None = None, error: str | None = None) -> bytes:
    columns: dict[str, Any] = {"id": number, "transcription": None if error else text or f"text {number}"}
    if error:
        columns["transcription_error"] = {"type": error, "message": "no"}
    return json.dumps(columns).encode()


UNDISTURBED = [row(number) for number in range(ROWS)]


def outcome(**changes: Any) -> Outcome:
    """A job of four rows, all answered before the fault, and what ``changes`` say."""
    plan = Plan("standin", "kill-worker", FAULTS["kill-worker"], moment(1, "standin", "x"), Path("data.jsonl"), ROWS)
    base = Outcome(
        plan=plan,
        step=UNDISTURBED,
        answered_at=dict.fromkeys(range(ROWS), 90.0),
        seconds=10.0,
        struck_at=100.0,
        struck=Struck(),
        sightings=Sightings(windows=Counter("abcd")),
        left=[],
        ends={},
    )
    return replace(base, **changes)


def verdict(**changes: Any) -> Line:
    return judge(outcome(**changes), UNDISTURBED)


def test_a_job_that_nothing_happened_to_misses_nothing() -> None:
    line = verdict()
    assert line.missed == []
    assert (line.expected, line.answered, line.lost, line.doubled, line.left_over) == (4, 4, 0, 0, 0)
    assert (line.runs_mean, line.runs_most, line.identical) == (1.0, 1, True)


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({"step": UNDISTURBED[:3]}, "1 rows lost"),
        ({"step": [], "answered_at": {0: 1.0}}, "3 rows lost"),
        ({"step": [*UNDISTURBED, row(2)]}, "1 rows doubled"),
        ({"step": [*UNDISTURBED[:3], row(3, "other")]}, "differs in 1 rows"),
        ({"step": [*UNDISTURBED[:3], row(3, error="decode_crashed")]}, "rows with errors: {'decode_crashed': 1}"),
        ({"left": ["process 7: x"]}, "1 left over"),
        ({"ends": {"worker": [[0], [-9, 1]]}}, "a worker ended with 1"),
        ({"trouble": "not complete after 3 s"}, "not complete after 3 s"),
    ],
)
def test_every_bar_can_be_missed(changes: dict[str, Any], missed: str) -> None:
    assert any(missed in found for found in verdict(**changes).missed)


def test_texts_of_a_real_engine_may_differ_and_are_listed() -> None:
    plan = replace(outcome().plan, engine="real")
    line = verdict(plan=plan, step=[*UNDISTURBED[:3], row(3, "other")])
    assert line.missed == []
    assert line.differing == [{"id": 3, "undisturbed": "text 3", "here": "other"}]


@pytest.mark.parametrize(
    ("error", "missed"),
    [("quarantined", []), (None, ["the poisonous record is not quarantined"])],
)
def test_only_the_poisonous_record_is_quarantined(error: str | None, missed: list[str]) -> None:
    plan = replace(outcome().plan, poison=1)
    step = [UNDISTURBED[0], row(1, error=error), *UNDISTURBED[2:]]
    assert verdict(plan=plan, step=step).missed == missed
    others = verdict(plan=plan, step=[row(0, error="quarantined"), *step[1:]]).missed
    assert any("rows" in found for found in others), "another record is not"


@pytest.mark.parametrize(("taken_at", "missed"), [(150.0, False), (191.0, True), (None, True)])
def test_rows_of_a_killed_worker_have_to_run_elsewhere_in_time(taken_at: float | None, missed: bool) -> None:
    again = [] if taken_at is None else [Taken(taken_at, 8, (1, 2))]
    sightings = Sightings(taken=[Taken(99.0, 7, (1, 2)), *again], windows=Counter("abcd"))
    answered_at = {0: 90.0, 1: 195.0, 2: 196.0, 3: 90.0}
    line = verdict(struck=Struck(frozenset({7})), sightings=sightings, answered_at=answered_at)
    assert any("elsewhere" in found for found in line.missed) is missed
    if taken_at is not None:
        assert line.elsewhere_seconds == taken_at - 100.0
    # What the killed worker had answered in time needs no other one.
    early = verdict(struck=Struck(frozenset({7})), sightings=sightings, answered_at=dict.fromkeys(range(ROWS), 99.5))
    assert early.elsewhere_seconds == 0.0


def test_unknown_faults_are_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.chaos", "--faults", "kill-worker,earthquake"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "earthquake" in done.stderr
