"""The private fleet of one command: it starts, it says why it does not, and it leaves nothing behind."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from job_files import processes_at, wait_for_none
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from fleet import free_port
from patched_imports import SLOW_LOAD, patched_imports
from producer import embedded
from producer.embedded import EmbeddedFleet, Valkey
from producer.errors import FleetError
from producer.file_lock import FileLock
from producer.valkey import DATA_FOLDER, IN_USE, MOST_REVIVALS, RUN_FOLDER_PREFIX
from workers.redis_client import connect

STANDIN = {"WHISPER_ENGINE": "standin"}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with an awkward name; nothing may work in it when the test is over."""
    path = tmp_path / 'jöb "1" folder.job'
    path.mkdir()
    yield path
    wait_for_none(lambda: processes_at(path))


def test_the_reason_of_one_of_vllms_processes_is_told(tmp_path: Path) -> None:
    """vLLM's own error only says that it is somewhere above."""
    log = tmp_path / "worker-1.log"
    log.write_text(
        "[INFO] vLLM: Warning: nothing\n"
        "(EngineCore pid=7) ERROR core.py:1510] ValueError: Free memory on device cuda:0 (10/80 GiB) is too little\n"
        "Exception: WorkerProc initialization failed. See stack trace for root cause.\n"
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}\n"
        "[CRITICAL] The worker cannot start: cannot load the model m: Engine core initialization failed. "
        "See root cause above. Failed core proc(s): {}\n"
        "later\n"
    )
    why = "ValueError: Free memory on device cuda:0 (10/80 GiB) is too little"
    assert embedded._why(log, 0) == f"cannot load the model m: Engine core initialization failed. {why}"
    log.write_text("[CRITICAL] The worker cannot start: no such model\n")
    assert embedded._why(log, 0) == "no such model"


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


@pytest.mark.parametrize(("length", "stays"), [(72, True), (73, False), (200, False)])
def test_a_folder_for_temporary_files_may_be_deep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int, stays: bool
) -> None:
    # Given one in which a socket just has room, and some in which it has none
    parent = Path(tempfile.mkdtemp(prefix="wf-", dir="/tmp"))
    deep = parent / ("d" * (length - len(str(parent)) - 1))
    deep.mkdir()
    try:
        monkeypatch.setattr(tempfile, "tempdir", str(deep))
        with Valkey(tmp_path) as valkey:
            socket = Path(valkey.url.partition("@")[2].partition("?")[0])
            assert connect(valkey.url).ping()
            assert socket.is_relative_to(deep) == stays
        assert not socket.parent.exists()
    finally:
        shutil.rmtree(parent)


def test_a_valkey_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "appendonlydir").write_text("in the way")
    with pytest.raises(FleetError, match=r"the private Valkey did not start: .*append.*\(see .*valkey\.log\)"):
        Valkey(tmp_path).start()


def test_without_room_for_temporary_files_it_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = r"^temporary files cannot be written \(No .*\): free some space, or set TMPDIR$"
    # Given a folder that is no more
    monkeypatch.setattr(tempfile, "tempdir", f"/none-{os.getpid()}")  # short, as sockets want it
    with pytest.raises(FleetError, match=message):
        Valkey(folder)

    # Or none in which Python itself could write when it looked for one
    def refuse() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", refuse)
    with pytest.raises(FleetError, match=message):
        Valkey(folder)


@pytest.mark.parametrize("damaged", ["*.incr.aof", "*.base.rdb", "*.manifest"])
def test_data_that_valkey_cannot_read_are_set_aside(
    folder: Path, caplog: pytest.LogCaptureFixture, damaged: str
) -> None:
    # Given files that a loss of power has left with a hole in one of them
    with Valkey(folder) as valkey, contextlib.closing(connect(valkey.url)) as client:
        for number in range(100):
            client.set(f"key {number}", "value")
    (path,) = (folder / DATA_FOLDER).glob(damaged)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 3] + bytes(len(whole) // 3) + whole[len(whole) // 3 * 2 :])
    left = path.read_bytes()

    # Then it starts without them, keeps them and says so, once
    with Valkey(folder) as valkey, contextlib.closing(connect(valkey.url)) as client:
        assert client.dbsize() == 0
        client.set("key", "new")
    (said,) = [one.getMessage() for one in caplog.records if one.name.startswith("producer")]
    assert said.startswith("the private Valkey could not read its data, which are set aside in ")
    assert "valkey.log" in said
    (aside,) = folder.glob(f"{DATA_FOLDER}.unreadable-*")
    assert (aside / path.name).read_bytes() == left
    with Valkey(folder) as valkey, contextlib.closing(connect(valkey.url)) as client:
        assert client.get("key") == b"new"
    assert len(caplog.records) == 1


def test_data_stay_where_they_are_when_valkey_does_not_start_for_another_reason(folder: Path) -> None:
    with Valkey(folder) as valkey, contextlib.closing(connect(valkey.url)) as client:
        client.set("key", "value")
    port = free_port()
    with Valkey(folder / "other", port=port), pytest.raises(FleetError, match="did not start"):
        Valkey(folder, port=port).start()
    with Valkey(folder) as valkey, contextlib.closing(connect(valkey.url)) as client:
        assert client.get("key") == b"value"


def test_a_fleet_is_ready_when_its_engines_are_and_ends_with_the_block(folder: Path) -> None:
    waited: list[str] = []
    slow = {**STANDIN, **patched_imports(folder / "patched", SLOW_LOAD)}
    with EmbeddedFleet(folder, workers=2, environment=slow) as fleet:
        redis = connect(fleet.url)
        present = fleet.wait_ready(redis, waited.append)
        assert sorted(worker.name.partition("@")[0] for worker in present) == ["worker1", "worker2"]
        assert {worker.model for worker in present} == {"standin"}
        assert "STAND-IN ENGINE" in fleet.log_path(2).read_text()
        assert processes_at(folder)
        fleet.check()
    # What is waited for is told from the first moment on, in words of the workers' own
    assert waited[0].startswith("starting 2 local workers, log in ")
    assert any("worker1: " in said and said.endswith(" s)") for said in waited), waited
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


def kill_server(folder: Path) -> None:
    (server,) = [process for process in processes_at(folder) if "valkey" in process.name()]
    server.kill()
    server.wait(10)


def test_a_valkey_that_ends_is_started_again_with_its_data_but_not_for_ever(folder: Path) -> None:
    with EmbeddedFleet(folder, environment=STANDIN) as fleet:
        redis = connect(fleet.url)
        redis.set("key", "value")
        redis.config_set("appendfsync", "always")
        redis.set("other", "value")
        kill_server(folder)
        # Its workers find it again too.
        assert fleet.wait_ready(redis)
        assert redis.get("key") == redis.get("other") == b"value"
        for _ in range(MOST_REVIVALS - 1):
            kill_server(folder)
            fleet.check()
        kill_server(folder)
        with pytest.raises(FleetError, match=rf"the private Valkey ended {MOST_REVIVALS + 1} times: .*valkey\.log\)"):
            fleet.check()


def test_sockets_that_a_killed_process_left_are_cleared_away(
    folder: Path, alone: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given: a folder left behind, one that is in use (both old), one that was made just now, and somebody else's.
    monkeypatch.setattr(tempfile, "tempdir", alone["TMPDIR"])
    names = [f"{RUN_FOLDER_PREFIX}{name}" for name in ("left", "used", "young", "other")]
    left, used, young, other = paths = [Path(alone["TMPDIR"], name) for name in names]
    for path in paths:
        path.mkdir()
    for path in paths[:3]:
        (path / IN_USE).touch()
    for path in (left, used, other):
        os.utime(path, (0, 0))
    with FileLock(used / IN_USE) as lock:
        assert lock.acquire()
        # When: the next one starts. Then: only what nobody uses is gone.
        with Valkey(folder):
            assert not left.exists()
            assert all(path.exists() for path in (used, young, other))


def test_a_killed_worker_is_started_again_but_not_for_ever(folder: Path) -> None:
    def kill_worker(fleet: EmbeddedFleet, redis: Redis) -> None:
        (worker,) = fleet._workers
        os.kill(worker.pid, 9)
        worker.wait(10)
        redis.delete(*redis.keys("whisper:worker:*"))

    with EmbeddedFleet(folder, environment=STANDIN, restarts=1) as fleet:
        redis = connect(fleet.url)
        fleet.wait_ready(redis)
        kill_worker(fleet, redis)
        assert fleet.wait_ready(redis)
        kill_worker(fleet, redis)
        with pytest.raises(FleetError, match=r"the local worker ended with code -9: .*worker-1\.log\)"):
            fleet.check()
