"""One step made for a caller in Python, as ``whisper-fleet run`` makes it: from its options to the path of its file."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypedDict, get_type_hints

from pydantic import TypeAdapter, ValidationError
from rich.console import Console

from producer import replace
from producer.connection import Connection
from producer.display import Display
from producer.errors import FleetError, UsageError, reworded, without_commands
from producer.job import Job
from producer.opening import open_job
from producer.registry import Progress
from producer.routing import queue_of_job
from producer.run import RunOptions, check_own_fleet, failed_limit, reach, run_job
from producer.spec import JobSpec
from workers.languages import canonical_language
from workers.messages import ChannelMode, Task
from workers.presence import live_workers
from workers.redis_client import connect
from workers.settings import Settings


class JobOptions(TypedDict, total=False):
    """The options of a job, as on the command line (`producer.options`)."""

    task: Task
    language: str
    prompt: str | None
    channels: ChannelMode
    timestamps: bool
    details: bool
    model: str | None
    media_key: str
    output_key: str
    overwrite_column: bool
    audio_root: str | os.PathLike[str] | None
    cache_path: str | os.PathLike[str]
    prefix: str | None
    step: int
    limit: int | None
    force: bool
    reuse: str | os.PathLike[str] | None


def run_step(
    connection: Connection,
    inputs: Sequence[str | os.PathLike[str]],
    options: JobOptions,
    *,
    max_failed: str | None,
    progress: bool,
) -> Path:
    """Make the step on the fleet of ``connection``. Raises UsageError and FleetError in the words of Python."""
    with reworded(_words_of_python):
        check_limit(max_failed)
        spec = _spec(inputs, options)
        connection.open()
        # An own fleet has the client's model, and no job asks for another: that is checked here and nowhere else.
        own_model = connection.own_model
        if connection.keeper is not None:
            if spec.model not in (None, own_model):
                raise UsageError(f"--model {spec.model}: the client's own fleet has {own_model or 'the default model'}")
            spec = dataclasses.replace(spec, model=own_model)
        job = open_replacing(spec, connection.config, connection.keeper.url if connection.keeper else None)
        with Display(None if progress else Console(quiet=True)) as display:
            limits = RunOptions(max_failed=max_failed)
            job = run_job(job, limits, connection.config, display, connection.keeper)
            result = job.progress()
            display.summary(result)
        check_outcome(result, max_failed)
        return job.step.path


def open_replacing(
    spec: JobSpec, config: Settings, own_url: str | None = None, options: RunOptions | None = None
) -> Job:
    """The job, and nothing left of the one that it replaces on the fleet.

    Whether the fleet can do a new job is asked before anything is replaced. ``own_url``: the broker of the caller's own
    fleet, if that is running; ``options``: of the one that is to be started. Raises UsageError.
    """
    url = config.redis_url or own_url
    # An own fleet was started with the job's model, whatever name the model gives itself.
    model = None if config.redis_url is None else spec.model

    def ask() -> None:
        if url is not None:
            check_fleet(url, spec.task, canonical_language(spec.language), model)
        else:
            check_own_fleet(options or RunOptions())

    replaced = replace.standing(spec)
    job = open_job(spec, ask)
    if replaced is not None and url is not None:
        with closing(connect(url)) as redis:
            replace.forget(redis, replaced)
    return job


def check_fleet(url: str, task: str, language: str, model: str | None) -> None:
    """Raise FleetUnavailableError where the broker does not answer, UsageError for what no live worker can do."""
    with closing(reach(url)) as redis:
        queue_of_job(live_workers(redis), task, language, model)


def check_limit(max_failed: str | None) -> None:
    """Raise UsageError for what is no limit of failed rows."""
    try:
        failed_limit(max_failed, 0)
    except ValueError:
        raise UsageError(f"--max-failed {max_failed}: must be a number of rows or a percentage like 5%") from None


def check_outcome(result: Progress, max_failed: str | None) -> None:
    """Raise FleetError for a complete job of which too much has failed."""
    limit = failed_limit(max_failed, result.rows)
    if limit is not None and result.failed > limit:
        raise FleetError(f"more rows failed than --max-failed {max_failed} allows")
    if result.rows and result.failed == result.rows:
        raise FleetError("no row succeeded")


def _spec(inputs: Sequence[str | os.PathLike[str]], options: Mapping[str, Any]) -> JobSpec:
    kinds = get_type_hints(JobSpec)
    for name in options:
        if name not in kinds or name == "inputs":
            known = ", ".join(one for one in kinds if one != "inputs")
            raise UsageError(f"unknown option {name!r}: there are {known}")
    values = {name: os.fspath(one) if isinstance(one, os.PathLike) else one for name, one in options.items()}
    for name, value in values.items():
        try:
            TypeAdapter(kinds[name]).validate_python(value, strict=True)
        except ValidationError as error:
            raise UsageError(f"{name}={value!r}: {error.errors()[0]['msg']}") from None
    try:
        return JobSpec(tuple(os.fspath(one) for one in inputs), **values)
    except TypeError as error:
        raise UsageError(f"inputs: {error}") from None


_OPTION = re.compile(r"(?<!\S)--([a-z]+(?:-[a-z]+)*)")


def _words_of_python(message: str) -> str:
    """``message`` with arguments (``cache_path``) instead of options of a command line (``--cache-path``)."""
    return _OPTION.sub(lambda found: found[1].replace("-", "_"), without_commands(message))
