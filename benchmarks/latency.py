"""`python -m benchmarks.latency`: how long somebody waits for one record while a fleet works through a bulk backlog.

Stand-in engines (`benchmarks.standin_fleet`), two workers whose threads all have bulk messages. ``calls``: one
interactive call after another, with a backlog that lasts to the end; the measure is the time of one bulk message
in a worker, because that is what a thread is busy with. ``jobs``: a second job begins while a first one runs.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from benchmarks import worker_logs
from benchmarks.bars import Bar
from benchmarks.outcome import RESULTS, report, tidy_when_ended
from benchmarks.standin_fleet import SPEED, Clock, busy_cores, run_rows, standin_fleet, write_clip, write_rows
from producer.embedded import EmbeddedFleet
from producer.enqueue import enqueuer_for
from producer.follow import Follower
from producer.opening import open_job
from producer.spec import JobSpec
from workers.app import PRIORITY_BULK, PRIORITY_INTERACTIVE, create_app
from workers.presence import live_workers
from workers.redis_client import connect
from workers.settings import load_settings
from workers.spare_thread import bulk_threads

PARTS = ("calls", "jobs")
WORKERS = 2
BACKLOG, CALLS, JOB_ROWS = 100_000, 100, 1500
#: Rows of a job between sent and journaled: what a second job finds before it in the queue.
WINDOW_ROWS = 200
#: Least part of all answers that the second job gets while both run; half would be even.
LEAST_SHARE = 0.4
CALL_SECONDS = 600.0

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    backlog: Annotated[int, typer.Option(min=1, help="Bulk rows in the queue.")] = BACKLOG,
    calls: Annotated[int, typer.Option(min=1, help="Interactive calls, one after another.")] = CALLS,
    job_rows: Annotated[int, typer.Option(min=300, help="Rows of each of two jobs.")] = JOB_ROWS,
    parts: Annotated[str, typer.Option(help="Parts to run, by commas.")] = ",".join(PARTS),
    results_folder: Annotated[Path, typer.Option("--results", help="Folder of the JSON report.")] = RESULTS,
) -> None:
    """Measure interactive calls behind a bulk backlog. Exit code 1 if they wait longer than a bulk message takes."""
    tidy_when_ended()
    chosen = parts.split(",")
    if wrong := set(chosen) - set(PARTS):
        raise typer.BadParameter(f"--parts: {', '.join(sorted(wrong))}: choose from {', '.join(PARTS)}")
    figures: dict[str, Any] = {}
    tables, judged = [], list[Bar]()
    with tempfile.TemporaryDirectory(prefix="bench-latency-") as temporary:
        folder = Path(temporary)
        with standin_fleet(folder / "fleet", WORKERS) as fleet:
            if "jobs" in chosen:  # first: it wants an empty queue
                figures["jobs"] = _two_jobs(fleet, folder, job_rows)
                judged.append(Bar("share of the later of two jobs", figures["jobs"]["share"], LEAST_SHARE, True))
                tables.append(_jobs_table(figures["jobs"]))
            if "calls" in chosen:
                figures["calls"] = _calls(fleet, folder, backlog, calls)
                judged.append(Bar("p95 of a call, in bulk messages", figures["calls"]["p95_messages"], 1.0))
                tables.append(_calls_table(figures["calls"]))
    whole = (backlog, calls, job_rows, tuple(chosen)) == (BACKLOG, CALLS, JOB_ROWS, PARTS)
    options = {"workers": WORKERS, "backlog": backlog, "calls": calls, "job_rows": job_rows, "standin": dict(SPEED)}
    report("latency", options, judged, figures, tables, results_folder, whole=whole)


def _calls(fleet: EmbeddedFleet, folder: Path, backlog: int, calls: int) -> dict[str, Any]:
    clip = write_clip(folder)
    source = write_rows(folder / "backlog.jsonl", clip, backlog)
    before = len(_done(fleet))
    _enqueue(fleet, source, folder / "steps", backlog)
    threads = WORKERS * bulk_threads(int(SPEED["WHISPER_CONCURRENCY"]))
    # Every thread has ended a message: they are at different points of their next ones, as they will be for hours.
    while len(_done(fleet)) - before < threads:
        time.sleep(0.2)
    began, waits = time.time(), []
    with (
        contextlib.closing(create_app(load_settings(REDIS_URL=fleet.url))) as celery,
        contextlib.closing(connect(fleet.url)) as redis,
        busy_cores() as busy,
    ):
        for number in range(calls):
            asked = time.monotonic()
            answer = celery.send_task(
                "whisper.transcribe",
                [[{"audio": str(clip), "language": "en"}]],
                queue="transcribe",
                priority=PRIORITY_INTERACTIVE,
            )
            answer.get(timeout=CALL_SECONDS)
            waits.append(time.monotonic() - asked)
            answer.forget()
            if (number + 1) % 20 == 0:
                typer.echo(f"{number + 1} calls, median {statistics.median(waits):.2f} s", err=True)
        left = redis.llen(f"transcribe:{PRIORITY_BULK}")
    if not left:
        raise RuntimeError(f"the backlog of {backlog} rows did not last for {calls} calls")
    meanwhile = [message for message in _done(fleet) if message.ended >= began]
    bulk = statistics.median(message.seconds for message in meanwhile if message.rows)
    p95 = percentile(waits, 95)
    return {
        "calls": calls,
        "p50_seconds": round(statistics.median(waits), 3),
        "p95_seconds": round(p95, 3),
        "longest_seconds": round(max(waits), 3),
        "in_worker_seconds": round(statistics.median(one.seconds for one in meanwhile if not one.rows), 3),
        "message_seconds": round(bulk, 3),
        "message_rows": round(statistics.median(message.rows for message in meanwhile if message.rows)),
        "p95_messages": round(p95 / bulk, 3),
        "messages_left": left,
        "busy_cores_share": busy["share"],
        "waits_seconds": [round(wait, 3) for wait in waits],
    }


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least ``percent`` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def _enqueue(fleet: EmbeddedFleet, source: Path, cache: Path, rows: int) -> None:
    """All rows at once: a job as `whisper-fleet enqueue` sends it, with a window that holds all of it."""
    settings = load_settings(REDIS_URL=fleet.url, window_rows=rows)
    job = open_job(JobSpec((str(source),), cache_path=str(cache)))
    with contextlib.closing(connect(fleet.url)) as redis, contextlib.closing(create_app(settings)) as celery:
        answered, stop = Follower(job).read, threading.Event()
        enqueuer_for(job, celery, redis, live_workers(redis), settings, answered, stop).send_all()


def _done(fleet: EmbeddedFleet) -> list[worker_logs.Message]:
    return [message for number in range(1, WORKERS + 1) for message in worker_logs.messages(fleet.log_path(number))]


def _two_jobs(fleet: EmbeddedFleet, folder: Path, rows: int) -> dict[str, Any]:
    """The second job begins once a tenth of the first one is answered."""
    source = write_rows(folder / "job.jsonl", write_clip(folder), rows)
    clocks = Clock(), Clock()
    with ThreadPoolExecutor(2) as threads, busy_cores() as busy:
        try:
            jobs = [threads.submit(run_rows, fleet.url, source, folder / "first", clocks[0], window_rows=WINDOW_ROWS)]
            while clocks[0].answered < rows // 10:
                if jobs[0].done():
                    jobs[0].result()
                    raise RuntimeError("the first job was over before the second could begin")
                time.sleep(0.05)
            began = time.monotonic()
            jobs.append(
                threads.submit(run_rows, fleet.url, source, folder / "second", clocks[1], window_rows=WINDOW_ROWS)
            )
            for job in jobs:
                job.result()
        except BaseException:  # or the threads would be waited for until their jobs are done
            for clock in clocks:
                clock.stopped = True
            raise
    first, second = (clock.seen for clock in clocks)
    return {
        "rows": rows,
        "window_rows": WINDOW_ROWS,
        "share": share(first, second),
        "second_waits_seconds": round((clocks[1].first or began) - began, 3),
        "busy_cores_share": busy["share"],
    }


def share(first: Sequence[tuple[float, int]], second: Sequence[tuple[float, int]]) -> float | None:
    """The second job's part of all answers that came while both ran, after its first ones.

    0.0 if it got none before the first was done: it had begun long before. None if neither got any.
    """
    since = next((when for when, answered in second if answered), float("inf"))
    until = min(first[-1][0], second[-1][0])
    if until <= since:
        return 0.0
    gained = [_at(job, until) - _at(job, since) for job in (first, second)]
    return round(gained[1] / sum(gained), 3) if sum(gained) else None


def _at(seen: Sequence[tuple[float, int]], when: float) -> int:
    return max((answered for at, answered in seen if at <= when), default=0)


def _calls_table(found: Mapping[str, Any]) -> Table:
    table = Table("", title=f"{found['calls']} calls behind a bulk backlog")
    table.add_column("seconds", justify="right")
    table.add_column("bulk messages", justify="right")
    names = {"p50_seconds": "median", "p95_seconds": "p95", "longest_seconds": "longest"}
    names |= {"in_worker_seconds": "of which in the worker (median)", "message_seconds": "a bulk message (median)"}
    for key, name in names.items():
        table.add_row(name, f"{found[key]:.2f}", f"{found[key] / found['message_seconds']:.2f}")
    return table


def _jobs_table(found: Mapping[str, Any]) -> Table:
    table = Table("two jobs at once", title=f"{found['rows']} rows each, windows of {found['window_rows']} rows")
    table.add_column("", justify="right")
    table.add_row("the later one's share while both run", "-" if found["share"] is None else f"{found['share']:.2f}")
    table.add_row("its first answer after (s)", f"{found['second_waits_seconds']:.2f}")
    return table


if __name__ == "__main__":
    app()
