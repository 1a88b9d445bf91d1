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
from benchmarks.chaos.job import Plan
from benchmarks.chaos.judge import Line
from benchmarks.chaos.schedule import DEFAULT_SEED
from benchmarks.corpus import REPOSITORY
from tests.asterisk import FetchError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    faults: Annotated[str | None, typer.Option(help=f"Faults, by commas, of: {', '.join(FAULTS)}.")] = None,
    rows: Annotated[int, typer.Option(min=20, help="Rows with the stand-in.")] = 500,
    real_rows: Annotated[int, typer.Option(min=20, help="Rows with the real engine.")] = 40,
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
    for campaign, plans in _prepared(engines, chosen, {"standin": rows, "real": real_rows}, seed, work):
        for line in campaign.lines(plans):
            lines.append(line)
            ok = "; ".join(line.missed) or "ok"
            typer.echo(f"{line.engine} {line.fault}: {line.seconds:.0f} s, {ok}", err=True)
    whole = faults is None and engine == "both"
    found = report.as_json(lines, seed, {"faults": chosen, "engines": engines, "rows": rows, "real_rows": real_rows})
    report.show(lines, f"Nothing is lost: one job a fault, CHAOS_SEED={seed}")
    path = json_path or _default_path(whole=whole)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    typer.echo(path)
    if not found["met"]:
        typer.echo(f"logs: {work}", err=True)
        raise typer.Exit(1)
    shutil.rmtree(work, ignore_errors=True)


def _prepared(
    engines: list[EngineName], faults: list[str], rows: dict[EngineName, int], seed: int, work: Path
) -> list[tuple[Campaign, list[Plan]]]:
    """Both parts with all their inputs: what cannot be fetched is missed before half an hour is spent."""
    campaigns = [
        Campaign(name, [fault for fault in faults if name in FAULTS[fault].engines], rows[name], seed, work)
        for name in engines
    ]
    try:
        return [(campaign, campaign.plans()) for campaign in campaigns]
    except FetchError as error:
        typer.echo(f"the recordings for the real engine are missing: {error}", err=True)
        raise typer.Exit(2) from None


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
