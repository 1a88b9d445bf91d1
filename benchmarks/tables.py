"""The report as a person reads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group
from rich.table import Table

from benchmarks import bars

#: Tables keep their width in a pipe or a log file.
WIDTH = 150


def show(report: dict[str, Any], console: Console | None = None) -> None:
    """Write the report's tables to stdout."""
    (console or Console(width=WIDTH)).print(tables(report), highlight=False, markup=False)


def tables(report: dict[str, Any]) -> Group:
    """The tables of a report (see `benchmarks.report.as_json`)."""
    systems = list(report["speed"])
    notes = "\n".join(f"Left out: {what}" for what in report.get("left_out", ()))
    return Group(
        _errors(report, systems), _others(report, systems), bars.table(report["bars"]), *([notes] if notes else [])
    )


def _errors(report: dict[str, Any], systems: Sequence[str]) -> Table:
    table = Table("language", "part", title="Error rates in %, after normalisation and (raw)")
    for name in ("clips", "seconds", "reference", *systems):
        table.add_column(name, justify="right")
    for row in report["languages"]:
        rates = [
            f"{_percent(row['error_rate'][system])} ({_percent(row['raw_error_rate'][system])})" for system in systems
        ]
        size = f"{row['reference_units']} {'words' if row['unit'] == 'WER' else 'characters'}"
        table.add_row(row["language"], row["part"], str(row["clips"]), f"{row['seconds']:.0f}", size, *rates)
    return table


def _others(report: dict[str, Any], systems: Sequence[str]) -> Table:
    table = Table("", title="Beside the errors")
    for system in systems:
        table.add_column(system, justify="right")
    groups = list(dict.fromkeys(name for system in systems for name in report["speed"][system]))
    for group in groups:
        table.add_row(f"{group}: audio s/s (wall s)", *(_speed(report, system, group) for system in systems))
    written, loops = report["non_speech_characters"], report["loops"]
    table.add_row("characters written over no speech", *(str(written[system]) for system in systems))
    table.add_row("texts that loop", *(str(len(loops["texts"][system])) for system in systems))
    if report["retries"]:
        flagged = {"fleet": str(len(loops["flagged"]))}
        retried = {"fleet": f"{report['retries']['rows']} ({_percent(report['retries']['share_of_rows'])} %)"}
        table.add_row("rows flagged repetition", *(flagged.get(system, "") for system in systems))
        table.add_row("rows that needed a retry", *(retried.get(system, "") for system in systems))
    return table


def _speed(report: dict[str, Any], system: str, group: str) -> str:
    run = report["speed"][system].get(group)
    return f"{run['audio_seconds_per_second']:.1f} ({run['wall_seconds']:.1f})" if run else "-"


def _percent(rate: float | None) -> str:
    return "-" if rate is None else f"{100 * rate:.2f}"
