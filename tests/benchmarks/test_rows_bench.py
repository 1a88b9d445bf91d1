"""The benchmark of rows as a command, and what it makes of its figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.rows import report
from benchmarks.rows.__main__ import FLEET_ROWS, QUICK_FLEET_ROWS, QUICK_ROWS, ROWS, _is_whole
from benchmarks.rows.parts import Figures
from benchmarks.rows.stage import AnsweredBy, Measured, PartFailedError, measure
from fleet import clean_environment

ROOT = Path(__file__).parent.parent.parent


def bench(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.rows", *arguments]
    environment = clean_environment(**changes)
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)


def measured(
    rows: int, *, cost: float = 1.0, mb: float = 50.0, by: AnsweredBy = "loop", redis_mb: float = 3
) -> Measured:
    """A job with ``cost`` CPU seconds a row for each phase, and parts with ``mb`` MB."""
    seconds = {"check": rows * cost, "send": rows * cost}, {"collect": rows * cost, "merge": rows * cost}
    parts = {
        "bare": Figures({"bare": rows * 0.5}),
        "enqueue": Figures(seconds[0], peak_bytes=int(mb * 1e6)),
        "collect": Figures(seconds[1], {"collect": 2.0}, peak_bytes=int(mb * 1e6)),
    }
    return Measured(rows, by, rows * 150, parts, int(redis_mb * 1e6))


def line(rows: int, **options: Any) -> report.Line:
    return report.line_of([measured(rows, **options)], {"load": 0.5})


def missed(*lines: report.Line) -> list[str]:
    return [bar.name for bar in report.bars(lines) if bar.met is False]


def test_a_run_reports_each_job_and_leaves_nothing_behind(tmp_path: Path) -> None:
    temporary, results = tmp_path / "tmp", tmp_path / "out"
    temporary.mkdir()
    # When: a job that a loop answers, and one that a stand-in worker answers, are measured.
    arguments = ("--workers", "1", "--results", str(results))
    done = bench("--rows", "300", "--fleet-rows", "20", *arguments, TMPDIR=str(temporary))
    # Then: both are in the report, with a picture beside it.
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.splitlines()[-1])
    assert sorted(one.suffix for one in results.iterdir()) == [".json", ".svg"]
    assert path.stem.endswith("-partial"), "it has not all sizes"
    content = json.loads(path.read_text())
    assert {"date", "machine", "versions", "options", "bars", "jobs"} <= content.keys()
    assert [(job["answered_by"], job["rows"]) for job in content["jobs"]] == [("loop", 300), ("fleet", 20)]
    for job in content["jobs"]:
        assert {"date", "machine", "versions", "load"} <= job.keys()
        assert all(cost > 0 for cost in job["cpu_seconds_per_million"].values())
        assert job["cpu_seconds_per_million"].keys() == {"bare", "check", "send", "collect", "merge"}
    assert [one for one in temporary.iterdir() if one.name.startswith(("bench-rows-", "whisper-fleet-"))] == []
    # When: one of them is measured again. Then: the other stands.
    before = content["jobs"][1]
    assert bench("--rows", "200", "--rows", "300", "--fleet-rows", "0", *arguments).returncode == 0
    jobs = json.loads(path.read_text())["jobs"]
    assert [(job["answered_by"], job["rows"]) for job in jobs] == [("loop", 200), ("loop", 300), ("fleet", 20)]
    assert jobs[2] == before
    assert jobs[1] != content["jobs"][0]


@pytest.mark.parametrize("quick", [True, False])
def test_a_report_is_whole_once_every_size_is_there(quick: bool) -> None:
    loop, fleet = (QUICK_ROWS, QUICK_FLEET_ROWS) if quick else (ROWS, FLEET_ROWS)
    lines = [*(line(rows) for rows in (*loop, 77)), *(line(rows, by="fleet") for rows in fleet)]
    assert _is_whole(lines, quick=quick)
    for missing in (0, len(loop) - 1, -1):
        assert not _is_whole([one for one in lines if one is not lines[missing]], quick=quick)


def test_a_part_that_fails_ends_the_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("benchmarks.rows.stage.write_rows", lambda path, rows, clip: path.write_text("{}\n" * rows))
    with pytest.raises(PartFailedError, match=r"enqueue ended with code 1: [\s\S]*no column 'audio'"):
        measure(3, "loop")
    assert not list(tmp_path.glob("bench-rows-*"))


def test_costs_are_medians_for_a_million_rows() -> None:
    runs = [measured(10_000, cost=cost) for cost in (3e-5, 1e-5, 9e-5)]
    found = report.line_of(runs, {})
    assert found["cpu_seconds_per_million"] == {"bare": 500_000, "check": 30, "send": 30, "collect": 30, "merge": 30}
    assert (found["rows_per_second"], found["runs"], found["peak_mb"]) == (5000, 3, {"enqueue": 50.0, "collect": 50.0})


def test_a_row_may_cost_little_more_in_a_large_job() -> None:
    small = line(10_000)
    assert missed(small, line(10**6, cost=1.14)) == []
    assert len(missed(small, line(10**6, cost=1.16))) == 4
    # Other sizes, and jobs that a fleet answers at its own pace, have no such bar.
    assert missed(small, line(10**7, cost=2), line(10**6, cost=2, by="fleet")) == []
    assert [bar.met for bar in report.bars([small])] == [None] * 4 + [True]


@pytest.mark.parametrize(("rows", "allowed_mb"), [(100_000, 64), (10**6, 64), (10**7, 136)])
def test_memory_is_bounded_but_for_eight_bytes_a_row(rows: int, allowed_mb: int) -> None:
    assert missed(line(10_000), line(rows, mb=50 + allowed_mb)) == []
    assert len(missed(line(10_000), line(rows, mb=50.2 + allowed_mb))) == 2
    assert len(missed(line(10_000), line(rows, redis_mb=64.2))) == 1


def test_growth_is_held_against_the_same_kind_of_job() -> None:
    assert report.grown_mb([line(10_000)], line(10**6, mb=60), "enqueue") == 10
    assert report.grown_mb([line(10_000)], line(10**6, by="fleet"), "enqueue") is None


def test_a_later_line_takes_the_place_of_the_same_job() -> None:
    old = [line(10**6, cost=1), line(10_000, cost=1), line(10_000, cost=1, by="fleet")]
    new = [line(10**6, cost=2)]
    found = report.merged(old, new)
    assert [(one["answered_by"], one["rows"]) for one in found] == [
        ("loop", 10_000),
        ("loop", 10**6),
        ("fleet", 10_000),
    ]
    assert found[1] == new[0]
