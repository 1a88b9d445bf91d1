"""What vLLM is told before it is imported, and who else must not hear it."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import tempfile
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import pytest
from huggingface_hub.utils import filter_repo_objects

from cpu_build import only_on_x86_64
from workers import vllm_options
from workers.audio import AudioLimits
from workers.decode_child import DecodeChild
from workers.device import CPU_MALLOC, Device
from workers.settings import load_settings
from workers.vllm_options import engine_arguments, prepare_environment


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is set in the test is not set after it."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for name in (*CPU_MALLOC, "LD_PRELOAD"):
        os.environ.pop(name, None)


@pytest.mark.usefixtures("clean_environment")
@pytest.mark.parametrize(("device", "expected"), [("cpu", CPU_MALLOC), ("cuda", {})])
def test_a_cpu_engine_keeps_the_memory_of_its_steps(device: Device, expected: dict[str, str]) -> None:
    prepare_environment(load_settings(), device)

    assert {name: value for name, value in os.environ.items() if name in CPU_MALLOC} == expected


@pytest.mark.usefixtures("clean_environment")
@pytest.mark.parametrize(("device", "expected"), [("cpu", None), ("cuda", "0")])
def test_a_gpu_engine_compiles_neither_sampler_nor_all_reduce(device: Device, expected: str | None) -> None:
    """FlashInfer's need CUDA's compiler when the engine starts, which neither image nor driver brings."""
    names = ("VLLM_USE_FLASHINFER_SAMPLER", "VLLM_ALLREDUCE_USE_FLASHINFER")
    for name in names:
        os.environ.pop(name, None)
    prepare_environment(load_settings(), device)
    assert [os.environ.get(name) for name in names] == [expected, expected]


def test_weights_are_fetched_once() -> None:
    """openai/whisper-large-v3 has a second copy of them, in float32."""
    patterns = engine_arguments("a/model", load_settings())["ignore_patterns"]
    names = ["model.safetensors", "model.fp32-00001-of-00002.safetensors", "model.safetensors.index.fp32.json"]
    assert list(filter_repo_objects(names, ignore_patterns=patterns)) == ["model.safetensors"]


@pytest.mark.usefixtures("clean_environment")
def test_what_the_user_has_set_stays() -> None:
    os.environ["MALLOC_TRIM_THRESHOLD_"] = "1000000"

    prepare_environment(load_settings(), "cpu")

    assert os.environ["MALLOC_TRIM_THRESHOLD_"] == "1000000"


@pytest.mark.usefixtures("clean_environment")
@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("", "{intel}"),
        ("/opt/libjemalloc.so", "/opt/libjemalloc.so:{intel}"),
        ("/opt/libgomp.so.1", "/opt/libgomp.so.1"),
        ("/opt/libiomp5.so", "/opt/libiomp5.so"),
        ("/opt/company/libjemalloc.so", "/opt/company/libjemalloc.so:{intel}"),
    ],
)
def test_a_cpu_engine_waits_in_intels_openmp(
    before: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "libiomp5.so"
    monkeypatch.setattr(vllm_options, "intel_openmp", lambda: library)
    if before:
        os.environ["LD_PRELOAD"] = before

    prepare_environment(load_settings(), "cpu")

    assert os.environ["LD_PRELOAD"] == expected.format(intel=library)


@pytest.mark.usefixtures("clean_environment")
@pytest.mark.parametrize("folder", ["with a space", "with:a colon"])
def test_a_path_that_the_loader_would_split_is_not_preloaded(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(vllm_options, "intel_openmp", lambda: tmp_path / folder / "libiomp5.so")

    prepare_environment(load_settings(), "cpu")

    assert "LD_PRELOAD" not in os.environ
    assert f"{folder}/libiomp5.so is not preloaded" in caplog.text


@pytest.mark.usefixtures("clean_environment")
def test_a_gpu_engine_is_preloaded_with_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_options, "intel_openmp", lambda: tmp_path / "libiomp5.so")

    prepare_environment(load_settings(), "cuda")

    assert "LD_PRELOAD" not in os.environ


@pytest.mark.usefixtures("clean_environment")
@pytest.mark.parametrize(
    ("device", "before", "expected"),
    [("cuda", None, "PCI_BUS_ID"), ("cuda", "FASTEST_FIRST", "FASTEST_FIRST"), ("cpu", None, None)],
)
def test_cuda_counts_gpus_as_nvml_does(device: Device, before: str | None, expected: str | None) -> None:
    """The memory that NVML tells decides on the batch."""
    os.environ.pop("CUDA_DEVICE_ORDER", None)
    if before is not None:
        os.environ["CUDA_DEVICE_ORDER"] = before

    prepare_environment(load_settings(), device)

    assert os.environ.get("CUDA_DEVICE_ORDER") == expected


@pytest.mark.usefixtures("clean_environment")
def test_without_intels_openmp_vllm_takes_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def files(_: str) -> None:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "files", files)

    prepare_environment(load_settings(), "cpu")

    assert vllm_options.intel_openmp() is None
    assert "LD_PRELOAD" not in os.environ


@only_on_x86_64
def test_intels_openmp_is_found() -> None:
    library = vllm_options.intel_openmp()

    assert library is not None
    with library.open("rb") as file:
        assert file.read(4) == b"\x7fELF"


def test_decode_processes_give_memory_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Given a decode process that tells its environment, and ends.
    python, told = tmp_path / "python", tmp_path / "environment"
    python.write_text(f"#!/bin/sh\nenv > {told}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    for name, value in CPU_MALLOC.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")  # the user's own

    child = DecodeChild(asdict(AudioLimits.from_settings(load_settings())))
    try:
        child._process.wait(60)
        assert child.cause_of_death() == "exit code 0"
    finally:
        child.kill()
        child.release()

    names = {line.partition("=")[0] for line in told.read_text().splitlines()}
    assert not names & set(CPU_MALLOC)
    assert "MALLOC_ARENA_MAX" in names


@pytest.mark.usefixtures("clean_environment")
@pytest.mark.parametrize(
    ("prefix", "results", "compiler", "headers", "wanted"),
    [
        ("/srv/fleet/.venv", "/tmp", "/usr/bin/g++", True, None),
        ("/srv/my fleet/.venv", "/tmp", "/usr/bin/g++", True, "1"),
        ("/srv/fleet/.venv", "/mnt/my disk/tmp", "/usr/bin/g++", True, "1"),
        ("/srv/fleet/.venv", "/tmp", None, True, "1"),
        ("/srv/fleet/.venv", "/tmp", "/usr/bin/g++", False, "1"),
    ],
)
def test_nothing_is_compiled_where_the_compiler_or_its_headers_are_not_found(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    prefix: str,
    results: str,
    compiler: str | None,
    headers: bool,
    wanted: str | None,
) -> None:
    """A machine with Python, git and make has neither g++ nor Python's headers, and no engine would start."""
    for name in ("TORCHDYNAMO_DISABLE", "TORCHINDUCTOR_CACHE_DIR", "CXX"):
        os.environ.pop(name, None)
    monkeypatch.setattr(sys, "prefix", prefix)
    monkeypatch.setattr(tempfile, "tempdir", results)
    monkeypatch.setattr(shutil, "which", lambda name: {"g++": compiler}.get(name))
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    if headers:
        (tmp_path / "Python.h").touch()

    prepare_environment(load_settings(), "cpu")

    assert os.environ.get("TORCHDYNAMO_DISABLE") == wanted
