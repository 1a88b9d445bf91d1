"""The memory benchmark as a command; what it measures: `tests.workers.test_long_recording`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fleet import clean_environment

ROOT = Path(__file__).parent.parent.parent


def bench(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.memory", *arguments]
    environment = clean_environment(**changes)
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)


def test_a_run_reports_every_recording_and_leaves_none_behind(tmp_path: Path) -> None:
    # Given a folder for temporary files
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    # When a recording of 36 s is measured
    done = bench("0.01h.flac", "--results", str(tmp_path / "out"), TMPDIR=str(temporary))
    # Then its figures are in the table and in the report
    assert done.returncode == 0, done.stderr
    assert "0.01h.flac" in done.stdout
    (path,) = (tmp_path / "out").iterdir()
    assert done.stdout.splitlines()[-1] == str(path)
    assert path.name.startswith("memory-")
    assert path.name.endswith("-partial.json")
    report = json.loads(path.read_text())
    assert {"date", "machine", "versions", "options", "bar_mb"} <= set(report)
    (row,) = report["recordings"]
    assert (row["recording"], row["audio_seconds"]) == ("0.01h.flac", 36.0)
    assert row["sum_mb"] == pytest.approx(row["worker_mb"] + row["decoder_mb"], abs=0.11)
    assert row["worker_mb"] > 1
    # And the recording is gone
    assert not list(temporary.glob("bench-memory-*"))


@pytest.mark.parametrize("name", ["6h.wma", "0h.flac"])
def test_a_recording_that_cannot_be_made_ends_it_before_anything_starts(tmp_path: Path, name: str) -> None:
    done = bench("--results", str(tmp_path / "out"), "--", "6h.flac", name)
    assert done.returncode == 2
    assert f"{name}: must be hours and format" in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()
