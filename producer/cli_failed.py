"""The commands on what failed: ``failed`` and ``retry``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Annotated

import typer

from producer.display import Display
from producer.errors import FleetError
from producer.failed import Example, Failures, failures_of
from producer.interruption import resumable
from producer.job import Job
from producer.lookup import find_job
from producer.retry import begin_retry
from producer.run import check_own_fleet, own_fleet_options, reach, run_job
from producer.step import check_fleet
from workers.settings import Settings, settings

JobName = Annotated[str, typer.Argument(metavar="JOB|STEP", help="A job's name (with REDIS_URL) or its step file.")]


def failed(
    job: JobName,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List what failed in a job's step by reason, with examples; of a running job, what failed so far.

    Rows count from 0. A row in which only some recordings failed counts too.
    """
    found = _find(job, settings())
    failures = failures_of(found)
    if as_json:
        typer.echo(json.dumps({"job": found.id, "step": str(found.step.path), **failures.as_dict()}))
        return
    for line in _lines(found, failures):
        typer.echo(line)


def retry(
    job: JobName,
    reason: Annotated[
        list[str] | None, typer.Option(metavar="REASON", help="Only rows that failed for this; may be repeated.")
    ] = None,
    tensor_parallel_size: Annotated[int | None, typer.Option(min=1, help="GPUs per engine (own fleet only).")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Local workers to start, as `run` does (own fleet only).")
    ] = None,
) -> None:
    """Do the failed rows of a finished step again and rewrite its file at once; all other rows stay as they are.

    Until then the old file stays. The same command again resumes what was interrupted. A row that fails again keeps its
    new error. The path of the step file is the last line of stdout.
    """
    config = settings()
    found = _find(job, config)
    options = own_fleet_options(config, workers, tensor_parallel_size)

    def ask() -> None:  # a retry that was begun, and that nobody can do, could only be given up with --force
        if config.redis_url is None:
            check_own_fleet(options)
            return
        asked = found.header.options
        check_fleet(config.redis_url, found.task, asked["language"], asked["model"])

    wanted = begin_retry(found, reason or (), ask)
    for line in _unknown(found, reason or ()):
        typer.echo(line, err=True)
    if wanted is None:
        typer.echo("there is nothing to do" if reason else "no row failed: there is nothing to do", err=True)
        typer.echo(str(found.step.path))
        return
    with resumable(wanted), Display() as display:
        done = run_job(wanted, options, config, display)
    display.summary(done.progress())
    summary = done.header.summary or {}
    again, still = summary.get("retried", 0), summary.get("retried_failed", 0)
    typer.echo(f"rows done again: {again}, still without text: {still}", err=True)
    typer.echo(str(done.step.path))
    if again and still == again:
        raise FleetError("no row that was done again has a text")


def _find(name: str, config: Settings) -> Job:
    url = config.redis_url
    return find_job(name, None if url is None else lambda: reach(url))


def _lines(job: Job, failures: Failures) -> list[str]:
    of = f"{failures.answered} rows" if failures.answered == failures.rows else f"{failures.answered} rows so far"
    partly = f", {failures.partly} in part" if failures.partly else ""
    lines = [f"{job.step.path}: {failures.failed} of {of} failed{partly}"]
    if job.header.retry is not None:
        lines.append(f"(a retry of {job.header.retry.rows} rows is not finished: this is the step before it)")
    for type, found in failures.ranked():
        lines.append(f"{found.rows} x {type}")
        lines += [": ".join(filter(None, (f"    row {one.row}", *_plain(one)))) for one in found.examples]
    return lines


def _unknown(job: Job, reasons: Sequence[str]) -> Iterator[str]:
    """A line for each reason that no row has: a misspelt one would leave rows out without a word."""
    there = (job.header.summary or {}).get("reasons", {})
    for reason in reasons:
        if reason not in there:
            yield f"no row failed for {reason}: there are {', '.join(sorted(there)) or 'no failed rows'}"


def _plain(example: Example) -> tuple[str, ...]:
    """Audio and message, each on one line, with nothing in it that a terminal obeys."""
    texts = (example.audio, example.message)
    return tuple("".join(one if one.isprintable() else ascii(one)[1:-1] for one in text) for text in texts)
