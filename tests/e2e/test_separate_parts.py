"""Producer, worker, collector, Flower and foreign clients as separate processes on one broker, with the real engine."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from celery import Celery
from celery.result import AsyncResult

from fleet import Fleet, ended, free_port, wait_for
from producer.job import load_job
from rows import SAMPLES, read_rows
from workers.device import CPU_SEQS
from workers.errors import TranscriptionError
from workers.redis_url import celery_url

Write = Callable[..., Path]
AUDIO = SAMPLES / "audio"
ENGLISH = ["en_weather.wav", "en_train.flac", "en_kitchen.mp3", "en_library.ogg"]
ROWS = 4 * CPU_SEQS


def test_collector_killed_in_the_middle_loses_and_doubles_nothing(real_fleet: Fleet, jsonl: Write) -> None:
    # Given a job of more rows than the engine takes at once, and a collector that is killed after its first ones
    path = jsonl([{"audio": str(AUDIO / ENGLISH[n % 4]), "n": n} for n in range(ROWS)])
    cache = path.parent / "cache"
    journal = cache / "data_step1.job" / "journal.jsonl"
    enqueue = ("enqueue", str(path), "--cache-path", str(cache), "--language", "en")
    # The window keeps the engine from being done before the collector has started.
    with ended(real_fleet.start_cli(*enqueue, WHISPER_WINDOW_ROWS="8")) as producer:
        job = wait_for(lambda: load_job(cache / "data_step1.jsonl")).id
        with ended(real_fleet.start_cli("collect", job)) as collector:
            wait_for(lambda: journal.exists() and journal.read_bytes().count(b"\n") >= 3)
            collector.send_signal(signal.SIGKILL)
        assert not (cache / "data_step1.jsonl").exists()
        # When another collector takes over
        done = real_fleet.cli("collect", job)
        _, stderr = producer.communicate(timeout=60)
    assert producer.returncode == 0, stderr
    # Then every row is there once, with its own text
    assert done.returncode == 0, done.stderr
    rows = read_rows(done.stdout.splitlines()[-1])
    assert [row["n"] for row in rows] == list(range(ROWS))
    for row, word in zip(rows, ["weather", "train", "kitchen", "library"] * (ROWS // 4), strict=True):
        expected = "park" if word == "weather" else word
        assert expected in row["transcription"]


def test_changed_options_are_refused_and_nothing_is_overwritten(real_fleet: Fleet, jsonl: Write) -> None:
    path = jsonl([{"audio": str(AUDIO / "en_train.flac")}])
    arguments = ["run", str(path), "--cache-path", str(path.parent / "cache")]
    assert real_fleet.cli(*arguments, "--language", "en").returncode == 0
    step = path.parent / "cache" / "data_step1.jsonl"
    before = step.read_bytes()
    refused = real_fleet.cli(*arguments, "--language", "de", "--timestamps")
    assert refused.returncode == 2
    assert "language was 'en', now 'de'" in refused.stderr
    assert "timestamps was off, now on" in refused.stderr
    assert step.read_bytes() == before


def test_any_celery_client_gets_transcripts(real_fleet: Fleet) -> None:
    url = celery_url(real_fleet.url)
    client = Celery("somebody", broker=url, backend=url)
    record = {"audio": str(AUDIO / "en_train.flac"), "language": "english"}
    answer: AsyncResult = client.send_task("whisper.transcribe", [[record]], queue="transcribe")
    (transcript,) = answer.get(timeout=120)
    assert "London" in transcript["text"]
    assert transcript["language"] == "en"
    assert transcript["model"] == "whisper-base"
    assert 3 < transcript["duration"] < 5
    assert -1 < transcript["avg_logprob"] < 0
    failing = client.send_task("whisper.transcribe", [[{"audio": "/nowhere/a.wav"}]], queue="transcribe")
    with pytest.raises(Exception, match="file_not_found") as error:
        failing.get(timeout=60)
    assert type(error.value).__name__ == TranscriptionError.__name__


@pytest.fixture
def flower(real_fleet: Fleet) -> Iterator[str]:
    port = free_port()
    process: subprocess.Popen[str] = real_fleet.start_cli(
        "flower", "--port", str(port), FLOWER_BASIC_AUTH="watcher:secret"
    )
    with ended(process):
        wait_for(lambda: _answers(f"http://127.0.0.1:{port}/healthcheck"))
        yield f"http://127.0.0.1:{port}"


def test_flower_shows_the_worker_the_queues_and_the_tasks(real_fleet: Fleet, flower: str, jsonl: Write) -> None:
    assert httpx.get(f"{flower}/api/workers").status_code == 401
    with httpx.Client(base_url=flower, auth=("watcher", "secret"), timeout=30) as client:
        # Given a worker that Flower has heard of
        (name,) = wait_for(lambda: client.get("/api/workers", params={"refresh": 1}).json())
        assert name.startswith("test1@")
        # When a job of two rows is done
        path = jsonl([{"audio": str(AUDIO / "en_train.flac")}, {"audio": "missing.wav"}])
        done = real_fleet.cli("run", str(path), "--cache-path", str(path.parent / "cache"))
        assert done.returncode == 0, done.stderr
        # Then its tasks are listed, readable
        tasks = wait_for(lambda: _finished(client, 2))
        assert {task["name"] for task in tasks} == {"whisper.transcribe"}
        assert {task["state"] for task in tasks} == {"SUCCESS"}
        assert sorted(task["args"] for task in tasks) == ["(1 row from row 0)", "(1 row from row 1)"]
        results = [json.loads(task["result"].replace("'", '"')) for task in tasks]
        assert sorted(result["failed"] for result in results) == [0, 1]
        # And the queues are there, empty
        queues = {
            queue["name"]: queue["messages"] for queue in client.get("/api/queues/length").json()["active_queues"]
        }
        assert queues == {"transcribe": 0, "translate": 0}


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.HTTPError:
        return False


def _finished(client: httpx.Client, count: int) -> list[dict]:
    tasks = client.get("/api/tasks").json().values()
    done = [task for task in tasks if "from row" in (task["args"] or "") and task["state"] == "SUCCESS"]
    return done if len(done) >= count else []
