"""The command line. Exit codes: 0 done, 1 failed (no row succeeded, too many failed, a part would not run),
2 bad input or arguments, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import dataclasses
import logging
import signal
import sys
import threading
import time
from typing import Annotated, Any

import typer
from celery.utils.nodenames import default_nodename, host_format
from redis import Redis
from redis.exceptions import RedisError
from rich.console import Console

from producer import cli_failed, registry, services
from producer.cancel import cancel as cancel_job
from producer.collect import serve
from producer.display import Display, result_table
from producer.enqueue import enqueuer_for
from producer.errors import FleetError, UsageError
from producer.follow import Follower
from producer.interruption import Terminated, resumable
from producer.job import Job, under_way
from producer.options import takes_job
from producer.reconcile import producing
from producer.registry import Progress
from producer.run import own_fleet_options, reach, run_job
from producer.spec import JobSpec
from producer.standing import SETTLE_SECONDS
from producer.step import check_limit, check_outcome, open_replacing
from workers import discretion
from workers.app import create_app
from workers.errors import SettingsError
from workers.presence import live_workers
from workers.redis_client import reason, shown_url
from workers.settings import DEFAULT_REDIS_URL, Settings, settings, variables
from workers.startup import starting_workers

app = typer.Typer(
    name="whisper-fleet",
    help="Transcribe and translate audio datasets with a fleet of vLLM Whisper workers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command()
@takes_job
def run(
    spec: JobSpec,
    tensor_parallel_size: Annotated[int | None, typer.Option(min=1, help="GPUs per engine (own fleet only).")] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Local workers to start, each on its GPUs or its share of the cores: 1 (own fleet only)."
        ),
    ] = None,
    max_failed: Annotated[
        str | None, typer.Option(metavar="N|P%", help="Give the job up when more rows have failed.")
    ] = None,
    table: Annotated[bool, typer.Option("--table", help="Show file, language and text at the end.")] = False,
) -> None:
    """Transcribe INPUT into the next step file; its path is the last line of stdout.

    Without REDIS_URL a private Valkey and a local worker are started and stopped again; with it, that fleet is used.
    The same command again resumes what was interrupted.
    """
    check_limit(max_failed)
    config = settings()
    options = own_fleet_options(config, workers, tensor_parallel_size, max_failed)
    job = open_replacing(_with_model(spec, config), config, options=options)
    with resumable(job, force=spec.force), Display() as display:
        job = run_job(job, options, config, display)
    result = job.progress()
    display.summary(result)
    if table:
        Console().print(result_table(job.step.path, spec.media_key, spec.output_key))
    typer.echo(str(job.step.path))
    check_outcome(result, max_failed)


@app.command()
@takes_job
def enqueue(spec: JobSpec) -> None:
    """Send INPUT to the fleet of REDIS_URL, for a collector to write the step file. Prints the job's name.

    Stays at most a window of rows ahead of the collector, waits where Redis is full or away, and ends when the last
    rows are sent. If it is killed before, the collector sends the rest; if it is interrupted, the same command does.
    """
    config = settings()
    url, redis = _broker(config)
    job = open_replacing(spec, config)
    if job.is_complete():
        typer.echo(f"{job.step.path} is complete already", err=True)
        typer.echo(job.id)
        return
    with resumable(job, force=spec.force), job.step.lock("producer") as lock:
        deadline = time.monotonic() + SETTLE_SECONDS
        while not lock.acquire():  # whoever was about to cancel the job sees that it is resumed, and lets go
            if time.monotonic() > deadline:
                raise FleetError(f"{job.step.path}: {lock.holder()} is sending this job already")
            time.sleep(0.05)
        sent = _send(job, redis, config)
    typer.echo(f"{sent} rows sent to {shown_url(url)}", err=True)
    typer.echo(job.id)


@app.command()
def collect(
    jobs: Annotated[list[str] | None, typer.Argument(metavar="[JOB]...", help="Names or step files of jobs.")] = None,
) -> None:
    """Write the step files of jobs on REDIS_URL. Without JOB: of every job, until stopped.

    Any number of collectors may run: each job has one owner at a time, by a lock beside its step file. Its owner also
    sends what Redis has lost of it, and what a killed producer has not sent.
    """
    config = settings()
    _, redis = _broker(config)

    def report(job: Job, progress: Progress) -> None:
        typer.echo(f"{job.id}: {progress.answered} of {progress.rows} rows, {progress.failed} failed", err=True)
        if progress.complete:
            typer.echo(str(job.step.path))

    serve(redis, jobs or (), report, config)


@app.command()
def jobs() -> None:
    """List the jobs that are registered on REDIS_URL, and how far they are."""
    _, redis = _broker(settings())
    for entry in sorted(registry.registered(redis), key=lambda one: (one.created, one.id)):
        progress = registry.read(redis, entry.id) or Progress()
        typer.echo(f"{entry.id}: {progress.answered} of {entry.rows} rows, {progress.failed} failed, {entry.output}")


@app.command()
def cancel(
    jobs: Annotated[list[str], typer.Argument(metavar="JOB|STEP...", help="Names or step files of jobs.")],
) -> None:
    """Give up jobs on REDIS_URL: what waits in queues is taken back, and who sends or collects them lets go.

    What workers have begun, all of a long recording too, they finish. The answers so far are kept: the command that
    made a job resumes it.
    """
    _, redis = _broker(settings())
    errors: list[FleetError] = []
    for name in jobs:
        try:
            typer.echo(cancel_job(redis, name))
        except FleetError as error:
            errors.append(error)
    for one in errors[:-1]:
        typer.echo(f"whisper-fleet: {one}", err=True)
    if errors:
        raise errors[-1]


app.command()(cli_failed.failed)
app.command()(cli_failed.retry)


@app.command()
def workers(
    name: Annotated[str | None, typer.Option(help="Only this one; %h is the host. Serves as a health check.")] = None,
) -> None:
    """List the live workers of REDIS_URL: those whose engine is loaded. Ends with 1 where there are none."""
    _, redis = _broker(settings())
    wanted = None if name is None else host_format(default_nodename(name))
    live = sorted((one for one in live_workers(redis) if wanted in (None, one.name)), key=lambda one: one.name)
    for starting in starting_workers(redis):
        if wanted in (None, starting.name):
            typer.echo(f"{starting.name}: {starting.doing} ({starting.total_seconds:.0f} s)", err=True)
    if not live:
        raise FleetError("no live worker" if wanted is None else f"{wanted} is not among the live workers")
    for one in live:
        load = f"{one.windows_running} windows running, {one.windows_waiting} waiting"
        typer.echo(f"{one.name}: {one.model} on {one.device}, {load}, queues {', '.join(one.queues) or 'none'}")


@app.command(context_settings=PASS_ON)
def worker(
    context: typer.Context,
    model: Annotated[str | None, typer.Option(help="Model to load (WHISPER_MODEL).")] = None,
    tensor_parallel_size: Annotated[int | None, typer.Option(min=1, help="GPUs that share the engine.")] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="Name in Flower, each worker's own; %h is the host.", show_default="worker@%h, the next one worker2@%h"
        ),
    ] = None,
) -> None:
    """Run a worker on REDIS_URL. Further arguments go to `celery worker`, as in -Q transcribe.

    Not --pool, --autoscale and --detach: it has threads of its own, as many from start to end, and is seen to here.
    One that fails, or loses its engine, is started again (WHISPER_WORKER_RESTARTS). SIGTERM and Ctrl-C let it finish
    what it has begun (WHISPER_DRAIN_SECONDS); a second one ends it at once, and its records go back to the queue.
    """
    changes = variables(model=model, tensor_parallel_size=tensor_parallel_size)
    config = settings()  # a wrong setting is one line here, not one for every restart
    _url(config)  # Celery's own is this machine's, where nobody would look for the worker
    raise typer.Exit(services.run_worker(context.args, changes, name, config))


@app.command(context_settings=PASS_ON)
def flower(
    context: typer.Context,
    address: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 5555,
) -> None:
    """Start Flower on REDIS_URL, with the fleet's queues and tasks. Password: FLOWER_BASIC_AUTH=user:password."""
    config = settings()
    _url(config)
    services.run_flower(address, port, context.args, config)


def _with_model(spec: JobSpec, config: Settings) -> JobSpec:
    """An own fleet loads what WHISPER_MODEL says: that is part of what the job is."""
    if spec.model is None and config.redis_url is None:
        return dataclasses.replace(spec, model=config.model)
    return spec


def _send(job: Job, redis: Redis, config: Settings) -> int:
    with producing(job):
        present, stop = live_workers(redis), threading.Event()
        enqueuer = enqueuer_for(job, create_app(config), redis, present, config, Follower(job).read, stop)
        with under_way():
            enqueuer.send_all()
    return enqueuer.sent


def _url(config: Settings) -> str:
    """The shared broker's URL. Raises UsageError."""
    if config.redis_url is None:
        raise UsageError(f"REDIS_URL is not set: name the fleet's broker, as in REDIS_URL={DEFAULT_REDIS_URL}")
    return config.redis_url


def _broker(config: Settings) -> tuple[str, Redis]:
    """The shared broker, which has to answer. Raises UsageError and FleetUnavailableError."""
    url = _url(config)
    return url, reach(url)


def _terminate(*_: Any) -> None:
    raise Terminated


def main() -> None:
    """Run the command line, and turn what goes wrong into one line and an exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    discretion.guard(logging.getLogger())
    try:
        app()
    except (FleetError, SettingsError) as error:
        typer.echo(f"whisper-fleet: {error}", err=True)
        sys.exit(error.exit_code if isinstance(error, FleetError) else UsageError.exit_code)
    except RedisError as error:
        typer.echo(f"whisper-fleet: Redis does not answer: {reason(error)}", err=True)
        sys.exit(1)
    except Terminated:
        sys.exit(143)
