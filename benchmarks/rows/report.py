"""From measured jobs to lines, bars and a table. A line holds all that it was measured on: lines outlive a run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from benchmarks.bars import Bar
from benchmarks.rows.parts import Figures
from benchmarks.rows.stage import Measured

#: The parts of a row's way, the process that goes it, and what they are called.
PHASES = {"check": "enqueue", "send": "enqueue", "collect": "collect", "merge": "collect"}
SMALLEST, LARGE = 10_000, 1_000_000
MOST_GROWTH = 1.15
MOST_MB = 64.0
#: What a collector keeps of a row, in bytes: where its answer is.
ROW_BYTES = 8

Line = dict[str, Any]


def line_of(runs: Sequence[Measured], made_on: Mapping[str, Any]) -> Line:
    """The medians of runs of the same job, with machine and versions."""
    one = runs[0]
    return {
        "rows": one.rows,
        "answered_by": one.answered_by,
        "runs": len(runs),
        "row_bytes": round(one.input_bytes / one.rows, 1),
        "cpu_seconds_per_million": {
            name: _per_million(runs, part, name) for name, part in {"bare": "bare", **PHASES}.items()
        },
        # Sending and collecting go on at once, at the pace of the slower of them and of who answers.
        "rows_per_second": round(median(run.rows / run.parts["collect"].wall_seconds["collect"] for run in runs)),
        "peak_mb": {part: round(max(run.parts[part].peak_bytes for run in runs) / 1e6, 1) for part in PHASES.values()},
        "redis_peak_mb": round(max(run.redis_peak_bytes for run in runs) / 1e6, 1),
        **made_on,
    }


def merged(old: Iterable[Line], new: Iterable[Line]) -> list[Line]:
    """All lines by who answered and size, the new ones in the place of old ones of the same job."""
    lines = {(line["answered_by"], line["rows"]): line for line in (*old, *new)}
    return [lines[key] for key in sorted(lines, key=lambda key: (key[0] != "loop", key[1]))]


def read_lines(path: Path) -> list[Line]:
    """The lines of an earlier report, none where there is none."""
    return list(json.loads(path.read_text(encoding="utf-8"))["jobs"]) if path.exists() else []


def bars(lines: Sequence[Line]) -> list[Bar]:
    """What must show: the same cost a row in small and large jobs, and bounded memory."""
    found = [
        Bar(f"{phase}: cost of a row at {LARGE:,} rows against {SMALLEST:,}", _growth(lines, phase), MOST_GROWTH)
        for phase in PHASES
    ]
    for line in lines:
        job = f"{line['rows']:,} rows, answered by a {line['answered_by']}"
        found.append(Bar(f"MB in Redis: {job}", line["redis_peak_mb"], MOST_MB))
        if line["rows"] > SMALLEST:
            # A million rows are the size that the bar was made for; beyond it the offsets count by themselves.
            allowed = MOST_MB + ROW_BYTES * max(0, line["rows"] - LARGE) / 1e6
            for part in ("enqueue", "collect"):
                found.append(Bar(f"MB that {part} grows by: {job}", grown_mb(lines, line, part), allowed))
    return found


def table(lines: Sequence[Line]) -> Table:
    """The lines as a person reads them."""
    shown = Table("rows", title="CPU time of a row against a loop that reads, parses and writes it, and memory")
    for name in ("answered by", *(f"{phase} ×" for phase in PHASES), "CPU s per million", "rows/s"):
        shown.add_column(name, justify="right")
    for name in ("enqueue +MB", "collect +MB", "Redis MB"):
        shown.add_column(name, justify="right")
    for line in lines:
        cpu = line["cpu_seconds_per_million"]
        shown.add_row(
            f"{line['rows']:,}",
            line["answered_by"],
            *(f"{cpu[phase] / cpu['bare']:.1f}" for phase in PHASES),
            " + ".join(f"{cpu[phase]:.0f}" for phase in PHASES),
            f"{line['rows_per_second']:,}",
            *("-" if (mb := grown_mb(lines, line, part)) is None else f"{mb:.0f}" for part in ("enqueue", "collect")),
            f"{line['redis_peak_mb']:.0f}",
        )
    return shown


def grown_mb(lines: Sequence[Line], line: Line, part: str) -> float | None:
    """How much more memory a part took at its highest than in the smallest job, None without that."""
    small = _find(lines, SMALLEST, line["answered_by"])
    return None if small is None else round(line["peak_mb"][part] - small["peak_mb"][part], 1)


def _growth(lines: Sequence[Line], phase: str) -> float | None:
    small, large = (_find(lines, rows, "loop") for rows in (SMALLEST, LARGE))
    if small is None or large is None:
        return None
    return float(large["cpu_seconds_per_million"][phase] / small["cpu_seconds_per_million"][phase])


def _find(lines: Sequence[Line], rows: int, answered_by: str) -> Line | None:
    return next((line for line in lines if (line["rows"], line["answered_by"]) == (rows, answered_by)), None)


def _per_million(runs: Sequence[Measured], part: str, phase: str) -> float:
    def seconds(figures: Figures) -> float:
        return figures.cpu_seconds[phase]

    return round(median(seconds(run.parts[part]) / run.rows for run in runs) * 1e6, 2)
