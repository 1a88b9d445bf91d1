"""The services of compose.yaml work together: their own commands, run as processes."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator

import httpx
import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError
from redis.retry import Retry

from composed import ROOT, Project
from fleet import wait_for
from workers.presence import live_workers
from workers.redis_client import connect

SAMPLES = ROOT / "tests" / "samples" / "samples.jsonl"
AUTH = ("fleet", "a-word")
VARIABLES = {
    "REDIS_PASSWORD": "only-for-this-test",
    "FLOWER_BASIC_AUTH": ":".join(AUTH),
    "WHISPER_ENGINE": "standin",
    "REDIS_MAXMEMORY": "256mb",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """Redis, a worker with the stand-in engine, the collector and Flower, all ready."""
    with Project(tmp_path_factory.mktemp("compose"), VARIABLES) as running:
        running.start("redis")
        wait_for(lambda: _answers(running))
        for name in ("worker", "collector", "flower"):
            running.start(name)
        wait_for(lambda: _worker(running), 120.0)
        wait_for(lambda: _flower(running, "/healthcheck"), 120.0)
        yield running


def _answers(project: Project) -> bool:
    project.assert_running("redis")
    with contextlib.suppress(RedisError):
        return bool(connect(project.redis_url).ping())
    return False


def _worker(project: Project) -> str | None:
    project.assert_running("worker")
    return next((worker.name for worker in live_workers(connect(project.redis_url))), None)


def _flower(project: Project, path: str, auth: tuple[str, str] | None = AUTH) -> httpx.Response | None:
    project.assert_running("flower")
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"http://127.0.0.1:{project.flower_port}{path}", auth=auth, timeout=30)
    return None


def test_redis_keeps_what_it_has(project: Project) -> None:
    redis = connect(project.redis_url)

    found = {name: redis.config_get(name)[name] for name in ("appendonly", "appendfsync", "maxmemory-policy")}
    assert found == {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction"}
    assert redis.config_get("maxmemory") == {"maxmemory": str(256 * 2**20)}
    assert redis.config_get("save") == {"save": ""}
    assert any(project.mounted("redis", "/data").rglob("*.aof"))


def test_redis_answers_nobody_without_the_password(project: Project) -> None:
    with pytest.raises(AuthenticationError):
        Redis(port=project.redis_port, retry=Retry(NoBackoff(), 0)).ping()


def test_a_job_becomes_a_step_file(project: Project) -> None:
    # When the command at the top of compose.yaml is run
    comment = "docker compose run --rm collector "
    [line] = [line for line in (ROOT / "compose.yaml").read_text().splitlines() if comment in line]
    done = project.run("collector", *line.partition(comment)[2].split())
    assert done.returncode == 0, done.stderr

    # Then the collector writes the step file into the cache volume
    step = project.mounted("collector", "/cache/samples_step1.jsonl")
    wait_for(lambda: project.assert_running("collector") or step.exists(), 120.0)
    rows = [json.loads(line) for line in step.read_text().splitlines()]
    given = [json.loads(line) for line in SAMPLES.read_text().splitlines()]
    assert [{name: row[name] for name in one} for row, one in zip(rows, given, strict=True)] == given
    assert not [row for row in rows if "transcription_error" in row]
    spoken = [row["transcription"] for row in rows if row["spoken_text"]]
    assert all(text.startswith("stand-in ") for text in spoken)


def test_flower_lists_the_worker_to_those_who_know_the_password(project: Project) -> None:
    name = _worker(project)
    assert name is not None

    def listed() -> bool:
        answer = _flower(project, "/api/workers?refresh=1")
        assert answer is not None
        assert answer.status_code == 200
        return name in answer.json()

    wait_for(listed)
    for path in ("/", "/api/workers", "/metrics"):
        for auth in (None, ("fleet", "another")):
            answer = _flower(project, path, auth)
            assert answer is not None
            assert answer.status_code == 401


def test_flower_is_healthy(project: Project) -> None:
    done = project.health("flower")

    assert done.returncode == 0, done.stderr


def test_a_worker_is_healthy_as_long_as_it_is_there(project: Project) -> None:
    name = _worker(project)
    assert name is not None
    # Given a live worker: the check passes, and says what is there
    up = project.health("worker")
    assert up.returncode == 0, up.stderr
    # (how busy it is, it says every ten seconds)
    busy = r"\d+ windows running, \d+ waiting"
    assert re.fullmatch(rf"{re.escape(name)}: standin on none, {busy}, queues transcribe, translate\n", up.stdout)
    # But not for another's name
    other = project.run("worker", "workers", "--name", "other@%h")
    assert other.returncode == 1
    assert "other@" in other.stderr

    # When it has stopped, the check fails
    project.stop("worker")
    try:
        down = project.health("worker")
        assert down.returncode == 1
        assert name in down.stderr
        none = project.run("collector", "workers")
        assert (none.returncode, none.stdout) == (1, "")
        assert "no live worker" in none.stderr
    finally:
        project.start("worker")
        wait_for(lambda: _worker(project), 120.0)
