"""What an engine computes in on each kind of CPU, and with whose kernels."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cpu_build import only_on_x86_64
from workers import dtype as module
from workers.dtype import check_cpu_dtype, check_quantization, computes_int8, cpu_dtype, engine_dtype
from workers.errors import ModelLoadError


def written(folder: Path, vendor: str, flags: str) -> Path:
    """What Linux says of two such cores."""
    cpuinfo = folder / "cpuinfo"
    core = f"processor\t: 0\nvendor_id\t: {vendor}\nmodel name\t: {vendor} CPU @ 2.60GHz\nflags\t\t: {flags}\n\n"
    cpuinfo.write_text(2 * core)
    return cpuinfo


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


def test_without_a_word_on_the_cpu_it_is_float32(tmp_path: Path) -> None:
    assert cpu_dtype(tmp_path / "none") == "float32"


@only_on_x86_64
def test_float16_is_refused_in_one_line_where_amds_kernels_would_fail(tmp_path: Path) -> None:
    zen4 = written(tmp_path, "AuthenticAMD", "fpu avx512f avx512_bf16")

    with pytest.raises(ModelLoadError, match="set WHISPER_DTYPE to auto, bfloat16 or float32"):
        check_cpu_dtype("float16", zen4)

    for dtype in ("auto", "bfloat16", "float32"):
        check_cpu_dtype(dtype, zen4)


@only_on_x86_64
def test_an_engine_is_told_what_is_set_or_else_what_its_cpu_is_fast_at(tmp_path: Path) -> None:
    zen4 = written(tmp_path, "AuthenticAMD", "fpu avx512f avx512_bf16")

    assert [engine_dtype(wanted, zen4) for wanted in ("auto", "bfloat16", "float32")] == ["bfloat16"] * 2 + ["float32"]
    with pytest.raises(ModelLoadError, match="zentorch"):
        engine_dtype("float16", zen4)


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


@only_on_x86_64
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


@pytest.mark.parametrize(
    ("vendor", "flags", "exact"),
    [
        ("GenuineIntel", "fpu avx2 avx512f avx512_vnni", True),
        ("GenuineIntel", "fpu avx2 avx_vnni", True),
        ("GenuineIntel", "fpu avx512f amx_int8", True),
        ("AuthenticAMD", "fpu avx2 avx512_vnni", True),
        ("AuthenticAMD", "fpu avx2", False),
        ("GenuineIntel", "fpu avx2 avx512f", False),
        ("ARM", "", True),  # not x86, where Linux says it in other words
    ],
)
def test_eight_bits_are_refused_where_they_come_out_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vendor: str, flags: str, exact: bool
) -> None:
    cpuinfo = written(tmp_path, vendor, flags)
    monkeypatch.setattr(module, "device_kind", lambda: "cpu")
    assert computes_int8(cpuinfo) is exact
    check_quantization("none", cpuinfo=cpuinfo)
    if exact:
        check_quantization("int8", cpuinfo=cpuinfo)
        return
    with pytest.raises(ModelLoadError, match="WHISPER_QUANTIZATION is int8, which this CPU"):
        check_quantization("int8", cpuinfo=cpuinfo)
    monkeypatch.setattr(module, "device_kind", lambda: "cuda")
    check_quantization("int8", cpuinfo=cpuinfo)


@pytest.mark.parametrize(
    ("capability", "dtype", "says"),
    [
        (8, "auto", None),
        (9, "bfloat16", None),
        (None, "auto", None),
        (9, "float32", r"beside float32 on a GPU: leave it out$"),
        (10, "auto", r"on this GPU \(Blackwell\): leave it out$"),
        (12, "float16", r"on this GPU \(Blackwell\): leave it out$"),
    ],
)
def test_eight_bits_are_refused_on_gpus_where_vllm_ends_with_them(
    monkeypatch: pytest.MonkeyPatch, capability: int | None, dtype: str, says: str | None
) -> None:
    monkeypatch.setattr(module, "device_kind", lambda: "cuda")
    monkeypatch.setattr(module, "compute_capability", lambda: capability)
    check_quantization("none", dtype)
    if says is None:
        check_quantization("int8", dtype)
        return
    with pytest.raises(ModelLoadError, match=says):
        check_quantization("int8", dtype)
