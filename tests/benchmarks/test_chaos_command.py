"""The command `python -m benchmarks.chaos` itself: one report of both parts, and the exit code. No fleet is started."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from benchmarks.chaos import campaign, job
from benchmarks.chaos.__main__ import app
from benchmarks.chaos.faults import FAULTS, Struck
from benchmarks.chaos.job import Outcome, Plan
from benchmarks.chaos.judge import judge
from benchmarks.chaos.witness import Sightings
from tests.asterisk import FetchError

Change = Callable[[Outcome], Outcome]


def row(number: int, text: str) -> bytes:
    return json.dumps({"id": number, "transcription": text}).encode()


def other_text(outcome: Outcome) -> Outcome:
    return replace(outcome, step=[*outcome.step[:-1], row(outcome.plan.rows - 1, "other")])


def lost_row(outcome: Outcome) -> Outcome:
    return replace(outcome, step=outcome.step[:-1])


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[int, str, dict[str, Any]]]:
    """Runs the command on jobs that are played by nobody; ``changes``: what came of a fault, by engine and name."""

    def run(changes: dict[tuple[str, str], Change], *arguments: str) -> tuple[int, str, dict[str, Any]]:
        def played(plan: Plan, folder: Path) -> Outcome:
            step = [row(number, "text") for number in range(plan.rows)]
            if plan.poison is not None:
                step[plan.poison] = json.dumps(
                    {"id": plan.poison, "transcription_error": {"type": "quarantined"}}
                ).encode()
            seen = dict.fromkeys(range(plan.rows), 1.0)
            outcome = Outcome(plan, step, seen, 2.0, 0.0, Struck(), Sightings(), [], {})
            return changes.get((plan.engine, plan.name), lambda same: same)(outcome)

        monkeypatch.setattr(campaign, "play", played)
        monkeypatch.setattr(campaign, "prompt_rows", lambda folder, rows: folder / "data.jsonl")
        path = tmp_path / "report.json"
        done = CliRunner().invoke(app, [*arguments, "--rows", "20", "--real-rows", "20", "--json", str(path)])
        return done.exit_code, done.output, json.loads(path.read_text()) if path.exists() else {}

    return run


def test_one_run_reports_both_parts_and_lists_the_texts_of_a_real_engine_that_differ(command: Any) -> None:
    code, shown, found = command({("real", "kill-engine"): other_text})

    assert code == 0, shown
    lines = [(line["engine"], line["fault"]) for line in found["lines"]]
    assert lines == [
        (engine, name) for engine in ("standin", "real") for name in FAULTS if engine in FAULTS[name].engines
    ]
    assert found["met"] is True
    expected = {"id": 19, "undisturbed": "text", "here": "other"}
    assert [line["differing"] for line in found["lines"] if line["differing"]] == [[expected]]
    assert f"DIFFERS real kill-engine: {expected}" in shown


@pytest.mark.parametrize(
    ("where", "change", "missed"),
    [
        (("standin", "flush"), lost_row, "1 rows lost"),
        (("standin", "flush"), other_text, "the step file differs in 1 rows"),
        (("real", "kill-rank"), lost_row, "1 rows lost"),
        (("real", "none"), lambda outcome: replace(outcome, left=["process 7: x"]), "1 left over"),
    ],
)
def test_a_missed_bar_ends_the_command_with_1(
    command: Any, where: tuple[str, str], change: Change, missed: str
) -> None:
    code, shown, found = command({where: change})

    assert code == 1
    assert found["met"] is False
    assert f"MISSED {where[0]} {where[1]}: {missed}" in shown
    assert "logs: " in shown


def test_what_cannot_be_fetched_is_missed_before_the_first_job(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(folder: Path, rows: int) -> Iterator[Path]:
        raise FetchError("apt-get is not on the PATH")

    monkeypatch.setattr(campaign, "play", lambda *_: pytest.fail("a job was played"))
    monkeypatch.setattr(campaign, "prompt_rows", missing)
    done = CliRunner().invoke(app, [])

    assert done.exit_code == 2
    assert "the recordings for the real engine are missing: apt-get is not on the PATH" in done.output


def test_a_fault_that_goes_wrong_itself_costs_its_own_line_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise psutil.NoSuchProcess(7)

    monkeypatch.setattr(job, "_start", broken)
    (plan,) = campaign.Campaign("standin", ["none"], 20, 1, tmp_path).plans()
    plan = replace(plan, fault=replace(plan.fault, own_fleet=True))

    line = judge(job.play(plan, tmp_path / "standin-none"), [])

    assert line.missed[0].startswith("NoSuchProcess: ")
    assert (line.lost, line.left_over) == (20, 0)
