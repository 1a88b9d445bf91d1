"""Several workers of one machine: each core is used by one of them, each has GPUs of its own."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from job_files import processes_at

from producer import shares as module
from producer.embedded import EmbeddedFleet
from producer.errors import UsageError
from producer.shares import Share, core_shares, device_shares, shares
from workers.device import usable_cores
from workers.redis_client import connect
from workers.settings import load_settings


@given(cores=st.sets(st.integers(0, 255), min_size=1, max_size=64).map(sorted), workers=st.integers(1, 70))
def test_every_core_is_one_workers_and_no_worker_has_two_more_than_another(cores: list[int], workers: int) -> None:
    found = core_shares(cores, workers)

    assert len(found) == workers
    if workers == 1 or workers > len(cores):
        assert set(found) == {None}
    else:
        given_out = [share for share in found if share is not None]
        assert [core for share in given_out for core in share] == cores
        assert max(map(len, given_out)) - min(map(len, given_out)) <= 1


@pytest.mark.parametrize(
    ("devices", "workers", "ranks", "expected"),
    [
        (["0", "1"], 2, 1, [("0",), ("1",)]),
        (["4", "5", "6", "7"], 2, 2, [("4", "5"), ("6", "7")]),
        (["GPU-a", "GPU-b", "GPU-c"], 2, 1, [("GPU-a",), ("GPU-b",)]),
        # More workers than GPUs: each has to have a part of a GPU's memory.
        (["0", "1"], 3, 1, [("0",), ("1",), ("0",)]),
        (["0"], 2, 1, [("0",), ("0",)]),
        # One worker sees what it always saw; with too few GPUs for an engine, or none known, its engine says so.
        (["0", "1"], 1, 1, [None]),
        (["0"], 2, 2, [None, None]),
        ([], 2, 1, [None, None]),
    ],
)
def test_each_worker_has_gpus_of_its_own(
    devices: list[str], workers: int, ranks: int, expected: list[tuple[str, ...] | None]
) -> None:
    assert device_shares(devices, workers, ranks) == expected


def test_gpus_are_those_that_the_user_left_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "device_kind", lambda: "cuda")
    monkeypatch.setattr(module, "gpu_count", lambda: 4)
    config = load_settings(tensor_parallel_size=2)

    monkeypatch.setenv(module.VISIBLE_DEVICES, "3, 1,0,2")
    assert [share.environment for share in shares(2, config)] == [
        {"CUDA_VISIBLE_DEVICES": "3,1"},
        {"CUDA_VISIBLE_DEVICES": "0,2"},
    ]
    monkeypatch.delenv(module.VISIBLE_DEVICES)
    assert [share.environment["CUDA_VISIBLE_DEVICES"] for share in shares(2, config)] == ["0,1", "2,3"]
    assert shares(1, config)[0].environment == {}


def test_engines_that_do_not_fit_on_a_gpu_together_are_refused_before_they_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "device_kind", lambda: "cuda")
    monkeypatch.setattr(module, "gpu_count", lambda: 2)
    monkeypatch.delenv(module.VISIBLE_DEVICES, raising=False)

    with pytest.raises(UsageError, match=r"3 workers: 2 engines on one GPU.*WHISPER_GPU_MEMORY_UTILIZATION to 0\.45"):
        shares(3, load_settings())
    assert len(shares(3, load_settings(gpu_memory_utilization=0.45))) == 3
    assert len(shares(2, load_settings())) == 2
    assert len(shares(3, load_settings(engine="standin"))) == 3, "a stand-in takes no memory"


def test_cores_that_the_user_has_bound_are_left_to_him(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "device_kind", lambda: "cpu")
    monkeypatch.setattr(module, "usable_cores", lambda: [0, 1, 2, 3])

    assert shares(2, load_settings()) == [Share(cores=(0, 1)), Share(cores=(2, 3))]
    assert shares(2, load_settings(cpu_threads_bind="0-1")) == [Share(), Share()]


def test_more_engines_than_cores_are_refused_before_they_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "usable_cores", lambda: [0, 1])
    monkeypatch.setattr(module, "device_kind", lambda: "cpu")
    with pytest.raises(UsageError, match="3 workers: this machine has 2 cores"):
        shares(3, load_settings())
    assert len(shares(2, load_settings())) == 2
    assert len(shares(3, load_settings(engine="standin"))) == 3, "a stand-in computes nothing"
    assert len(shares(3, load_settings(cpu_threads_bind="0-1"))) == 3, "bound by the user"


def test_a_worker_keeps_all_cores_where_a_share_has_none_for_each_rank_of_its_engine() -> None:
    assert core_shares([0, 1, 2, 3], 2, 2) == [(0, 1), (2, 3)]
    assert core_shares([0, 1, 2], 2, 2) == [None, None]


def test_the_workers_of_a_fleet_and_their_children_keep_to_their_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cores = usable_cores()
    monkeypatch.setattr(module, "device_kind", lambda: "cpu")
    with EmbeddedFleet(tmp_path, workers=2, environment={"WHISPER_ENGINE": "standin"}) as fleet:
        fleet.wait_ready(connect(fleet.url))
        workers = [psutil.Process(worker.pid) for worker in fleet._workers]
        for worker, expected in zip(workers, core_shares(cores, 2), strict=True):
            processes = [worker, *worker.children(recursive=True)]
            assert len(processes) > 1, "its decode process"
            assert {tuple(process.cpu_affinity()) for process in processes} == {expected or tuple(cores)}
    assert processes_at(tmp_path) == []
