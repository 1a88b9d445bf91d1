"""A job by the name that a person gives it: its id, or its step file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from redis import Redis

from producer import registry
from producer.errors import UsageError
from producer.job import Job, load_job

_NEITHER = "no step file of a job, with its job folder beside it, and no job's id"


def find_job(name: str, broker: Callable[[], Redis] | None) -> Job:
    """The job with this step file, or with this id on the broker, which is asked only then.

    Raises UsageError where there is none.
    """
    job = job_at(name)
    if job is None and broker is not None:
        with broker() as redis:
            return job_of(name, redis)
    if job is None:
        raise UsageError(f"{name}: {_NEITHER}: set REDIS_URL to name a job by its id")
    return job


def job_of(name: str, redis: Redis) -> Job:
    """The job with this step file, or with this id on the broker. Raises UsageError where there is none."""
    job = job_at(name)
    if job is not None:
        return job
    output = output_of(name, redis)
    if output is None:
        raise UsageError(f"{name}: {_NEITHER}: see `whisper-fleet jobs`")
    job = job_at(str(output))
    if job is None:
        raise UsageError(f"job {name}: its step file {output} is not on this machine: run this where it is")
    return job


def job_at(name: str) -> Job | None:
    """The job with this step file, None where there is none. Raises UsageError for one that cannot be read."""
    try:
        return load_job(Path(name))
    except (OSError, ValueError):  # no path at all
        return None


def output_of(name: str, redis: Redis) -> Path | None:
    """Where the broker's job with this id writes its step, as the machine says that is at it."""
    progress = registry.read(redis, name)  # it outlives the registration: the job may be complete by now
    if progress is not None and progress.step_path:
        return Path(progress.step_path)
    return next((Path(entry.output) for entry in registry.registered(redis) if entry.id == name), None)
