"""The baseline's processes are told places of clips, and answer with their seconds."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

from benchmarks import bare_engine as module
from benchmarks.bare_engine import bare_engine, generate
from benchmarks.systems import EngineChoice
from benchmarks.untuned import prepare_untuned, untuned_arguments
from workers.settings import Settings
from workers.vllm_options import engine_arguments


def test_engines_share_the_clips_and_the_slowest_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Given processes that answer with the sum of the places that they are told
    script = (
        "import json, sys; print([[[0, 0], [0, 9]]], flush=True)\n"
        "for line in sys.stdin: order, only_cut = json.loads(line); print(sum(order) + only_cut / 2, flush=True)"
    )
    monkeypatch.setattr(module, "guarded_command", lambda *_: [sys.executable, "-c", script])
    with (
        bare_engine([], tmp_path / "one", EngineChoice()) as one,
        bare_engine([], tmp_path / "two", EngineChoice()) as two,
    ):
        assert one.parts == [[[0, 0], [0, 9]]]
        assert generate([one, two], [1, 10, 2, 20, 3]) == 30.0
        assert generate([one], [1, 10, 2]) == 13.0
        assert generate([one], range(4)) == 6.0
        assert generate([one], range(4), only_cut=True) == 6.5


def test_a_worker_s_tuning_is_left_out_where_that_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[list[str]] = []

    def command(_: int, module_and_arguments: list[str], *__: object) -> list[str]:
        started.append(module_and_arguments[3:])
        return [sys.executable, "-c", "print([])"]

    monkeypatch.setattr(module, "guarded_command", command)
    with (
        bare_engine([], tmp_path / "one", EngineChoice(), untuned=True),
        bare_engine([], tmp_path / "two", EngineChoice()),
    ):
        pass

    assert [arguments[1:] for arguments in started] == [["--untuned"], []]


def test_an_engine_hears_the_windows_that_another_has_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Given a process that prints the parts of its request
    script = "import json, sys; print(json.load(open(sys.argv[1]))['parts'])"
    monkeypatch.setattr(module, "guarded_command", lambda _, command, *__: [command[0], "-c", script, command[3]])

    with bare_engine([], tmp_path / "one", EngineChoice(), parts=[[(0, 0), (0, 16000)]]) as one:
        assert one.parts == [[[0, 0], [0, 16000]]]


def test_vllm_is_untuned_with_the_worker_s_arguments() -> None:
    settings = Settings(model="whisper-base", cpu_kv_cache_gib=2)
    # Given a machine where nobody has set anything for vLLM
    with patch.dict(os.environ, {"PATH": os.environ["PATH"]}, clear=True):
        prepare_untuned(settings)
        added = set(os.environ) - {"PATH"}

    # Then it starts on these cores, without the worker's malloc, OpenMP and executor
    assert {name.split("_")[0] for name in added} == {"VLLM"}
    tuned, untuned = engine_arguments("model", settings), untuned_arguments("model", settings)
    assert {name for name in tuned if tuned[name] != untuned[name]} == {"distributed_executor_backend"}
    assert untuned["distributed_executor_backend"] is None


def test_an_engine_that_ends_is_an_error_with_its_last_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "guarded_command", lambda *_: [sys.executable, "-c", "raise SystemExit('why')"])
    with (
        pytest.raises(RuntimeError, match="the bare engine ended: why"),
        bare_engine([], tmp_path / "one", EngineChoice()),
    ):
        pass
