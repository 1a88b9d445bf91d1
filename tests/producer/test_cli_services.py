"""`whisper-fleet worker` and `whisper-fleet flower`, started for real."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from job_files import speech_rows

from fleet import CLI, Fleet, clean_environment, free_port, run_cli, wait_for
from producer.embedded import end, start_guarded
from producer.in_flight import rows_in_flight, rows_uncollected
from producer.job import load_job
from workers.presence import live_workers

PASSWORD = ("someone", "a-password")


@contextlib.contextmanager
def service(fleet: Fleet, folder: Path, *arguments: str, **changes: str) -> Iterator[subprocess.Popen[bytes]]:
    process = start_guarded([*CLI, *arguments], fleet.environment(**changes), folder / f"{arguments[0]}.log")
    try:
        yield process
    finally:
        end(process, 15.0)


@pytest.fixture(scope="module")
def slow_worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A worker of one thread on one queue, a second for each row: its queue is never empty for a while."""
    folder = tmp_path_factory.mktemp("services")
    environment = {"WHISPER_ENGINE": "standin", "WHISPER_STANDIN_STEP_MS": "200"}
    arguments = ("worker", "--name", "only-one@%h", "-Q", "transcribe", "--concurrency", "1")
    with Fleet(folder / "broker", environment) as fleet, service(fleet, folder, *arguments):
        wait_for(lambda: live_workers(fleet.redis))
        yield fleet


def test_a_worker_takes_names_queues_and_threads(slow_worker: Fleet, tmp_path: Path) -> None:
    (present,) = live_workers(slow_worker.redis)
    assert present.name.startswith("only-one@")
    assert present.queues == ["transcribe"]
    assert present.threads == 1
    # A job for the other queue is refused while nobody serves it.
    source = speech_rows(tmp_path, 1)
    done = slow_worker.cli("enqueue", str(source), "--task", "translate", "--cache-path", str(tmp_path / "cache"))
    assert done.returncode == 2
    assert "no live worker serves the queue translate" in done.stderr


def test_flower_shows_workers_queues_and_tasks(slow_worker: Fleet, tmp_path: Path) -> None:
    port, redis = free_port(), slow_worker.redis
    authority = f"http://127.0.0.1:{port}"
    log = tmp_path / "flower.log"

    def api(path: str, **options: Any) -> Any:
        with contextlib.suppress(httpx.TransportError):
            answer = httpx.get(authority + path, auth=PASSWORD, timeout=10, **options)
            return answer.json() if answer.status_code == 200 else None
        return None

    arguments = ("flower", "--port", str(port))
    with service(slow_worker, tmp_path, *arguments, FLOWER_BASIC_AUTH=":".join(PASSWORD)) as process:

        def known() -> Any:
            """The workers, once one has told all that it was asked: Flower gives each answer a second."""
            assert process.poll() is None, log.read_text()
            found = api("/api/workers?refresh=1") or {}
            return found if any("active_queues" in one for one in found.values()) else None

        workers = wait_for(known)
        (name,) = workers
        assert name.startswith("only-one@")
        assert [queue["name"] for queue in workers[name]["active_queues"]] == ["transcribe"]

        # Without the password nothing is told.
        for path in ("/", "/api/workers", "/api/tasks"):
            assert httpx.get(authority + path, timeout=10).status_code == 401
        assert httpx.get(authority + "/api/workers", auth=("someone", "wrong"), timeout=10).status_code == 401

        # Messages that keep one thread busy, and more that wait: for an engine of eight windows. Twenty
        # seconds of work: long enough to be looked at.
        count = 160
        source = speech_rows(tmp_path / "in", count)
        assert slow_worker.cli("enqueue", str(source), "--cache-path", str(tmp_path / "cache")).returncode == 0
        job = load_job(tmp_path / "cache" / "data_step1.jsonl")
        assert job is not None

        def lengths_agree() -> bool:
            before = redis.llen("transcribe:5")
            queues = api("/api/queues/length") or {"active_queues": []}
            shown = {queue["name"]: queue["messages"] for queue in queues["active_queues"]}
            return 0 < int(before) == shown.get("transcribe") == redis.llen("transcribe:5")  # type: ignore[arg-type]

        wait_for(lengths_agree)
        finished = wait_for(lambda: api("/api/tasks", params={"state": "SUCCESS"}))
        task = next(iter(finished.values()))
        assert task["name"] == "whisper.transcribe"
        assert task["uuid"].startswith(f"{job.id}.")
        rows = re.fullmatch(r"\((\d+) rows? from row \d+\)", task["args"])
        assert rows is not None
        assert task["kwargs"] == f"{{job: {job.id}}}"
        assert task["result"] == f"{{'rows': {rows[1]}, 'failed': 0, 'reasons': {{}}}}"
        assert task["worker"] == name
        # Only what was sent, and nothing twice.
        assert len(rows_uncollected(redis, job.id) | rows_in_flight(redis, "transcribe", job.id)) <= count


def test_flower_is_not_for_everyone() -> None:
    environment = clean_environment(REDIS_URL="redis://127.0.0.1:1/0")
    done = run_cli("flower", "--address", "0.0.0.0", environment=environment, timeout=60)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "FLOWER_BASIC_AUTH" in done.stderr
    for port in ("0", "65536"):
        done = run_cli("flower", "--port", port, environment=environment, timeout=60)
        assert done.returncode == 2
        assert "Invalid value for '--port'" in done.stderr


def test_help_of_a_worker_is_ours() -> None:
    done = run_cli("worker", "--help", environment={**clean_environment(), "COLUMNS": "120"})
    assert done.returncode == 0
    assert "--tensor-parallel-size" in done.stdout
    assert "celery worker" in done.stdout
