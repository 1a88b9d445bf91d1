"""What is made of the runs of `make bench`'s fleet parts, and each of them once, in small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import all as everything
from benchmarks import latency, plots, scaling, startup, summary, worker_logs
from benchmarks.bars import Bar
from benchmarks.outcome import latest
from fleet import clean_environment

ROOT = Path(__file__).parent.parent.parent

Report = dict[str, Any]


def bench(part: str, folder: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], Report]:
    """A part as a command in small, and its report."""
    command = [sys.executable, "-m", f"benchmarks.{part}", *arguments, "--results", str(folder / "out")]
    environment = clean_environment(TMPDIR=str(folder))
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode in (0, 1), done.stderr
    assert done.stdout.strip(), done.stderr
    path = Path(done.stdout.splitlines()[-1])
    assert path.name.endswith("-partial.json")
    report = json.loads(path.read_text())
    assert {"date", "machine", "versions", "options", "bars"} <= set(report)
    # A missed bar, and nothing else, is exit code 1: in small, on a busy machine, any may be missed
    assert done.returncode == any(bar["met"] is False for bar in report["bars"])
    assert not list(folder.glob("bench-*")), "nothing is left over"
    return done, report


def test_scaling_measures_rates_and_who_did_what(tmp_path: Path) -> None:
    _, report = bench("scaling", tmp_path, "--rows", "200", "--rounds", "1", "--workers", "2", "--parts", "standin")
    (run,) = report["runs"]
    assert run["workers"] == 2
    assert sum(run["rows_by_worker"]) == run["rows"] == 200
    assert all(run["rows_by_worker"]), "both took part"
    assert run["rows_per_second"] > 0
    assert 0 < run["batch_full_share"] <= 1
    # Without a run of one worker there is nothing to hold it against
    assert [bar["measured"] for bar in report["bars"][:2]] == [None, None]


def test_latency_measures_calls_behind_a_backlog(tmp_path: Path) -> None:
    done, report = bench("latency", tmp_path, "--backlog", "2000", "--calls", "3", "--parts", "calls")
    calls = report["calls"]
    assert len(calls["waits_seconds"]) == 3
    assert calls["messages_left"] > 0
    assert calls["p95_seconds"] == calls["longest_seconds"] == max(calls["waits_seconds"])
    assert calls["p95_messages"] == pytest.approx(calls["p95_seconds"] / calls["message_seconds"], abs=0.01)
    assert "p95" in done.stdout


def test_startup_measures_each_part(tmp_path: Path) -> None:
    done, report = bench("startup", tmp_path, "--rounds", "1", "--engine", "stand-in")
    parts = report["startup"]["stand-in"]
    assert parts["total"] >= max(parts.values())
    assert set(parts) < set(startup.PARTS)
    assert "importing vLLM" not in parts
    assert "starting a decode process" in done.stdout


@pytest.mark.parametrize(
    ("part", "arguments", "words"),
    [
        ("scaling", ["--workers", "1,x"], "must be numbers of workers"),
        ("scaling", ["--parts", "gpu"], "choose from standin, cores"),
        ("latency", ["--parts", "all"], "choose from calls, jobs"),
        ("startup", ["--engine", "none"], "choose from stand-in"),
        ("all", ["--parts", "none"], "choose from efficiency"),
    ],
)
def test_wrong_arguments_are_one_message_and_exit_code_2(part: str, arguments: list[str], words: str) -> None:
    command = [sys.executable, "-m", f"benchmarks.{part}", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert words in " ".join(done.stderr.replace("│", " ").split())


def run_of(workers: int, rate: float, tail: float = 0.1) -> Report:
    others = {"message_seconds": 0.5, "batch_full_share": 0.9, "busy_cores_share": 0.4}
    return {"workers": workers, "rows_per_second": rate, "tail_seconds": tail, **others}


def test_speed_is_each_rounds_own() -> None:
    # Given two rounds, in the second of which everything took twice as long
    runs = [run_of(1, 20.0), run_of(4, 78.0, tail=0.7), run_of(1, 10.0), run_of(4, 39.0, tail=0.3)]
    found = scaling.summary(runs)
    # Then that does not show in the ratio
    assert [(row["workers"], row["ratio"]) for row in found] == [(1, 1.0), (4, 3.9)]
    met = {bar.name: bar.met for bar in scaling.bars(found)}
    assert met == {
        "speed of 2 workers to one's": None,
        "speed of 4 workers to one's": True,
        "wait for the last worker, in messages": True,
    }


def test_a_workers_log_tells_messages_and_calls(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_text(
        "[2026-11-23 12:46:13,709: INFO/MainProcess] Task whisper.transcribe[a.1] received\n"
        "[2026-11-23 12:46:14,500: INFO/MainProcess] Task whisper.transcribe[a.1] succeeded in 0.75s: "
        "{'rows': 16, 'failed': 0, 'reasons': {}}\n"
        "[2026-11-23 12:46:15,500: INFO/MainProcess] Task whisper.translate[b] succeeded in 1.25s: [{'text': 'x'}]\n"
        "[2026-11-23 12:46:15,600: ERROR/MainProcess] Task whisper.translate[c] raised unexpected: Error()\n"
    )
    first, second = worker_logs.messages(log)
    assert (first.id, first.seconds, first.rows) == ("a.1", 0.75, 16)
    assert (second.id, second.seconds, second.rows) == ("b", 1.25, 0)
    assert second.ended - first.ended == pytest.approx(1.0)


@given(st.lists(st.floats(0, 100), min_size=1), st.integers(1, 100))
def test_a_percentile_is_a_value_that_so_many_do_not_exceed(values: list[float], percent: int) -> None:
    found = latency.percentile(values, percent)
    assert found in values
    assert sum(value <= found for value in values) >= len(values) * percent / 100
    assert sum(value < found for value in values) < len(values) * percent / 100


def test_the_share_of_a_second_job_counts_while_both_run() -> None:
    first = [(0.0, 0), (10.0, 100), (20.0, 130), (30.0, 200)]
    # Alone, then both, then alone again
    assert latency.share(first, [(10.0, 1), (20.0, 71), (40.0, 200)]) == pytest.approx(0.412, abs=0.001)
    # A second job that waits until the first is done gets nothing of its time, which misses the bar
    starved = latency.share(first, [(20.0, 0), (40.0, 200)])
    assert starved == 0.0
    assert Bar("share", starved, latency.LEAST_SHARE, at_least=True).met is False


def report_of(**figures: Any) -> str:
    machine = {"cores": 2, "memory_gib": 8.0, "cpu": "one"}
    return json.dumps({"date": "2026-01-02T03:04:05", "machine": machine, "versions": {"torch": "2"}, **figures})


@pytest.fixture
def results(tmp_path: Path) -> Path:
    bar = {"name": "speed", "measured": 3.9, "bar": 3.8, "at_least": True, "met": True}
    missed = {"name": "wait", "measured": 2.0, "bar": 1.0, "at_least": False, "met": False}
    (tmp_path / "scaling-2026-01-01.json").write_text("old")
    rows = [{"workers": 1, "ratio": 1.0, "ratios": [1.0]}, {"workers": 4, "ratio": 3.9, "ratios": [3.8, 4.0]}]
    (tmp_path / "scaling-2026-01-02.json").write_text(report_of(bars=[bar, missed], standin=rows))
    (tmp_path / "scaling-2026-01-03-partial.json").write_text("in part")
    (tmp_path / "startup-2026-01-02.json").write_text(
        report_of(bars=[], startup={"stand-in": {"starting Python": 1.2, "connecting": 0.01, "total": 3.0}})
    )
    return tmp_path


def test_the_last_whole_run_is_drawn(results: Path) -> None:
    assert latest("scaling", results) == results / "scaling-2026-01-02.json"
    assert latest("latency", results) is None
    plots.main(results)
    picture = (results / "scaling-2026-01-02.svg").read_text()
    assert picture.startswith("<?xml")
    plots.main(results)
    assert (results / "scaling-2026-01-02.svg").read_text() == picture, "the same figures, the same picture"


def test_the_pages_table_has_ratios_first_and_replaces_the_old_one(results: Path) -> None:
    page = results / "page.md"
    page.write_text(f"before\n{summary.BEGIN}\nold figures\n{summary.END}\nafter\n")
    for _ in range(2):
        summary.main(results, page)
    lines = page.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    assert "old figures" not in lines
    assert lines.index("| scaling | speed | 3.9 | ≥ 3.8 | yes |") == 4
    assert lines[5] == "| scaling | wait | 2 | ≤ 1 | **no** |"
    assert lines[6] == "| startup | stand-in: `celery worker` to ready (starting Python 1.2) | 3.0 s | | |"
    assert "- scaling: 2026-01-02, 2 cores, 8 GiB, one; torch 2" in lines


def test_the_benchmarks_page_has_a_place_for_the_table() -> None:
    text = summary.PAGE.read_text(encoding="utf-8")
    assert text.count(summary.BEGIN) == text.count(summary.END) == 1


def test_a_part_that_fails_or_is_not_there_is_told_from_one_that_succeeds() -> None:
    assert everything.run("worker_logs", 60).succeeded
    missing = everything.run("no_such_part", 60)
    assert (missing.succeeded, missing.outcome) == (False, "there is no such part")


def test_a_part_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    run = everything.run("latency", 5.0)
    assert not run.succeeded
    assert run.outcome.startswith("ended after")
    assert list(tmp_path.glob("bench-latency-*")) == []


def test_a_part_that_the_hour_has_no_time_for_is_left_out_and_no_success() -> None:
    run = everything.run("latency", 0.0)
    assert (run.outcome, run.succeeded) == ("left out: the hour is over", False)
