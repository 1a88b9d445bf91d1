"""NVIDIA's library by way of the file that vLLM ships."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

#: As far as it is used: two GPUs of 80 and 24 GiB.
PYNVML = """
import sys
sys.modules[__name__]  # the real one looks itself up, too
class NVMLError(Exception): ...
class Info:
    def __init__(self, total): self.total = total
def nvmlInit(): FAILS
def nvmlDeviceGetCount(): return COUNT
def nvmlDeviceGetHandleByIndex(index):
    if index >= COUNT: raise NVMLError('no such GPU')
    return index
def nvmlDeviceGetHandleByUUID(name): return {"GPU-big": 0, "GPU-small": 1}[name]
def nvmlDeviceGetUUID(handle): return ["GPU-big", "GPU-small"][handle]
def nvmlDeviceGetMemoryInfo(handle): return Info([80, 24][handle] * 2**30)
def nvmlDeviceGetCudaComputeCapability(handle): return [(10, 0), (9, 0)][handle]
"""


def beside_gpus(folder: Path, code: str, visible: str | None, *, fails: str = "pass", count: int = 2) -> str:
    """What another process prints, with a vLLM that must not be imported, and NVIDIA's file in that."""
    (folder / "vllm" / "third_party").mkdir(parents=True)
    (folder / "vllm" / "__init__.py").write_text("raise RuntimeError('vLLM was imported')")
    source = PYNVML.replace("FAILS", fails).replace("COUNT", str(count))
    (folder / "vllm" / "third_party" / "pynvml.py").write_text(source)
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{Path(__file__).parents[2]}"}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    if visible is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible
    return subprocess.check_output([sys.executable, "-c", code], env=environment, text=True, timeout=120).strip()


@pytest.mark.parametrize(
    ("fails", "count", "visible", "ranks", "found", "names"),
    [
        ("pass", 2, None, 1, 80 * 2**30, ["GPU-big"]),
        ("pass", 2, None, 2, 24 * 2**30, ["GPU-big", "GPU-small"]),
        ("pass", 2, "0", 2, 80 * 2**30, ["GPU-big"]),  # one too few: the engine says so
        ("pass", 2, " 1, 0", 1, 24 * 2**30, ["GPU-small"]),
        ("pass", 2, " 1, 0", 2, 24 * 2**30, ["GPU-small", "GPU-big"]),
        ("pass", 2, "GPU-big,GPU-small", 1, 80 * 2**30, ["GPU-big"]),
        ("pass", 2, "GPU-big,GPU-small", 2, 24 * 2**30, ["GPU-big", "GPU-small"]),
        ("pass", 2, "", 1, 80 * 2**30, ["GPU-big"]),
        ("pass", 2, "7", 1, None, ["7"]),
        ("pass", 0, None, 1, None, ["0"]),
        ("raise NVMLError('no driver')", 2, None, 1, None, ["0"]),
    ],
)
def test_memory_and_names_are_those_of_the_gpus_that_the_engine_takes(
    fails: str, count: int, visible: str | None, ranks: int, found: int | None, names: list[str], tmp_path: Path
) -> None:
    # When another process asks for memory and names
    code = f"from workers.nvml import *; print(gpu_memory_bytes({ranks}), gpu_names({ranks}))"
    printed = beside_gpus(tmp_path, code, visible, fails=fails, count=count)

    # Then the memory is the smallest's
    assert printed == f"{found} {names}"


@pytest.mark.parametrize(
    ("fails", "count", "visible", "expected"),
    [
        ("pass", 2, None, "FLASH_ATTN"),
        ("pass", 2, "0", "FLASH_ATTN"),
        ("pass", 2, "1", None),
        ("pass", 2, "1,0", None),
        ("pass", 2, "7", None),
        ("pass", 0, None, None),
        ("raise NVMLError('no driver')", 2, None, None),
    ],
)
def test_the_attention_of_blackwell_is_none_that_is_compiled_at_the_start(
    fails: str, count: int, visible: str | None, expected: str | None, tmp_path: Path
) -> None:
    """The first GPU is one, the second is not. In float32 vLLM's choice is another, and this one has no float32."""
    code = (
        "from workers import device; device.installed = lambda name: name == 'vllm'\n"
        "from workers.settings import load_settings; from workers.vllm_options import engine_arguments\n"
        "found = [engine_arguments('a/model', load_settings(dtype=dtype)) for dtype in ('auto', 'float32')]\n"
        "print(*(arguments.get('attention_backend') for arguments in found))"
    )
    assert beside_gpus(tmp_path, code, visible, fails=fails, count=count) == f"{expected} None"


def test_without_vllm_there_is_no_memory_to_ask_for() -> None:
    code = (
        "import importlib.util; importlib.util.find_spec = lambda name: None\n"
        "from workers.nvml import gpu_memory_bytes; print(gpu_memory_bytes())"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    printed = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True, timeout=120)

    assert printed.strip() == "None"
