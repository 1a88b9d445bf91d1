"""From what came of a job to a line of the report, and to the bars it misses."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

from benchmarks.chaos.job import Outcome
from benchmarks.chaos.witness import recover_seconds

#: What a killed worker had taken runs elsewhere within this.
ELSEWHERE_SECONDS = 90.0
#: More differing texts are not listed.
MOST_LISTED = 20


@dataclass(frozen=True, slots=True)
class Line:
    """One fault. ``identical``: whether the step file is the undisturbed run's, but for a poisonous row."""

    engine: str
    fault: str
    about: str
    share: float
    note: str
    expected: int
    answered: int
    lost: int
    doubled: int
    runs_mean: float
    runs_most: int
    recover_seconds: float
    #: Until the last row of a killed worker was taken by another; None where no worker was killed at work.
    elsewhere_seconds: float | None
    left_over: int
    identical: bool
    differing: list[dict[str, Any]]
    errors: dict[str, int]
    left: list[str]
    ends: dict[str, list[list[int]]]
    seconds: float
    missed: list[str]


def judge(outcome: Outcome, undisturbed: list[bytes]) -> Line:
    """Count, and compare with the lines of the ``undisturbed`` step file."""
    plan = outcome.plan
    rows = [json.loads(line) for line in outcome.step]
    seen = Counter(row["id"] for row in rows)
    answered = len(seen) if rows else len(outcome.answered_at)
    lost = sum(1 for row in range(plan.rows) if row not in seen) if rows else plan.rows - answered
    doubled = sum(count - 1 for count in seen.values())
    errors = Counter(row["transcription_error"]["type"] for row in rows if row.get("transcription_error"))
    compared = [
        (old, new)
        for row, (old, new) in enumerate(zip(undisturbed, outcome.step, strict=False))
        if row != plan.poison and old != new
    ]
    identical = bool(outcome.step) and not compared and len(undisturbed) == len(outcome.step)
    elsewhere = _elsewhere_seconds(outcome)
    windows = outcome.sightings.windows
    held = {row for one in outcome.sightings.taken if one.at <= outcome.struck_at for row in one.rows}
    missed = [
        *([outcome.trouble] if outcome.trouble else []),
        *([f"{lost} rows lost"] if lost else []),
        *([f"{doubled} rows doubled"] if doubled else []),
        *([f"{len(outcome.left)} left over"] if outcome.left else []),
        *_wrong_errors(outcome, rows, errors),
        *(f"a worker ended with {ends[-1]} after SIGTERM" for ends in outcome.ends.get("worker", ()) if ends[-1]),
    ]
    if plan.engine == "standin" and not identical and not lost:
        missed.append(f"the step file differs in {len(compared)} rows from an undisturbed run's")
    if elsewhere is not None and elsewhere > ELSEWHERE_SECONDS:
        missed.append(f"the rows of the killed worker ran elsewhere after {elsewhere:.0f} s only")
    return Line(
        engine=plan.engine,
        fault=plan.name,
        about=plan.fault.about,
        share=round(plan.moment.share, 3) if plan.fault.strike else 0.0,
        note=outcome.struck.note,
        expected=plan.rows,
        answered=answered,
        lost=lost,
        doubled=doubled,
        runs_mean=round(windows.total() / plan.rows, 3),
        runs_most=max(windows.values(), default=0),
        recover_seconds=_recover_seconds(outcome, held),
        elsewhere_seconds=elsewhere,
        left_over=len(outcome.left),
        identical=identical,
        differing=[_difference(old, new) for old, new in compared[:MOST_LISTED]],
        errors=dict(errors),
        left=outcome.left,
        ends=dict(outcome.ends),
        seconds=round(outcome.seconds, 1),
        missed=missed,
    )


def _wrong_errors(outcome: Outcome, rows: list[dict[str, Any]], errors: Counter[str]) -> list[str]:
    """Only the poisonous record has an error, and it is quarantined."""
    poison = outcome.plan.poison
    found = []
    for row in rows if poison is not None else ():
        if row["id"] == poison and (row.get("transcription_error") or {}).get("type") != "quarantined":
            found.append("the poisonous record is not quarantined")
    others = errors - Counter({"quarantined": 1}) if poison is not None else errors
    return [*found, *([f"rows with errors: {dict(others)}"] if others else [])]


def _recover_seconds(outcome: Outcome, held: set[int]) -> float:
    if not outcome.struck_at:
        return 0.0
    return round(recover_seconds(outcome.struck_at, outcome.answered_at, held), 1)


def _elsewhere_seconds(outcome: Outcome) -> float | None:
    at, killed = outcome.struck_at, set(outcome.struck.workers)
    if not killed:
        return None
    answered_at = outcome.answered_at
    orphans = {row for row in outcome.sightings.held_by(killed, at) if row not in answered_at or answered_at[row] > at}
    elsewhere = outcome.sightings.taken_elsewhere(orphans, killed, at)
    never = outcome.seconds + ELSEWHERE_SECONDS
    # A row whose answer had left the worker in time is journaled without another run.
    until = [min(elsewhere.get(row, at + never), answered_at.get(row, at + never)) - at for row in orphans]
    return round(max(until, default=0.0), 1)


def _difference(old: bytes, new: bytes) -> dict[str, Any]:
    before, after = json.loads(old), json.loads(new)
    return {"id": after["id"], "undisturbed": before["transcription"], "here": after["transcription"]} | (
        {"error": after["transcription_error"]} if "transcription_error" in after else {}
    )
