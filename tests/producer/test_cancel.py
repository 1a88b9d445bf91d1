"""`whisper-fleet cancel`: jobs that are given up, beside live producers, collectors and workers."""

from __future__ import annotations

import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from job_files import answer, deliver, failed_answer, finished, new_job, read_rows, spec_of, speech_rows
from running import Running

from fleet import Fleet, ended, wait_for
from producer import cancel, patience, registry
from producer.aside import never
from producer.collector import Collector
from producer.enqueue import enqueuer_for
from producer.errors import FleetError, JobCancelledError, UsageError
from producer.follow import Follower
from producer.in_flight import rows_in_flight
from producer.job import Job, load_job
from producer.journal import Journal
from producer.opening import open_job
from producer.owned import opened
from producer.retry import begin_retry
from workers.app import create_app
from workers.settings import load_settings

#: More than the slow worker does while everybody comes to know.
ROWS = 400


def answered(job: Job) -> int:
    return len(Journal.read_answered(job.step.journal_path, job.rows))


def names(fleet: Fleet) -> list[str]:
    return [one.id for one in registry.registered(fleet.redis)]


def sent_job(fleet: Fleet, folder: Path) -> Job:
    """A job whose messages wait for workers that are not there."""
    job, config = new_job(folder), load_settings(REDIS_URL=fleet.url)
    answered = Follower(job).read
    enqueuer_for(job, create_app(config), fleet.redis, [], config, answered, threading.Event()).send_all()
    return job


def test_producer_and_collector_let_go_of_a_job_and_the_same_command_resumes_it(
    slow_fleet: Fleet, tmp_path: Path
) -> None:
    redis = slow_fleet.redis
    source, cache = speech_rows(tmp_path, ROWS), tmp_path / "cache"
    command = ("enqueue", str(source), "--cache-path", str(cache))
    with ended(slow_fleet.start_cli("collect")) as collector:
        # Given: a producer that waits for room in its window, and a collector for all jobs.
        with ended(slow_fleet.start_cli(*command, WHISPER_WINDOW_ROWS="4")) as producer:
            job = wait_for(lambda: load_job(cache / "data_step1.jsonl"))
            wait_for(lambda: answered(job) > 0)
            # When: the job is given up.
            done = slow_fleet.cli("cancel", job.id)
            assert done.returncode == 0, done.stderr
            kept = answered(job)
            assert 0 < kept < ROWS
            assert f"{job.id}: cancelled with {kept} of {ROWS} rows answered" in done.stdout
            # Then: its producer ends in a line, nothing waits for a worker, and nobody knows the job.
            _, said = producer.communicate(timeout=60)
            assert producer.returncode == 1
            assert f"job {job.id} was cancelled: the command that makes it resumes\n" in said
        assert job.id not in names(slow_fleet)
        wait_for(lambda: rows_in_flight(redis, "transcribe", job.id) == set())
        assert not job.step.path.exists()

        # And: the collector goes on with other jobs.
        other = slow_fleet.cli("enqueue", str(speech_rows(tmp_path / "other", 2)), "--cache-path", str(tmp_path / "b"))
        assert other.returncode == 0, other.stderr
        wait_for((tmp_path / "b" / "data_step1.jsonl").exists)
        assert answered(job) == kept
        assert collector.poll() is None

        # When: the same command comes again. Then: what was answered is not done again, and nothing is missing.
        again = slow_fleet.cli(*command)
        assert again.returncode == 0, again.stderr
        wait_for(lambda: job.reload().is_complete() and job.id not in names(slow_fleet))
    assert [row["id"] for row in read_rows(job.step.path)] == list(range(ROWS))
    assert not job.step.cancelled_path.exists()


def test_a_run_ends_when_its_job_is_cancelled(slow_fleet: Fleet, tmp_path: Path) -> None:
    job = open_job(spec_of(speech_rows(tmp_path, ROWS)))
    running = Running(slow_fleet, job)
    wait_for(lambda: job.step.journal_path.exists() and answered(job) > 0)
    assert f"{job.id}: cancelled" in cancel.cancel(slow_fleet.redis, job.id)
    assert isinstance(running.join().error, JobCancelledError)
    assert running.error.exit_code == 1
    assert job.id not in names(slow_fleet)
    # The same call, after its command has opened the job again, does the rest.
    again = open_job(spec_of(tmp_path / "data.jsonl"))
    assert again.id == job.id
    assert Running(slow_fleet, again).join().error is None
    assert [row["id"] for row in read_rows(job.step.path)] == list(range(ROWS))


def test_answers_that_nobody_has_collected_count_when_it_is_resumed(fleet: Fleet, tmp_path: Path) -> None:
    job = new_job(tmp_path)
    registry.register(fleet.redis, job.registration())
    deliver(fleet.redis, job, answer(0), answer(3))
    assert "with 0 of 5 rows answered" in cancel.cancel(fleet.redis, job.id)
    collector = Collector(fleet.redis)
    assert collector.adopt_registered() == []
    assert collector.add(job) is None
    assert new_job(tmp_path).id == job.id  # the same command
    assert collector.add(job) is not None
    assert collector.poll(0.1) == 2
    collector.close()


def test_what_cannot_be_cancelled_is_said_in_a_line(fleet: Fleet, tmp_path: Path) -> None:
    unknown = fleet.cli("cancel", "no-such-job")
    assert (unknown.returncode, unknown.stderr.count("\n")) == (2, 1)
    assert "no-such-job: no step file of a job" in unknown.stderr
    job = finished(new_job(tmp_path, 1), [answer(0)])
    complete = fleet.cli("cancel", str(job.step.path))
    assert (complete.returncode, complete.stderr.count("\n")) == (2, 1)
    assert "is complete: there is nothing to cancel" in complete.stderr
    assert not job.step.cancelled_path.exists()


def test_a_named_collector_ends_when_the_job_is_cancelled(fleet: Fleet, tmp_path: Path) -> None:
    job, other = new_job(tmp_path / "a"), new_job(tmp_path / "b", 1)
    for one in (job, other):
        registry.register(fleet.redis, one.registration())
    with ended(fleet.start_cli("collect", job.id, other.id)) as collector:
        wait_for(lambda: job.step.lock("collector").is_held())
        cancel.cancel(fleet.redis, job.id)
        deliver(fleet.redis, other, answer(0))  # it goes on with the other one
        stdout, stderr = collector.communicate(timeout=60)
    assert collector.returncode == 1
    assert stdout == f"{other.step.path}\n"
    assert f"{job.id} was cancelled" in stderr
    late = fleet.cli("collect", str(job.step.path))
    assert late.returncode == 1
    assert "was cancelled: the command that makes it resumes" in late.stderr


def test_a_job_whose_folder_was_removed_is_forgotten(fleet: Fleet, tmp_path: Path) -> None:
    job = new_job(tmp_path)
    registry.register(fleet.redis, job.registration())
    shutil.rmtree(job.step.job_path)
    done = fleet.cli("cancel", job.id)
    assert done.returncode == 0, done.stderr
    assert f"{job.id}: forgotten" in done.stdout
    assert names(fleet) == []


def test_a_job_that_is_served_elsewhere_is_not_called_cancelled(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given: a collector where the files are, which this machine does not see, and a message that waits.
    job = sent_job(fleet, tmp_path)
    with ended(fleet.start_cli("collect")):
        wait_for(lambda: job.step.lock("collector").is_held())
        monkeypatch.setattr(cancel, "load_job", lambda _: None)
        with pytest.raises(FleetError, match="cancel it there"):
            cancel.cancel(fleet.redis, job.id)
        assert names(fleet) == [job.id]
        assert rows_in_flight(fleet.redis, "transcribe", job.id) == set(range(job.rows))


def test_another_job_at_the_same_place_is_left_alone(fleet: Fleet, tmp_path: Path) -> None:
    """Where the job was replaced, and where another machine has its own under the same path."""
    job = sent_job(fleet, tmp_path)
    registry.publish(fleet.redis, job.id, registry.Progress(rows=5, step_path=str(job.step.path)))
    other = new_job(tmp_path, force=True)
    registry.register(fleet.redis, other.registration())
    assert f"{job.id}: forgotten" in cancel.cancel(fleet.redis, job.id)
    assert names(fleet) == [other.id]
    assert not other.is_cancelled()
    assert rows_in_flight(fleet.redis, "transcribe", job.id) == set()
    with pytest.raises(UsageError, match="no job's id"):
        cancel.cancel(fleet.redis, job.id)


def test_a_job_that_cannot_be_read_stays_as_it_is(fleet: Fleet, tmp_path: Path) -> None:
    job = new_job(tmp_path)
    registry.register(fleet.redis, job.registration())
    job.step.header_path.write_text("{")
    with pytest.raises(UsageError, match="damaged"):
        cancel.cancel(fleet.redis, job.id)
    assert names(fleet) == [job.id]


def test_a_folder_that_is_removed_meanwhile_is_no_trouble(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the operator of a DataFlow pipeline without a cache path does."""
    job = sent_job(fleet, tmp_path)
    marked = Job.cancel

    def removed(self: Job) -> None:
        marked(self)
        shutil.rmtree(self.step.job_path)

    monkeypatch.setattr(Job, "cancel", removed)
    assert "its job folder was removed meanwhile" in cancel.cancel(fleet.redis, str(job.step.path))
    assert names(fleet) == []
    assert rows_in_flight(fleet.redis, "transcribe", job.id) == set()


def test_the_mark_of_one_job_is_nothing_to_the_next(fleet: Fleet, tmp_path: Path) -> None:
    job = new_job(tmp_path, 2)
    done = finished(job, [answer(0), failed_answer(1)])
    job.cancel()  # by somebody who has read its header before
    assert not done.is_cancelled()
    retry = begin_retry(done)
    assert retry is not None
    assert not retry.is_cancelled()
    retry.current()


def test_all_that_can_be_cancelled_are(fleet: Fleet, tmp_path: Path) -> None:
    job = new_job(tmp_path)
    done = fleet.cli("cancel", "no-such-job", str(job.step.path), "nor-this-one")
    assert done.returncode == 2
    assert "no-such-job: no step file" in done.stderr
    assert "nor-this-one: no step file" in done.stderr
    assert job.is_cancelled()


def test_a_producer_that_waits_for_room_in_redis_lets_go(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(patience, "RETRY_SECONDS", 0.05)
    job = new_job(tmp_path)
    fleet.redis.config_set("maxmemory", int(fleet.redis.info("memory")["used_memory"]))
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(patience.Patience(fleet.redis, job, threading.Event()).wait_for_memory)
        wait_for(lambda: "Redis is full" in caplog.text)
        assert not waiting.done()
        job.cancel()
        with pytest.raises(JobCancelledError):
            waiting.result(30)


def test_a_collector_that_reads_a_journal_lets_go(tmp_path: Path) -> None:
    job = new_job(tmp_path)
    job.cancel()
    assert opened(job, never) is None
    assert not job.step.lock("collector").is_held()


def test_one_who_does_not_let_go_is_named(fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancel, "GIVE_UP_SECONDS", 0.2)
    job = new_job(tmp_path)
    with job.step.lock("producer") as lock:
        assert lock.acquire()
        with pytest.raises(FleetError, match=r"process .* is still at it"):
            cancel.cancel(fleet.redis, str(job.step.path))
        job.step.cancelled_path.unlink()
    assert "cancelled" in cancel.cancel(fleet.redis, str(job.step.path))


def test_a_job_that_is_resumed_meanwhile_is_not_cancelled(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = new_job(tmp_path)
    registry.register(fleet.redis, job.registration())
    marked = Job.cancel

    def resumed(self: Job) -> None:
        marked(self)
        new_job(tmp_path)

    monkeypatch.setattr(Job, "cancel", resumed)
    with pytest.raises(UsageError, match="resumed or replaced meanwhile"):
        cancel.cancel(fleet.redis, str(job.step.path))
    assert names(fleet) == [job.id]


def test_enqueue_resumes_a_job_that_somebody_is_about_to_cancel(fleet: Fleet, tmp_path: Path) -> None:
    job = new_job(tmp_path)
    job.cancel()
    # Given: `cancel` has the producer's lock, and waits for a collector
    with job.step.lock("producer") as cancelling:
        assert cancelling.acquire()
        # When: the job is resumed, which `cancel` does not see at once
        command = ("enqueue", str(tmp_path / "data.jsonl"), "--cache-path", str(tmp_path / "cache"))
        with ended(fleet.start_cli(*command)) as resuming:
            wait_for(lambda: not job.step.cancelled_path.exists())
            with pytest.raises(subprocess.TimeoutExpired):
                resuming.wait(0.5)
            cancelling.release()
            # Then: its rows are sent
            stdout, stderr = resuming.communicate(timeout=60)
    assert (resuming.returncode, stdout) == (0, f"{job.id}\n"), stderr
    assert rows_in_flight(fleet.redis, "transcribe", job.id) == set(range(5))


def test_a_cancelled_retry_is_resumed_by_the_same_command(fleet: Fleet, tmp_path: Path) -> None:

    done = finished(new_job(tmp_path, 2), [answer(0), failed_answer(1)])
    retry = begin_retry(done)
    assert retry is not None
    cancel.cancel(fleet.redis, str(done.step.path))
    assert retry.is_cancelled()
    assert begin_retry(done) == retry
    assert not retry.is_cancelled()
