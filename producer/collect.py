"""Collecting for a whole fleet: every registered job whose files can be written here, or the ones that are named."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from producer.collector import Collector, OwnedJob
from producer.errors import FleetError, UsageError
from producer.job import Job, load_job
from producer.registry import registered

log = logging.getLogger(__name__)

#: How often new jobs are looked for.
ADOPT_SECONDS = 1.0
POLL_SECONDS = 0.5
RETRY_SECONDS = 2.0


def serve(redis: Redis, names: Sequence[str], report: Callable[[OwnedJob], None]) -> None:
    """Serve the jobs called ``names`` (ids or step files) until they are complete; without names, all, for ever.

    ``report`` is called for a job that is taken over, that moved, and that is complete. An outage of Redis or a full
    disk is waited out: nothing leaves Redis before it is on the disk.
    """
    collector = Collector(redis)
    waiting = {name: _known(redis, name) for name in names}
    next_adoption = 0.0
    try:
        while not names or waiting:
            try:
                if time.monotonic() >= next_adoption:
                    for owned in collector.adopt_registered() if not names else _adopt(collector, waiting):
                        report(owned)
                    next_adoption = time.monotonic() + ADOPT_SECONDS
                if not collector.jobs:
                    time.sleep(POLL_SECONDS)
                _poll(collector, report)
            except (RedisError, FleetError) as error:
                log.warning("trying again: %s", error)
                time.sleep(RETRY_SECONDS)
            waiting = {name: job for name, job in waiting.items() if not job.reload().is_complete()}
    finally:
        collector.close()


def _poll(collector: Collector, report: Callable[[OwnedJob], None]) -> None:
    before = {owned.job.id: owned.journal.answered for owned in collector.jobs}
    collector.poll(POLL_SECONDS)
    for owned in collector.jobs:
        if owned.complete or owned.journal.answered != before.get(owned.job.id):
            report(owned)
        if owned.complete:
            collector.release(owned)


def _adopt(collector: Collector, waiting: dict[str, Job]) -> list[OwnedJob]:
    serving = {owned.job.id for owned in collector.jobs}
    added = [collector.add(job) for job in waiting.values() if job.id not in serving]
    return [owned for owned in added if owned is not None]


def _known(redis: Redis, name: str) -> Job:
    """The job with this id or step file. Raises UsageError where there is none."""
    outputs = [Path(entry.output) for entry in registered(redis) if entry.id == name] or [Path(name)]
    job = load_job(outputs[0])
    if job is None:
        raise UsageError(f"job {name}: not known to this fleet, and no step file of a job: see `whisper-fleet jobs`")
    return job
