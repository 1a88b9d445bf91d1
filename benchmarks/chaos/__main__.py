"""`python -m benchmarks.chaos`: strike one job a fault and show what came of it.

Writes ``chaos-<date>.json`` (``…-partial.json`` for a choice of faults). Exit code 1 if a bar is missed; the logs of
such a run are kept.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.chaos import report
from benchmarks.chaos.campaign import Campaign
from benchmarks.chaos.faults import ENGINES, FAULTS, EngineName
from benchmarks.chaos.judge import Line
from benchmarks.chaos.schedule import DEFAULT_SEED
from benchmarks.corpus import REPOSITORY

REAL_ROWS = 40

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    faults: Annotated[str | None, typer.Option(help=f"Faults, by commas, of: {', '.join(FAULTS)}.")] = None,
    rows: Annotated[int, typer.Option(min=20, help=f"Rows with the stand-in; the real engine has {REAL_ROWS}.")] = 500,
    engine: Annotated[str, typer.Option(help="standin, real or both.")] = "both",
    seed: Annotated[int, typer.Option(envvar="CHAOS_SEED", help="Decides moments and victims.")] = DEFAULT_SEED,
    json_path: Annotated[Path | None, typer.Option("--json", help="Where the report goes.")] = None,
) -> None:
    """Kill, stop, fill up and flush every part of a fleet, a job each, and count what is lost, doubled and left."""
    chosen = _chosen(faults)
    engines = _engines(engine)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything started here is ended
    typer.echo(f"CHAOS_SEED={seed}", err=True)
    work = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))  # short: a socket's path holds 107 bytes
    lines = list[Line]()
    for name in engines:
        on_engine = [fault for fault in chosen if name in FAULTS[fault].engines]
        for line in Campaign(name, on_engine, REAL_ROWS if name == "real" else rows, seed, work).lines():
            lines.append(line)
            ok = "; ".join(line.missed) or "ok"
            typer.echo(f"{line.engine} {line.fault}: {line.seconds:.0f} s, {ok}", err=True)
    whole = faults is None and engine == "both"
    found = report.as_json(lines, seed, {"faults": chosen, "engines": engines, "rows": rows, "real_rows": REAL_ROWS})
    report.show(lines, f"Nothing is lost: one job a fault, CHAOS_SEED={seed}")
    path = json_path or _default_path(whole=whole)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    typer.echo(path)
    if not found["met"]:
        typer.echo(f"logs: {work}", err=True)
        raise typer.Exit(1)
    shutil.rmtree(work, ignore_errors=True)


def _default_path(*, whole: bool) -> Path:
    date = datetime.now(UTC).date().isoformat()
    return REPOSITORY / "benchmarks" / "results" / f"chaos-{date}{'' if whole else '-partial'}.json"


def _chosen(names: str | None) -> list[str]:
    wanted = list(FAULTS) if names is None else [name.strip() for name in names.split(",")]
    unknown = set(wanted) - set(FAULTS)
    if unknown:
        raise typer.BadParameter(f"--faults: {', '.join(sorted(unknown))}: must be of {', '.join(FAULTS)}")
    return [name for name in FAULTS if name in wanted]


def _engines(name: str) -> list[EngineName]:
    found = [one for one in ENGINES if name in (one, "both")]
    if not found:
        raise typer.BadParameter(f"--engine {name}: must be standin, real or both")
    return found


if __name__ == "__main__":
    app()
