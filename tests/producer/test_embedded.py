"""The private fleet of one command: it starts, it says why it does not, and it leaves nothing behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from job_files import processes_at, wait_for_none
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from fleet import wait_for
from producer.embedded import EmbeddedFleet, Valkey
from producer.errors import FleetError
from workers.redis_client import connect

STANDIN = {"WHISPER_ENGINE": "standin"}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with an awkward name; nothing may work in it when the test is over."""
    path = tmp_path / 'jöb "1" folder.job'
    path.mkdir()
    yield path
    wait_for_none(lambda: processes_at(path))


def test_a_valkey_is_private_and_its_data_stay(folder: Path) -> None:
    with Valkey(folder) as valkey:
        assert valkey.url.startswith("unix://")
        client = connect(valkey.url)
        client.set("key", "value")
        assert client.config_get("port").popitem()[1] in ("0", b"0")
        socket = valkey.url.partition("@")[2].partition("?")[0]
        with pytest.raises(Exception, match=r"(?i)auth"):
            Redis(unix_socket_path=socket, retry=Retry(NoBackoff(), 0)).ping()
        pid = valkey.pid
    assert not psutil.pid_exists(pid)
    assert not Path(socket).parent.exists()
    with Valkey(folder) as valkey:
        assert connect(valkey.url).get("key") == b"value"


def test_a_valkey_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "appendonlydir").write_text("in the way")
    with pytest.raises(FleetError, match=r"the private Valkey did not start: .*append.*\(see .*valkey\.log\)"):
        Valkey(tmp_path).start()


def test_a_fleet_is_ready_when_its_engines_are_and_ends_with_the_block(folder: Path) -> None:
    waited: list[float] = []
    with EmbeddedFleet(folder, workers=2, environment=STANDIN) as fleet:
        redis = connect(fleet.url)
        present = fleet.wait_ready(redis, waited.append)
        assert sorted(worker.name.partition("@")[0] for worker in present) == ["worker1", "worker2"]
        assert {worker.model for worker in present} == {"standin"}
        assert "STAND-IN ENGINE" in fleet.log_path(2).read_text()
        assert processes_at(folder)
        fleet.check()
    assert waited
    assert processes_at(folder) == []
    assert not (folder / "valkey").exists(), "nobody needs its data any more"


def test_a_worker_that_cannot_load_its_model_gives_its_own_reason(folder: Path) -> None:
    # Given: the complaint of an earlier run, which is over.
    (folder / "worker-1.log").write_text("The worker cannot start: long ago\n")
    with (
        pytest.raises(FleetError) as caught,
        EmbeddedFleet(folder, environment={"WHISPER_ENGINE": "vllm", "WHISPER_MODEL": "/nonexistent"}) as fleet,
    ):
        fleet.wait_ready(connect(fleet.url))
    message = str(caught.value)
    assert message.startswith("the local worker ended with code 1: ")
    assert "/nonexistent" in message
    assert "long ago" not in message
    assert "\n" not in message
    assert str(folder / "worker-1.log") in message


def test_parts_that_end_are_noticed(folder: Path) -> None:
    with EmbeddedFleet(folder, environment=STANDIN) as fleet:
        redis = connect(fleet.url)
        fleet.wait_ready(redis)
        (server,) = [process for process in processes_at(folder) if "valkey" in process.name()]
        server.kill()
        server.wait(10)
        with pytest.raises(FleetError, match="the private Valkey ended"):
            wait_for(lambda: fleet.check())
        (worker,) = fleet._workers
        os.kill(worker.pid, 9)
        worker.wait(10)
