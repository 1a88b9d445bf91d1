"""One job from its start to its step file, with one fault in the middle of it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.chaos.faults import EngineName, Fault, Struck
from benchmarks.chaos.schedule import Moment
from benchmarks.chaos.stage import POLL_SECONDS, Stage
from benchmarks.chaos.witness import Sightings
from producer.cache import Step
from producer.job import load_job

#: Room for a journal, a step file and its temporary copy.
SMALL_DISK_BYTES = 16 << 20
#: The command options that every job gets.
OPTIONS = ("--language", "en")


@dataclass(frozen=True, slots=True)
class Plan:
    """One job and the fault that strikes it. ``settings``: ``WHISPER_*`` of all its processes."""

    engine: EngineName
    name: str
    fault: Fault
    moment: Moment
    source: Path
    rows: int
    poison: int | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    ready_seconds: float = 90.0
    complete_seconds: float = 300.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a job. Times are seconds since the epoch; ``struck_at`` is 0 where nothing struck.

    ``answered_at``: when each row was seen in the journal. ``step``: the lines of the step file. ``ends``: exit codes
    by command. ``trouble``: why the job did not end as it should have.
    """

    plan: Plan
    step: list[bytes]
    answered_at: Mapping[int, float]
    seconds: float
    struck_at: float
    struck: Struck
    sightings: Sightings
    left: list[str]
    ends: Mapping[str, list[list[int]]]
    trouble: str = ""


class Watch:
    """Sees a job's journal grow, from a thread of its own. Use as a context manager."""

    def __init__(self, step: Step) -> None:
        self.answered_at: dict[int, float] = {}
        self._path = step.journal_path
        self._read_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._stop.wait(POLL_SECONDS / 2):
            self.look()

    def look(self) -> None:
        """Note the rows that are new; a journal that is gone has told everything."""
        with contextlib.suppress(OSError), self._path.open("rb") as file:
            file.seek(self._read_bytes)
            whole, newline, _ = file.read().rpartition(b"\n")
            self._read_bytes += len(whole) + len(newline)
            for line in whole.splitlines():
                with contextlib.suppress(ValueError, KeyError):  # written while the disk was full
                    self.answered_at.setdefault(int(json.loads(line)["row"]), time.time())


def play(plan: Plan, folder: Path) -> Outcome:
    """Run the job of ``plan`` with its logs in ``folder``, which is made."""
    folder.mkdir(parents=True)
    cache = folder / "cache"
    step = Step(cache, plan.source.stem, 1)
    began, struck_at, struck, trouble, left = time.time(), 0.0, Struck(), "", list[str]()
    fault = plan.fault
    settings = {**plan.settings, **fault.settings}
    with _disk(cache, small=fault.full_disk), Stage(folder, cache, settings, has_broker=not fault.own_fleet) as stage:
        with Watch(step) as watch:
            try:
                _start(plan, stage)
                began = time.time()
                if fault.strike is not None:
                    _until_answered(plan, stage, watch, step)
                    struck_at = time.time()
                    struck = fault.strike(stage, plan.moment)
                _until_complete(plan, stage, step)
            except Exception as error:  # noqa: BLE001 - whatever it is, it must not cost the other jobs their lines
                trouble = f"{type(error).__name__}: {error}"
            seconds = time.time() - began
            watch.look()
            left = stage.stop()
        sightings = stage.sightings()
        lines = step.path.read_bytes().splitlines() if step.path.exists() else []
        for row in range(plan.rows if lines else 0):  # the last answers, and a journal that is gone with them
            watch.answered_at.setdefault(row, began + seconds)
        ends: dict[str, list[list[int]]] = {}
        for part in stage.parts:
            ends.setdefault(part.name, []).append(part.ends)
    if plan.poison is not None and sightings.poisoned:
        struck_at = sightings.poisoned[0]
    return Outcome(plan, lines, watch.answered_at, seconds, struck_at, struck, sightings, left, ends, trouble)


def _start(plan: Plan, stage: Stage) -> None:
    fault = plan.fault
    extra: tuple[str, ...] = ()
    if fault.own_fleet:
        extra = ("--workers", str(fault.workers))
    else:
        for _ in range(fault.workers):
            stage.start_worker()
        stage.wait_ready(fault.workers, plan.ready_seconds)
    for _ in range(fault.collectors):
        stage.start_collector()
    for command in fault.commands:
        stage.start_producer(command, plan.source, *OPTIONS, *extra)


def _until_answered(plan: Plan, stage: Stage, watch: Watch, step: Step) -> None:
    """Wait for the moment. Raises TimeoutError where it does not come, or passed unseen."""
    deadline = time.monotonic() + plan.complete_seconds
    while len(watch.answered_at) < plan.moment.share * plan.rows:
        stage.keep_up()
        if _complete(step):
            raise TimeoutError("the job was over before the fault could strike")
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(watch.answered_at)} rows answered before the fault, and no more")
        time.sleep(POLL_SECONDS / 2)


def _until_complete(plan: Plan, stage: Stage, step: Step) -> None:
    """Wait for the step file, and for every command to end with 0. Raises TimeoutError."""
    deadline = time.monotonic() + plan.complete_seconds
    while not (_complete(step) and stage.commands_done()):
        stage.keep_up()
        if time.monotonic() > deadline:
            state = "complete, but a command does not end with 0" if _complete(step) else "not complete"
            raise TimeoutError(f"{state} after {plan.complete_seconds:.0f} s")
        time.sleep(POLL_SECONDS)


def _complete(step: Step) -> bool:
    job = load_job(step.path)
    return job is not None and job.is_complete()


@contextmanager
def _disk(cache: Path, *, small: bool) -> Iterator[None]:
    """A folder for step files; ``small``: a disk of its own that can be filled up, where this user may mount one."""
    cache.mkdir()
    if not small or os.geteuid() != 0:
        yield
        return
    options = f"size={SMALL_DISK_BYTES},mode=700"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(cache)], capture_output=True)
    try:
        yield
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "--lazy", str(cache)], check=True)
