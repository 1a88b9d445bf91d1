"""`python -m benchmarks.plots`: speed against workers, from the last whole run of `benchmarks.scaling`, as a picture.

Cost per row against rows is drawn by `benchmarks.rows` itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.outcome import RESULTS, latest

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    results_folder: Annotated[Path, typer.Option("--results", help="Folder of the reports.")] = RESULTS,
) -> None:
    """Draw ``scaling-<date>.svg`` beside the report that it shows."""
    source = latest("scaling", results_folder)
    if source is None:
        typer.echo(f"{results_folder}: no whole run of benchmarks.scaling yet", err=True)
        raise typer.Exit(1)
    report = json.loads(source.read_text(encoding="utf-8"))
    draw(report["standin"], source.with_suffix(".svg"))
    typer.echo(source.with_suffix(".svg"))


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the picture: each round a dot, the medians a line, and what no fleet exceeds."""
    from matplotlib import rc_context  # a picture is all that needs it
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator

    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.add_subplot()
    workers = [row["workers"] for row in rows]
    axes.plot(workers, workers, label="as many times one's", linestyle="--", color="gray")
    axes.plot(workers, [row["ratio"] for row in rows], label="stand-in engines", marker="o")
    for row in rows:
        axes.scatter([row["workers"]] * len(row["ratios"]), row["ratios"], s=8, color="black")
    axes.set(xlabel="workers", ylabel="speed, as a multiple of one worker's")
    axes.xaxis.set_major_locator(FixedLocator(workers))
    axes.set_ylim(bottom=0)
    axes.legend()
    axes.grid(visible=True, alpha=0.3)
    # No date inside, and no random ids: the same figures give the same file.
    with rc_context({"svg.hashsalt": path.stem}):
        figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    app()
