"""What is imported ahead of an engine, and where."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers import preparation, vllm_options
from workers.device import Device
from workers.models import ResolvedModel
from workers.preparation import prepare
from workers.settings import load_settings
from workers.startup import LIBRARIES, MODEL, Startup


@pytest.mark.parametrize(
    ("device", "openmp", "ahead"),
    [("cpu", "libiomp5.so", True), ("cpu", None, False), ("cuda", "libiomp5.so", False)],
)
def test_a_cpu_engines_processes_import_ahead_where_nothing_is_preloaded_later(
    device: Device, openmp: str | None, ahead: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = ResolvedModel(str(tmp_path), "a-model", "main", None)
    started: list[str] = []
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    monkeypatch.setattr(preparation, "device_kind", lambda: device)
    monkeypatch.setattr(preparation, "resolve_model", lambda *_: model)
    monkeypatch.setattr(preparation, "import_ahead", lambda: started.append("server"))
    monkeypatch.setattr(vllm_options, "intel_openmp", lambda: tmp_path / openmp if openmp else None)
    parts = Startup()

    assert prepare(load_settings(), parts) is model

    assert started == (["server"] if ahead else [])
    assert list(parts.seconds()) == [MODEL, LIBRARIES]
