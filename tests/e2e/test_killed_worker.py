"""Two tensor-parallel ranks of the real engine: what is killed is replaced or gone, and no record is lost with it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from celery import Celery

from cpu_build import ON_X86_64, PRELOADS
from fleet import CLI, READY_SECONDS, Fleet, still_running, wait_for
from producer.embedded import end, start_guarded
from workers import keys
from workers.messages import RowResult
from workers.presence import live_workers
from workers.vllm_options import intel_openmp


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Fleet, psutil.Process]]:
    """A fleet and its `whisper-fleet worker`, whose engine runs on two ranks."""
    with Fleet(tmp_path / "fleet", {"WHISPER_MODEL": "whisper-base", "WHISPER_TENSOR_PARALLEL_SIZE": "2"}) as fleet:
        process = start_guarded([*CLI, "worker"], fleet.environment(), tmp_path / "worker.log")
        try:
            wait_for(lambda: process.poll() is not None or live_workers(fleet.redis), READY_SECONDS)
            assert process.poll() is None, (tmp_path / "worker.log").read_text()[-4000:]
            yield fleet, psutil.Process(process.pid)
        finally:
            end(process, 20.0)


def mapped(process: psutil.Process) -> set[Path]:
    """The files that a process has mapped, also those that have no name any more."""
    with contextlib.suppress(psutil.Error):
        return {Path(entry.path.removesuffix(" (deleted)")) for entry in process.memory_maps() if entry.path}
    return set()


def shared_memory(processes: list[psutil.Process]) -> set[Path]:
    """The names of the segments that these processes have mapped."""
    return {path for one in processes for path in mapped(one) if path.is_relative_to("/dev/shm")}


def openmp_notes(processes: list[psutil.Process]) -> list[Path]:
    """What Intel's OpenMP leaves of a process that is killed, if nobody takes it away."""
    return [path for one in processes for path in Path("/dev/shm").glob(f"__KMP_REGISTERED_LIB_{one.pid}_*")]


def addresses(process: psutil.Process, library: str) -> set[str]:
    """Where it has mapped a library: two processes that loaded it by themselves have it at different places."""
    with contextlib.suppress(psutil.Error):
        return {entry.addr for entry in process.memory_maps(grouped=False) if library in entry.path}
    return set()


def named(processes: list[psutil.Process], name: str) -> list[psutil.Process]:
    """Those that call themselves so."""
    return [one for one in processes if name in " ".join([one.name(), *one.cmdline()])]


@pytest.mark.timeout(900)
def test_killed_engine_is_replaced_and_killed_worker_leaves_nothing(
    pair: tuple[Fleet, psutil.Process], samples: Path
) -> None:
    # Given a worker in the middle of a recording
    fleet, supervisor = pair
    (worker,) = supervisor.children()
    first = worker.children(recursive=True)
    (core,) = named(first, "EngineCore")
    if ON_X86_64:
        assert [core.parent()] == named(first, "fork server")
    segments = shared_memory(first)
    assert segments, "two ranks on a CPU share memory"
    openmp, ranks = intel_openmp() if PRELOADS else None, named(first, "VLLM::Worker")
    assert (openmp is not None) == PRELOADS

    def preloaded() -> bool:
        # Among those that bear a rank's name may be what a rank has just forked, and is gone when it is looked at.
        left = still_running(ranks)
        return bool(left) and (openmp is None or all(openmp in mapped(rank) for rank in left))

    wait_for(preloaded)
    if openmp is not None:  # which lets ranks be copies of the engine's process
        places = addresses(core, "libtorch_cpu")
        assert places
        wait_for(lambda: all(addresses(rank, "libtorch_cpu") == places for rank in still_running(ranks)))
    client = Celery(broker=fleet.url, backend=fleet.url)
    records = [{"audio": str(samples / "en_news_long.ogg"), "row": 0}]
    client.send_task("whisper.transcribe", [records], {"job": "news"}, queue="transcribe")
    wait_for(lambda: fleet.redis.hlen(keys.UNACKED))

    # When its engine is killed
    core.kill()

    # Then the worker ends with all it had, another one takes its place, and the recording is transcribed once.
    wait_for(lambda: not still_running([worker, *first]))
    (entry,) = wait_for(lambda: fleet.redis.xrange(keys.results("news")), READY_SECONDS)
    (item,) = RowResult.model_validate_json(entry[1][keys.RESULT_FIELD]).items
    assert "welcome" in item.text.lower()  # type: ignore[union-attr]

    # When that one is killed
    (worker,) = supervisor.children()
    second = worker.children(recursive=True)
    segments |= shared_memory(second)
    supervisor.kill()  # which takes the worker along, and starts no third one

    # Then no process and no shared memory is left.
    wait_for(lambda: not still_running([worker, *second]))
    wait_for(lambda: not [path for path in segments if path.exists()])
    assert not openmp_notes([*first, *second])
    client.close()
