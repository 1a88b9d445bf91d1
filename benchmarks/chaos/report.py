"""The lines of a chaos run as a table and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.chaos.judge import Line
from benchmarks.facts import machine, versions

#: Tables keep their width in a pipe or a log file.
WIDTH = 160


def table(lines: Sequence[Line], title: str) -> Table:
    """One row a fault."""
    made = Table("engine", title=title)
    made.add_column("fault", min_width=38)
    for name in ("rows\nexpected", "rows\nanswered", "lost", "doubled", "engine runs\nper row (most)"):
        made.add_column(name, justify="right")
    for name in ("seconds to\nrecover", "to run\nelsewhere", "left\nover", "same file", "ok"):
        made.add_column(name, justify="right")
    for line in lines:
        elsewhere = "" if line.elsewhere_seconds is None else f"{line.elsewhere_seconds:.1f}"
        counts = (line.expected, line.answered, line.lost, line.doubled)
        made.add_row(
            line.engine,
            f"{line.about}{f' ({line.note})' if line.note else ''}",
            *map(str, counts),
            f"{line.runs_mean:.2f} ({line.runs_most})",
            f"{line.recover_seconds:.1f}",
            elsewhere,
            str(line.left_over),
            _compared(line),
            "NO" if line.missed else "yes",
        )
    return made


def _compared(line: Line) -> str:
    if line.identical:
        return "yes"
    return f"{len(line.differing)} texts differ" if line.differing else "no"


def show(lines: Sequence[Line], title: str, console: Console | None = None) -> None:
    """Write the table to stdout, and below it what is missed and which texts differ."""
    out = console or Console(width=WIDTH)
    out.print(table(lines, title), highlight=False, markup=False)
    for line in lines:
        for what in line.missed:
            out.print(f"MISSED {line.engine} {line.fault}: {what}", highlight=False, markup=False, soft_wrap=True)
        for what in line.left:
            out.print(f"LEFT {line.engine} {line.fault}: {what}", highlight=False, markup=False, soft_wrap=True)
        for difference in line.differing:
            out.print(
                f"DIFFERS {line.engine} {line.fault}: {difference}", highlight=False, markup=False, soft_wrap=True
            )


def as_json(lines: Sequence[Line], seed: int, options: dict[str, Any]) -> dict[str, Any]:
    """The report with what is needed to repeat it."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "machine": machine(),
        "versions": versions(),
        "options": options,
        "met": not any(line.missed for line in lines),
        "lines": [asdict(line) for line in lines],
    }
