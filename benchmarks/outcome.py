"""How a part of `make bench` reports: a JSON file with machine and versions, tables on stdout, and an exit code."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer
from rich.console import Console, RenderableType

from benchmarks import bars
from benchmarks.bars import Bar
from benchmarks.facts import REPOSITORY, machine, versions

RESULTS = REPOSITORY / "benchmarks" / "results"
WIDTH = 120


def report(
    part: str,
    options: Mapping[str, Any],
    judged: Sequence[Bar],
    figures: Mapping[str, Any],
    tables: Sequence[RenderableType],
    folder: Path,
    *,
    whole: bool,
) -> None:
    """Show the tables, write ``{part}-<date>.json`` (``…-partial`` unless ``whole``), and print its path last.

    Raises typer.Exit(1) if a bar is missed.
    """
    date = datetime.now(UTC).isoformat(timespec="seconds")
    content = {
        "date": date,
        "machine": machine(),
        "versions": versions(),
        "options": dict(options),
        "bars": [bar.as_dict() for bar in judged],
        **figures,
    }
    console = Console(width=WIDTH)
    for table in [*tables, *([bars.table(content["bars"])] if judged else [])]:
        console.print(table, highlight=False, markup=False)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{part}-{date[:10]}{'' if whole else '-partial'}.json"
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    typer.echo(path)
    if any(bar.met is False for bar in judged):
        raise typer.Exit(1)


def tidy_when_ended() -> None:
    """Let SIGTERM end this process as an error would: what it has started and written ends with it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def latest(part: str, folder: Path) -> Path | None:
    """The report of the last whole run of ``part``; None if there is none."""
    dates = "[0-9]" * 4 + "-" + "[0-9]" * 2 + "-" + "[0-9]" * 2
    return max(folder.glob(f"{part}-{dates}.json"), default=None)
