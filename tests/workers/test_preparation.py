"""What is imported ahead of an engine, and where."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpu_build import only_on_x86_64
from workers import preparation, vllm_options
from workers.device import Device
from workers.models import ResolvedModel
from workers.preparation import prepare
from workers.settings import load_settings
from workers.startup import LIBRARIES, MODEL, Startup

#: A user's own, on any device.
OPENMP = "/nowhere/libgomp.so.1"


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The fork servers that were asked for, with a model that is found and nothing preloaded."""
    asked: list[str] = []
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    monkeypatch.setattr(preparation, "resolve_model", lambda *_: ResolvedModel(str(tmp_path), "a-model", "main", None))
    monkeypatch.setattr(preparation, "import_ahead", lambda: asked.append("server"))
    return asked


@only_on_x86_64
def test_a_cpu_engines_processes_import_ahead_with_the_openmp_that_was_set_up(servers: list[str]) -> None:
    parts = Startup()

    assert prepare(load_settings(), parts).name == "a-model"

    assert servers == ["server"]
    assert list(parts.seconds()) == [MODEL, LIBRARIES]


@pytest.mark.parametrize(("device", "asked"), [("cpu", ["server"]), ("cuda", [])])
def test_a_gpu_engines_processes_do_not_also_where_an_openmp_is_preloaded(
    device: Device, asked: list[str], servers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "device_kind", lambda: device)
    monkeypatch.setenv("LD_PRELOAD", OPENMP)

    prepare(load_settings(), Startup())

    assert servers == asked


def test_nor_do_a_cpus_where_vllm_will_preload_an_openmp_later(
    servers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "device_kind", lambda: "cpu")
    monkeypatch.setattr(vllm_options, "intel_openmp", lambda: None)  # as on ARM

    prepare(load_settings(), Startup())

    assert servers == []
