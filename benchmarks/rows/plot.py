"""The figures as a picture: what a row costs, against the size of its job. The only module that needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from benchmarks.rows.report import PHASES, Line


def draw(lines: Sequence[Line], path: Path) -> None:
    """Write the picture of the jobs that a loop answered."""
    shown = [line for line in lines if line["answered_by"] == "loop"]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for phase in ("bare", *PHASES):
        costs = [line["cpu_seconds_per_million"][phase] for line in shown]
        rows = [line["rows"] for line in shown]
        if phase == "bare":
            axes.plot(rows, costs, label="bare loop", linestyle="--", color="gray")
        else:
            axes.plot(rows, costs, label=phase, marker="o")
    axes.set(xscale="log", xlabel="rows of the job", ylabel="CPU seconds per million rows")
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    axes.grid(visible=True, alpha=0.3)
    # No date inside, and the same ids each time: the same figures give the same file.
    with rc_context({"svg.hashsalt": path.stem}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
