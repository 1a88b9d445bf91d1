"""One job in one process on a shared broker."""

from __future__ import annotations

import errno
import io
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from job_files import (
    answer,
    away,
    deliver,
    failed_answer,
    finished,
    new_job,
    read_rows,
    spec_of,
    speech_rows,
    write_rows,
)
from redis import Redis
from rich.console import Console
from running import Running

from fleet import Fleet, wait_for
from producer import registry
from producer.collector import Collector
from producer.display import Display
from producer.errors import FleetError, FleetUnavailableError
from producer.in_flight import rows_in_flight
from producer.opening import open_job
from producer.retry import begin_retry
from producer.run import RunOptions, TooManyFailedError, failed_limit, run_job
from producer.spec import JobSpec
from workers.presence import Presence
from workers.settings import load_settings


class Standing:
    """A fleet on this machine that goes on when the job is done; its workers are not there yet."""

    def __init__(self, url: str) -> None:
        self.url = url

    def wait_ready(self, redis: Redis, waiting: Callable[[str], None]) -> list[Presence]:
        return []

    def check(self) -> None:
        pass


@given(st.integers(0, 10**7), st.integers(0, 100))
def test_a_share_of_the_rows_may_fail(rows: int, percent: int) -> None:
    assert failed_limit(None, rows) is None
    assert failed_limit(str(percent), rows) == percent
    share = failed_limit(f"{percent}%", rows)
    assert share is not None
    assert share <= rows * percent / 100 < share + 1


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5", "%", "-1%", "101%", "nan%", "5 %%", "inf%"])
def test_other_limits_are_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the command line says what is wrong
        failed_limit(text, 100)


def test_a_job_waits_for_workers_and_says_so(fleet: Fleet, tmp_path: Path) -> None:
    job = new_job(tmp_path, rows=3)
    run = Running(fleet, job)
    wait_for(lambda: rows_in_flight(fleet.redis, "transcribe", job.id) == {0, 1, 2})
    wait_for(lambda: "no worker is live on redis://127.0.0.1" in run.shown)
    deliver(fleet.redis, job, *(answer(row) for row in range(3)))
    result = run.join().result
    assert result is not None
    assert result.is_complete()
    assert [row["transcription"] for row in read_rows(job.step.path)] == ["text 0", "text 1", "text 2"]
    assert registry.registered(fleet.redis) == []


def test_a_job_whose_file_was_moved_away_meanwhile_is_not_run_again(tmp_path: Path) -> None:
    job = finished(new_job(tmp_path, rows=1), [answer(0)])
    job.step.path.rename(tmp_path / "moved.jsonl")
    nowhere = load_settings(REDIS_URL="redis://127.0.0.1:1")
    assert run_job(job, RunOptions(), nowhere, Display(Console(quiet=True))) == job
    assert (job.progress().complete, job.progress().answered) == (True, 1)


def test_a_second_starter_follows_the_first(fleet: Fleet, tmp_path: Path) -> None:
    job = new_job(tmp_path, rows=2)
    first = Running(fleet, job)
    wait_for(lambda: len(rows_in_flight(fleet.redis, "transcribe", job.id)) == 2)
    second = Running(fleet, job)
    wait_for(lambda: "which runs this job" in second.shown)
    deliver(fleet.redis, job, answer(0))
    wait_for(lambda: "another run makes it (" in second.shown)
    deliver(fleet.redis, job, answer(1))
    assert first.join().result == second.join().result == job.reload()
    assert int(fleet.redis.llen("transcribe:5")) == 2, "sent once"  # type: ignore[arg-type]


def test_a_run_takes_over_from_a_collector_that_ends(fleet: Fleet, tmp_path: Path) -> None:
    job = new_job(tmp_path, rows=2)
    other = Collector(fleet.redis)
    assert other.add(job) is not None
    run = Running(fleet, job)
    wait_for(lambda: "collects this job" in run.shown)
    wait_for(lambda: len(rows_in_flight(fleet.redis, "transcribe", job.id)) == 2)
    other.close()
    deliver(fleet.redis, job, answer(0), answer(1))
    assert run.join().result == job.reload()
    assert job.reload().is_complete()


def test_answers_that_wait_are_collected_before_anything_is_sent(fleet: Fleet, tmp_path: Path) -> None:
    job = new_job(tmp_path, rows=2)
    deliver(fleet.redis, job, answer(0), answer(1))
    assert Running(fleet, job).join().result == job.reload()
    assert not fleet.redis.exists("transcribe:5")


def test_too_many_failures_stop_a_job_that_a_higher_limit_resumes(slow_fleet: Fleet, tmp_path: Path) -> None:
    source = speech_rows(tmp_path, 20)
    rows = [{"audio": f"missing-{row}.wav"} for row in range(4)]
    text = "".join(f'{{"audio": "{row["audio"]}", "id": -1}}\n' for row in rows)
    source.write_text(text + source.read_text())
    spec = JobSpec((str(source),), cache_path=str(tmp_path / "cache"))
    for limit in ("1", "10%"):
        job = open_job(spec)
        error = Running(slow_fleet, job, RunOptions(max_failed=limit), window_rows=6).join().error
        assert isinstance(error, TooManyFailedError)
        assert f"more than --max-failed {limit}: " in str(error)
        assert "x file_not_found" in str(error)
        assert not job.step.path.exists()
        # The fleet's collectors would finish it otherwise, as far as it was sent.
        assert job.is_cancelled()
        assert not slow_fleet.redis.llen("transcribe:5")
        assert job.id not in [entry.id for entry in registry.registered(slow_fleet.redis)]
    run = Running(slow_fleet, open_job(spec), RunOptions(max_failed="20%")).join()
    assert run.error is None
    assert [row["transcription"] is None for row in read_rows(job.step.path)] == [True] * 4 + [False] * 20


@pytest.mark.parametrize("private", [False, True])
def test_nothing_is_sent_of_a_job_that_was_given_up(fleet: Fleet, tmp_path: Path, private: bool) -> None:
    """Also where its window is still being filled, and where the fleet stays that was started for such jobs."""
    rows = ({"audio": f"{row}.wav" if row % 10 else None} for row in range(20_000))
    job = open_job(spec_of(write_rows(tmp_path / "data.jsonl", rows)))
    standing = Standing(fleet.url) if private else None
    display = Display(Console(file=io.StringIO()))
    with pytest.raises(TooManyFailedError):
        run_job(job, RunOptions(max_failed="20"), load_settings(REDIS_URL=fleet.url), display, standing)
    assert job.is_cancelled()
    assert not fleet.redis.llen("transcribe:5")
    assert job.id not in [entry.id for entry in registry.registered(fleet.redis)]


def test_an_own_fleet_would_not_see_the_answers_of_another_broker(fleet: Fleet, tmp_path: Path) -> None:
    job = new_job(tmp_path, rows=1)
    collector = Collector(fleet.redis)
    collector.add(job)
    with pytest.raises(FleetError, match="from a shared broker: set REDIS_URL"):
        run_job(job, RunOptions(), load_settings(), Display(Console(file=io.StringIO())))
    collector.close()
    assert not (job.step.job_path / "valkey").exists()


def test_a_broker_that_does_not_answer_is_named(tmp_path: Path) -> None:
    job = new_job(tmp_path, rows=1)
    silent = load_settings(REDIS_URL="redis://:secret@127.0.0.1:1/0")
    with pytest.raises(FleetUnavailableError, match=r"REDIS_URL redis://127\.0\.0\.1:1/0: does not answer") as caught:
        run_job(job, RunOptions(), silent, Display(Console(file=io.StringIO())))
    assert "secret" not in str(caught.value)


def test_a_retry_that_is_resumed_is_held_against_the_whole_step(fleet: Fleet, tmp_path: Path) -> None:
    """Ten of a hundred rows had failed: that six of them do again is a twentieth of the step, not half of the job."""
    rows = 100
    answers = [failed_answer(row, "fetch_failed") if row < 10 else answer(row) for row in range(rows)]
    job = finished(new_job(tmp_path, rows=rows), answers)
    retried = begin_retry(job)
    assert retried is not None
    assert retried.rows == 10
    run = Running(fleet, retried, RunOptions(max_failed="9%"))
    wait_for(lambda: len(rows_in_flight(fleet.redis, "transcribe", retried.id)) == 10)
    deliver(fleet.redis, retried, *(failed_answer(row) if row < 6 else answer(row) for row in range(10)))
    assert run.join().error is None
    assert run.result is not None
    assert run.result.progress().failed == 6


def test_a_folder_that_is_away_for_a_moment_does_not_end_a_run(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = new_job(tmp_path, rows=2)
    troubles = away(monkeypatch, job.step.header_path)
    run = Running(fleet, job)
    wait_for(lambda: rows_in_flight(fleet.redis, "transcribe", job.id) == {0, 1})
    troubles.extend([errno.ESTALE, errno.EIO] * 3)
    wait_for(lambda: not troubles)
    deliver(fleet.redis, job, answer(0), answer(1))
    assert run.join().error is None
    assert "trying again: " in run.shown
