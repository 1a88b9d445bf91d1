"""`enqueue` and `collect` as processes of their own on a shared broker."""

from __future__ import annotations

import contextlib
import errno
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from job_files import answer, away, deliver, finished, new_job, read_rows, speech_rows

from fleet import Fleet, ended, wait_for
from patched_imports import patched_imports
from producer import collect, registry
from producer.aside import Stopped
from producer.collect import _poll, serve
from producer.collection import Collection
from producer.collector import LONGEST_PAUSE_SECONDS, Collector, pause_after
from producer.errors import FleetError, UsageError
from producer.follow import Follower
from producer.in_flight import rows_in_flight, rows_uncollected
from producer.job import Job, load_job, new_id
from producer.journal import Journal
from producer.registry import Progress
from workers.settings import load_settings

ROWS = 60
#: A collector that is killed as soon as it has journaled some rows.
KILLED = """
import os, signal

def killed(module):
    append = module.Journal.append
    def appended(self, *answers):
        new = append(self, *answers)
        if self.answered >= 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return new
    module.Journal.append = appended

AFTER["producer.journal"] = killed
"""


def enqueued(fleet: Fleet, source: Path, cache: Path, **changes: str) -> Job:
    """The job that `enqueue` made, whose name is the last line that it printed."""
    done = fleet.cli("enqueue", str(source), "--cache-path", str(cache), **changes)
    assert done.returncode == 0, done.stderr
    job = load_job(cache / f"{source.stem}_step1.jsonl")
    assert job is not None
    assert done.stdout.splitlines()[-1] == job.id
    return job


def answered(job: Job) -> int:
    return len(Journal.read_answered(job.step.journal_path, job.rows))


def output_of(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    stdout, stderr = process.communicate(timeout=60)
    return process.returncode, stdout, stderr


@contextlib.contextmanager
def collecting(fleet: Fleet, *names: str, **changes: str) -> Iterator[subprocess.Popen[str]]:
    with ended(fleet.start_cli("collect", *names, **changes)) as process:
        yield process


def test_a_killed_collector_costs_nothing(slow_fleet: Fleet, standin_fleet: Fleet, tmp_path: Path) -> None:
    source = speech_rows(tmp_path, ROWS)
    # Given: what an undisturbed run writes.
    undisturbed = standin_fleet.cli("run", str(source), "--cache-path", str(tmp_path / "undisturbed"))
    assert undisturbed.returncode == 0, undisturbed.stderr
    # Given: the job of a collector that is killed in the middle. (The window keeps the worker from running ahead.)
    arguments = ("enqueue", str(source), "--cache-path", str(tmp_path / "cache"))
    with ended(slow_fleet.start_cli(*arguments, WHISPER_WINDOW_ROWS="10")) as producer:
        job = wait_for(lambda: load_job(tmp_path / "cache" / "data_step1.jsonl"))
        with collecting(slow_fleet, str(job.step.path), **patched_imports(tmp_path / "patch", KILLED)) as process:
            assert process.wait(60) == -signal.SIGKILL
        assert 5 <= answered(job) < ROWS
        assert not job.step.path.exists()
        # When: a second collector goes on. Then: every row is there once.
        with collecting(slow_fleet, job.id) as process:
            code, stdout, stderr = output_of(process)
        assert (code, stdout) == (0, f"{job.step.path}\n"), stderr
        assert output_of(producer)[0] == 0
    assert [row["id"] for row in read_rows(job.step.path)] == list(range(ROWS))
    assert job.step.path.read_bytes() == Path(undisturbed.stdout.splitlines()[-1]).read_bytes()

    # And: whoever asks later is told where it is, at once.
    with collecting(slow_fleet, job.id) as process:
        assert output_of(process)[:2] == (0, f"{job.step.path}\n")


def test_collectors_share_the_jobs_and_end_when_told(slow_fleet: Fleet, tmp_path: Path) -> None:
    with collecting(slow_fleet) as one, collecting(slow_fleet) as other:
        jobs = [enqueued(slow_fleet, speech_rows(tmp_path / name, 4), tmp_path / name) for name in ("a b", "ü")]
        wait_for(lambda: all(job.reload().is_complete() for job in jobs))
        wait_for(lambda: not registry.registered(slow_fleet.redis))
        for process in (one, other):
            process.send_signal(signal.SIGTERM)
        ends = [output_of(process) for process in (one, other)]
    assert [code for code, _, _ in ends] == [143, 143]
    paths = [line for _, stdout, _ in ends for line in stdout.splitlines()]
    assert sorted(paths) == sorted(str(job.step.path) for job in jobs), "each by one collector"
    for job in jobs:
        assert [row["id"] for row in read_rows(job.step.path)] == [0, 1, 2, 3]


def test_a_producer_waits_for_its_collector(slow_fleet: Fleet, tmp_path: Path) -> None:
    source = speech_rows(tmp_path, 16)
    redis = slow_fleet.redis
    arguments = ("enqueue", str(source), "--cache-path", str(tmp_path / "cache"))
    with ended(slow_fleet.start_cli(*arguments, WHISPER_WINDOW_ROWS="10")) as producer:
        job = wait_for(lambda: load_job(tmp_path / "cache" / "data_step1.jsonl"))
        # Given: no collector. Then: ten rows are sent and answered, and no more.
        wait_for(lambda: len(rows_uncollected(redis, job.id)) == 10)
        wait_for(lambda: rows_in_flight(redis, "transcribe", job.id) == set())
        assert producer.poll() is None
        listed = slow_fleet.cli("jobs").stdout
        assert f"{job.id}: 0 of 16 rows, 0 failed, {job.step.path}\n" in listed
        # A second producer of the job does not send it twice.
        second = slow_fleet.cli(*arguments)
        assert second.returncode == 1
        assert "is sending this job already" in second.stderr
        # When: one comes. Then: the rest is sent.
        with collecting(slow_fleet, job.id) as collector:
            code, stdout, _ = output_of(producer)
            assert (code, stdout) == (0, f"{job.id}\n")
            assert output_of(collector)[0] == 0
    assert [row["id"] for row in read_rows(job.step.path)] == list(range(16))
    again = slow_fleet.cli(*arguments)
    assert again.returncode == 0
    assert "complete already" in again.stderr
    assert again.stdout == f"{job.id}\n"


def test_a_run_sends_what_is_left_of_a_job_that_another_collects(slow_fleet: Fleet, tmp_path: Path) -> None:
    source = speech_rows(tmp_path, 12)
    arguments = (str(source), "--cache-path", str(tmp_path / "cache"))
    # Given: a producer that was killed when it had sent a few rows, and a collector that has the job.
    with ended(slow_fleet.start_cli("enqueue", *arguments, WHISPER_WINDOW_ROWS="2")) as producer:
        job = wait_for(lambda: load_job(tmp_path / "cache" / "data_step1.jsonl"))
        wait_for(lambda: rows_uncollected(slow_fleet.redis, job.id))
        producer.kill()
    with collecting(slow_fleet, job.id) as collector:
        wait_for(lambda: answered(job) >= 1)
        done = slow_fleet.cli("run", *arguments)
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{job.step.path}\n"
        assert f"process {collector.pid} on" in done.stderr
        assert "collects this job" in done.stderr
        assert output_of(collector)[:2] == (0, f"{job.step.path}\n")
    assert [row["id"] for row in read_rows(job.step.path)] == list(range(12))


def test_a_named_job_that_was_replaced_ends_with_the_new_one(fleet: Fleet, tmp_path: Path) -> None:
    # Given: a collector of a step file whose job cannot go on, as its folder's lock is taken.
    old = new_job(tmp_path, rows=2)
    reports: list[tuple[str, bool]] = []
    config = load_settings(REDIS_URL=fleet.url)
    with old.step.lock("collector") as lock, ThreadPoolExecutor(1) as thread:
        assert lock.acquire()
        told = thread.submit(
            *(serve, fleet.redis, [str(old.step.path)]),
            *(lambda job, progress: reports.append((job.id, progress.complete)), config),
        )
        # When: another job takes its place meanwhile, and is answered.
        header = replace(old.header, id=new_id(old.step))
        header.write(old.step.header_path)
        new = replace(old, header=header)
        deliver(fleet.redis, new, answer(0), answer(1))
        lock.release()
        # Then: it is collected, and that is all.
        told.result(60)
    assert reports[-1] == (new.id, True)
    assert sum(complete for _, complete in reports) == 1


def test_a_job_whose_folder_was_removed_ends_no_collector(fleet: Fleet, tmp_path: Path) -> None:
    removed, other = new_job(tmp_path / "removed", rows=1), new_job(tmp_path / "other", rows=1)
    for job in (removed, other):
        registry.register(fleet.redis, job.registration())
    collector = Collector(fleet.redis)
    assert len(collector.adopt_registered()) == 2
    shutil.rmtree(removed.step.job_path)
    deliver(fleet.redis, removed, answer(0))
    deliver(fleet.redis, other, answer(0))
    wait_for(lambda: (collector.poll(0.01), [owned for owned in collector.jobs if owned.complete])[1])
    errors = {owned.job.id: owned.error for owned in collector.jobs}
    assert errors[other.id] is None
    assert "was it removed or replaced?" in str(errors[removed.id])
    collector.close()


@pytest.mark.parametrize("when", ["before the last answer", "while the step is written"])
def test_a_removed_job_touches_nothing_of_the_one_in_its_place(
    when: str, fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its collector has files open that are nowhere any more; whatever it would write by name is the new job's."""
    old = new_job(tmp_path, rows=2)
    news: list[Job] = []

    def replaced() -> dict[Path, bytes]:
        shutil.rmtree(tmp_path / "cache")
        news.append(new_job(tmp_path, rows=2, timestamps=True))
        with contextlib.closing(Journal.open(news[0].step.journal_path, 2)) as journal:
            journal.append([answer(1, "of the new one")])
        return {path: path.read_bytes() for path in (news[0].step.header_path, news[0].step.journal_path)}

    with contextlib.closing(Collector(fleet.redis)) as collector:
        # Given: a collector of a job that lacks one answer, whose user removes the cache and begins anew
        owned = collector.add(old)
        assert owned is not None
        deliver(fleet.redis, old, answer(0))
        wait_for(lambda: collector.poll(0.01))
        if when == "before the last answer":
            kept = replaced()
        else:
            before: list[dict[Path, bytes]] = []

            def rows_and_more(rows: Iterable[bytes], _: Stopped) -> Iterator[bytes]:
                yield from rows
                before.append(replaced())

            monkeypatch.setattr("producer.job.while_wanted", rows_and_more)
        # When: the last one comes
        deliver(fleet.redis, old, answer(1))
        wait_for(lambda: (collector.poll(0.01), owned.error)[1])
        monkeypatch.undo()
        if when != "before the last answer":
            kept = before[0]
        # Then: the new job is as it was
        assert "was it removed or replaced?" in str(owned.error)
        assert {path: path.read_bytes() for path in kept} == kept
        assert sorted(path.name for path in old.step.cache_path.iterdir()) == [news[0].step.job_path.name]
        # And: the old one is not announced any more, nor finished
        registry.forget(fleet.redis, old.id)
        wait_for(lambda: (_poll(collector, collect._Reports(lambda *_: None), 60.0), not collector.jobs)[1])
        assert old.id not in {entry.id for entry in registry.registered(fleet.redis)}
        with pytest.raises(FleetError, match="removed or replaced"):
            old.current()
        # And: whoever comes next has the new one
        registry.register(fleet.redis, news[0].registration())
        deliver(fleet.redis, news[0], answer(0, "and this"))
        wait_for(lambda: (collector.adopt_registered(), collector.poll(0.01), news[0].reload().is_finished())[2])
    assert [row["transcription"] for row in read_rows(old.step.path)] == ["and this", "of the new one"]


def test_a_run_whose_job_was_replaced_is_not_done_with_the_other_one(fleet: Fleet, tmp_path: Path) -> None:
    old = new_job(tmp_path, rows=2)
    shutil.rmtree(tmp_path / "cache")
    new = finished(new_job(tmp_path, rows=2, timestamps=True), [answer(0), answer(1)])
    assert new.reload().is_finished()
    with contextlib.closing(Collector(fleet.redis)) as collector:
        with pytest.raises(FleetError, match="removed or replaced"):
            Collection(collector, fleet.redis, old).progress()
        with pytest.raises(FleetError, match="removed or replaced"):
            Follower(old).read()


def test_a_job_that_cannot_be_written_leaves_the_others_their_time(fleet: Fleet, tmp_path: Path) -> None:
    # Given a job that is answered, whose input is another by now, and whose tries take two seconds each
    job = new_job(tmp_path, rows=2)
    (tmp_path / "data.jsonl").write_text('{"audio": "other.wav"}\n' * 2)
    with contextlib.closing(Collector(fleet.redis)) as collector:
        owned = collector.add(job)
        assert owned is not None
        owned.tried_seconds = 2.0
        deliver(fleet.redis, job, answer(0), answer(1))
        # When it is tried
        before = time.monotonic()
        wait_for(lambda: (_poll(collector, collect._Reports(lambda *_: None), 0.0), not collector.jobs)[1])
        # Then not again before the others had twenty times as long
        registry.register(fleet.redis, job.registration())
        assert collector.adopt_registered() == []
        assert collector._paused_until[job.id] >= before + 40.0


def test_force_starts_over_although_a_collector_of_the_fleet_serves_the_job(fleet: Fleet, tmp_path: Path) -> None:
    # Given: a collector that serves all, and two jobs of the producers of which one still runs
    stopped, running = new_job(tmp_path / "stopped", rows=2), new_job(tmp_path / "running", rows=2)
    for job in (stopped, running):
        registry.register(fleet.redis, job.registration())
        deliver(fleet.redis, job, answer(0))
    with collecting(fleet), running.step.lock("producer") as producing:
        assert producing.acquire()
        wait_for(lambda: answered(stopped) and answered(running))
        # When: both are to start over
        with pytest.raises(UsageError, match="working on it: stop that one, or `whisper-fleet cancel` the job, first"):
            new_job(tmp_path / "running", rows=2, language="de", force=True)
        anew = new_job(tmp_path / "stopped", rows=2, language="de", force=True)
        # Then: one is, the other goes on
        assert (anew.step, answered(anew)) == (stopped.step, 0)
        assert running.current() == running
        registry.register(fleet.redis, anew.registration())
        deliver(fleet.redis, anew, answer(0, "anew"), answer(1, "anew"))
        deliver(fleet.redis, running, answer(1))
        wait_for(lambda: anew.current().is_finished() and running.current().is_finished())
    assert [row["transcription"] for row in read_rows(anew.step.path)] == ["anew", "anew"]


def test_a_job_that_is_asked_back_is_not_taken_again_meanwhile(fleet: Fleet, tmp_path: Path) -> None:
    job = new_job(tmp_path, rows=1)
    registry.register(fleet.redis, job.registration())
    with contextlib.closing(Collector(fleet.redis)) as collector:
        with job.step.force_lock as asking:
            assert asking.acquire()
            assert collector.adopt_registered() == []
            assert collector.add(job) is None
        assert len(wait_for(collector.adopt_registered)) == 1


@pytest.mark.parametrize("by", ["id", "step file"])
def test_named_jobs_are_served_until_they_are_complete(fleet: Fleet, tmp_path: Path, by: str) -> None:
    job = new_job(tmp_path, rows=2)
    registry.register(fleet.redis, job.registration())
    deliver(fleet.redis, job, answer(1), answer(0), answer(1, "again"))
    reports: list[tuple[str, Progress]] = []
    name = job.id if by == "id" else str(job.step.path)
    config = load_settings(REDIS_URL=fleet.url)
    serve(fleet.redis, [name, name], lambda job, progress: reports.append((job.id, progress)), config)
    assert {id for id, _ in reports} == {job.id}
    assert [progress.answered for _, progress in reports] == [0, 2]
    assert [progress.complete for _, progress in reports] == [False, True]
    assert [row["transcription"] for row in read_rows(job.step.path)] == ["text 0", "text 1"]


def test_a_job_that_moves_is_told_now_and_then_and_where_it_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    now, told = [0.0], list[int]()
    monkeypatch.setattr(collect, "time", SimpleNamespace(monotonic=lambda: now[0]))
    reports = collect._Reports(lambda job, progress: told.append(progress.answered))

    def moves_to(answered: int, seconds: float, error: FleetError | None = None, complete: bool = False) -> list[int]:
        now[0] = seconds
        progress = Progress(rows=9, answered=answered, complete=complete)
        owned = SimpleNamespace(
            job=SimpleNamespace(id="job"),
            journal=SimpleNamespace(answered=answered),
            complete=complete,
            error=error,
            progress=lambda: progress,
        )
        reports.say_if_due(owned)  # type: ignore[arg-type]
        return told

    assert moves_to(0, 0.0) == [0]
    assert moves_to(3, 1.0) == moves_to(4, 9.0) == [0]
    assert moves_to(4, 10.0) == moves_to(4, 60.0) == [0, 4], "also where it stands still since"
    assert moves_to(6, 61.0, FleetError("full")) == [0, 4, 6]
    assert moves_to(9, 62.0, complete=True) == [0, 4, 6, 9]


def test_a_folder_that_is_away_for_a_moment_is_waited_for(
    slow_fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A network's file system whose server restarts: the command ended with 2, as for wrong arguments."""
    job, said = new_job(tmp_path, rows=2), list[Progress]()
    troubles = away(monkeypatch, job.step.header_path)
    deliver(slow_fleet.redis, job, answer(0))

    def report(_: Job, progress: Progress) -> None:
        said.append(progress)
        if len(said) == 1:
            troubles.extend([errno.ESTALE, errno.EIO, errno.ETIMEDOUT])
            deliver(slow_fleet.redis, job, answer(1))

    monkeypatch.setattr(collect, "RETRY_SECONDS", 0.01)
    serve(slow_fleet.redis, [str(job.step.path)], report, load_settings(REDIS_URL=slow_fleet.url))
    assert not troubles
    assert said[-1].complete
    assert "trying again" in caplog.text


def test_a_pause_is_no_longer_than_whoever_makes_room_would_wait() -> None:
    assert pause_after(0.5) == 10
    assert pause_after(3600) == LONGEST_PAUSE_SECONDS
