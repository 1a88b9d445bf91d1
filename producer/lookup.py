"""A job by the name that a person gives it: its id, or its step file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from redis import Redis

from producer import registry
from producer.errors import UsageError
from producer.job import Job, load_job


def find_job(name: str, broker: Callable[[], Redis] | None) -> Job:
    """The job with this step file, or with this id on the broker, which is asked only then.

    Raises UsageError where there is none.
    """
    job = job_at(name)
    if job is None and broker is not None:
        with broker() as redis:
            output = output_of(name, redis)
        job = None if output is None else load_job(output)
    if job is None:
        where = "set REDIS_URL to name a job by its id" if broker is None else "see `whisper-fleet jobs`"
        raise UsageError(f"{name}: no step file of a job, with its job folder beside it, and no job's id: {where}")
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
