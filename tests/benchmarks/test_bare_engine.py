"""The baseline's processes are told places of clips, and answer with their seconds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import bare_engine as module
from benchmarks.bare_engine import bare_engine, generate
from benchmarks.systems import EngineChoice


def test_engines_share_the_clips_and_the_slowest_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Given processes that answer with the sum of the places that they are told
    script = (
        "import json, sys; print([3, 4], flush=True)\nfor line in sys.stdin: print(sum(json.loads(line)), flush=True)"
    )
    monkeypatch.setattr(module, "guarded_command", lambda *_: [sys.executable, "-c", script])
    with (
        bare_engine([], tmp_path / "one", EngineChoice()) as one,
        bare_engine([], tmp_path / "two", EngineChoice()) as two,
    ):
        assert one.windows == [3, 4]
        assert generate([one, two], [1, 10, 2, 20, 3]) == 30.0
        assert generate([one], [1, 10, 2]) == 13.0
        assert generate([one], range(4)) == 6.0


def test_an_engine_that_ends_is_an_error_with_its_last_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "guarded_command", lambda *_: [sys.executable, "-c", "raise SystemExit('why')"])
    with (
        pytest.raises(RuntimeError, match="the bare engine ended: why"),
        bare_engine([], tmp_path / "one", EngineChoice()),
    ):
        pass
