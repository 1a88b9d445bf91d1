"""Clients with a fleet of their own: it serves calls and jobs, is looked after, and ends with the client."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from job_files import read_rows, speech_rows, write_rows

from fleet import wait_for
from producer import Client, FleetError, UsageError
from producer.enqueue import enqueuer_for
from producer.follow import Follower
from producer.in_flight import rows_in_flight
from producer.job import load_job
from producer.opening import open_job
from producer.spec import JobSpec
from workers import keys
from workers.app import create_app
from workers.presence import live_workers
from workers.publisher import publish, take_back
from workers.settings import load_settings

ANSWER_SECONDS = 120.0
STANDIN = {"WHISPER_ENGINE": "standin"}


def own_processes() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


def workers_of(before: set[int]) -> list[psutil.Process]:
    found = []
    for pid in own_processes() - before:
        with contextlib.suppress(psutil.Error):  # it ends just now
            process = psutil.Process(pid)
            # Celery gives it a name with its arguments in it: one word or several, by the length of Python's path.
            if any("worker1@" in word for word in process.cmdline()):
                found.append(process)
    return found


@pytest.fixture(scope="module")
def before() -> set[int]:
    return own_processes()


@pytest.fixture(scope="module")
def client(before: set[int]) -> Iterator[Client]:
    with pytest.MonkeyPatch.context() as patched:
        # A shared fleet that is not there: this client does not look at it.
        patched.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
        client = Client.embedded(environment=STANDIN)
        # What a thread starts is gone when it ends, unless care is taken.
        opening = threading.Thread(target=client.open)
        opening.start()
        opening.join()
        try:
            yield client
        finally:
            client.close()


def test_calls_are_answered_by_the_own_fleet(client: Client, samples: Path) -> None:
    assert client.transcribe(samples / "en_train.flac").result(ANSWER_SECONDS).text.startswith("stand-in ")


def test_jobs_run_on_it_beside_calls(client: Client, samples: Path, tmp_path: Path) -> None:
    calls = [client.transcribe(samples / "en_train.flac", start_s=number / 10) for number in range(8)]
    path = client.run_job(speech_rows(tmp_path, 12), cache_path=tmp_path / "cache")
    assert len({row["transcription"] for row in read_rows(path)}) == 12
    assert len({call.result(ANSWER_SECONDS).text for call in calls}) == 8
    assert not list((tmp_path / "cache").glob("**/valkey*")), "no fleet of the job's own"


def test_a_job_with_another_model_is_refused(client: Client, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "data.jsonl", [{"audio": "a.wav"}])
    with pytest.raises(UsageError, match=r"^model turbo: the client's own fleet has "):
        client.run_job(source, model="turbo", cache_path=tmp_path / "cache")
    with pytest.raises(UsageError, match="model turbo: no live worker has it"):
        client.transcribe("a.wav", model="turbo")


def test_force_leaves_nothing_of_the_job_before_it_in_the_own_fleet(
    client: Client, tmp_path: Path, before: set[int]
) -> None:
    """Its rows would be done first, for nobody."""
    # Given a job whose rows wait in the queue of a worker that stands still
    source, cache = speech_rows(tmp_path, 12), tmp_path / "cache"
    opened = client._connection.open()
    old = open_job(JobSpec((str(source),), cache_path=str(cache)))
    (worker,) = workers_of(before)
    worker.suspend()
    again = threading.Thread(target=client.run_job, args=(source,), kwargs={"cache_path": cache, "force": True})
    try:
        config = load_settings(REDIS_URL=opened.url, chunk_rows=1)
        answered, present = Follower(old).read, live_workers(opened.redis)
        with contextlib.closing(create_app(config, set_as_current=False)) as app:
            enqueuer_for(old, app, opened.redis, present, config, answered, threading.Event()).send_all()
        assert len(rows_in_flight(opened.redis, "transcribe", old.id)) >= 11, "one is on its way to the worker"
        # When another takes its place
        again.start()
        # Then they are taken back before the worker goes on
        wait_for(lambda: not rows_in_flight(opened.redis, "transcribe", old.id))
    finally:
        worker.resume()
        again.join(ANSWER_SECONDS)
    assert len(read_rows(cache / "data_step1.jsonl")) == 12


def test_what_the_own_fleet_cannot_do_leaves_the_old_step_as_it_was(client: Client, tmp_path: Path) -> None:
    source, cache = speech_rows(tmp_path, 3), tmp_path / "cache"
    client.run_job(source, cache_path=cache)
    job = load_job(cache / "data_step1.jsonl")
    assert job is not None
    # Given that a worker with another model takes from the same queue: a step is made by one
    redis = client._connection.open().redis
    (present,) = live_workers(redis)
    other = present.model_copy(update={"name": "other@here", "model": "other"})
    publish(redis, keys.WORKERS, keys.worker(other.name, "1"), other.model_dump_json())
    try:
        with pytest.raises(UsageError, match="a step is made by one model"):
            client.run_job(source, cache_path=cache, language="de", force=True)
    finally:
        take_back(redis, keys.WORKERS, keys.worker(other.name, "1"))
    assert job.reload() == job
    assert job.is_complete()


def test_a_worker_that_ends_is_started_again_though_nobody_calls(
    client: Client, samples: Path, before: set[int]
) -> None:
    (worker,) = workers_of(before)
    worker.kill()
    wait_for(lambda: [one for one in workers_of(before) if one.pid != worker.pid])
    assert client.translate(samples / "en_train.flac").result(ANSWER_SECONDS).text


def test_closing_leaves_nothing(client: Client, before: set[int]) -> None:
    client.close()
    assert own_processes() <= before
    with pytest.raises(FleetError, match="the client is closed"):
        client.transcribe("a.wav")


def test_a_fleet_that_cannot_start_says_why(before: set[int]) -> None:
    client = Client.embedded(environment={**STANDIN, "WHISPER_CONCURRENCY": "none"})
    with pytest.raises(FleetError, match=r"the local worker ended with code \d+: .*WHISPER_CONCURRENCY"):
        client.open()
    assert own_processes() <= before
    client.close()


def test_calls_of_a_fleet_that_broke_fail(before: set[int], samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHISPER_WORKER_RESTARTS", "0")
    with Client.embedded(environment={**STANDIN, "WHISPER_STANDIN_STEPS": "1000000"}) as client:
        handle = client.transcribe(samples / "en_train.flac")
        (worker,) = workers_of(before)
        worker.kill()
        with pytest.raises(FleetError, match="the local worker ended with code -9"):
            handle.result(ANSWER_SECONDS)
        with pytest.raises(FleetError, match="the local worker ended with code -9"):
            client.transcribe(samples / "en_train.flac")
    assert own_processes() <= before


def test_a_process_that_forgets_to_close_leaves_nothing(alone: dict[str, str], samples: Path) -> None:
    code = (
        "import sys; from producer import Client; client = Client();"
        "print(client.transcribe(sys.argv[1]).result(100).text); client.transcribe(sys.argv[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(samples / "en_train.flac")],
        env=alone,
        text=True,
        capture_output=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("stand-in ")
    assert list(Path(alone["TMPDIR"]).glob("whisper-fleet-*")) == []
