"""What ``--force`` leaves of the job that was at the same output path: nothing in Redis either."""

from __future__ import annotations

import logging

from redis import Redis
from redis.exceptions import RedisError

from producer import registry
from producer.cache import Step
from producer.errors import UsageError
from producer.header import JobHeader
from producer.in_flight import withdraw
from producer.inputs import default_prefix, expand_inputs
from producer.job import Job
from producer.locating import absolute
from producer.routing import queues_for
from producer.spec import JobSpec

log = logging.getLogger(__name__)


def standing(spec: JobSpec) -> Job | None:
    """The job that ``spec`` is about to replace, None where there is none. Raises UsageError for missing inputs."""
    if not spec.force:
        return None
    prefix = spec.prefix or default_prefix(expand_inputs(spec.inputs))
    step = Step(absolute(spec.cache_path), prefix, spec.step + 1)
    try:
        header = JobHeader.read(step.header_path)
    except UsageError:  # damaged, or of another version: that is why it is replaced
        return None
    return None if header is None else Job(step, header)


def forget(redis: Redis, job: Job) -> None:
    """Take a job that was replaced out of Redis: its queued messages, answers and registration.

    What workers hold of it they finish; nobody reads those answers, and they expire.
    """
    try:
        taken = withdraw(redis, queues_for(job.task, job.header.options["model"]), job.id)
        registry.forget(redis, job.id)
        if taken:
            log.warning("job %s: replaced; %d messages are taken back", job.id, taken)
    except RedisError as error:
        log.warning("job %s: replaced, but still known to the fleet: %s", job.id, error)
