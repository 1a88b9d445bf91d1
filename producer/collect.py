"""Collecting for a whole fleet: every registered job whose files can be written here, or the ones that are named."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from redis import Redis
from redis.exceptions import NoPermissionError, RedisError

from producer.collector import Collector, pause_after
from producer.disk import may_pass
from producer.display import LINE_SECONDS
from producer.errors import FleetError, JobCancelledError, UsageError
from producer.job import Job
from producer.lookup import job_of
from producer.owned import OwnedJob
from producer.reconcile import Reconciler, Watched
from producer.registry import Progress
from workers.app import create_app
from workers.redis_client import reason
from workers.settings import Settings

log = logging.getLogger(__name__)

#: How often new jobs are looked for.
ADOPT_SECONDS = 1.0
POLL_SECONDS = 0.5
RETRY_SECONDS = 2.0

Report = Callable[[Job, Progress], None]


def serve(redis: Redis, names: Sequence[str], report: Report, config: Settings) -> None:
    """Serve the jobs called ``names`` (ids or step files) until they are complete; without names, all, for ever.

    ``report`` is called for a job that is taken over, now and then while it moves, and when it is let go or complete,
    whoever completed it. An
    outage of Redis or a full disk is waited out: nothing leaves Redis before it is on the disk. Rows that Redis has
    lost, or that a killed producer has not sent, are sent (`producer.reconcile`). Raises FleetError for a right that
    Redis's user does not have (any more), and in the end JobCancelledError for a named job that was cancelled.
    """
    collector = Collector(redis)
    reconciler = Reconciler(redis, create_app(config), config, _not_sent)
    reports = _Reports(report)
    named = {job.id: job for job in (job_of(name, redis) for name in names)}
    next_adoption = 0.0
    try:
        while True:
            try:
                waiting = [job for job in named.values() if not job.is_cancelled()]  # or was resumed since
                if names and not waiting:
                    break
                if time.monotonic() >= next_adoption:
                    current = [job.reload() for job in waiting]
                    for owned in collector.adopt(current) if names else collector.adopt_registered():
                        reports.say(owned.job, owned.progress())
                    next_adoption = time.monotonic() + ADOPT_SECONDS
                if not collector.jobs:
                    time.sleep(POLL_SECONDS)
                for job in _poll(collector, reports, config.stall_seconds):  # it may have been replaced by another one
                    named = {id: one for id, one in named.items() if one.step != job.step}
                reconciler.step([_watched(owned) for owned in collector.jobs])
                for id, job in [(id, job.reload()) for id, job in named.items()]:
                    if job.is_finished() and job.id not in {owned.job.id for owned in collector.jobs}:
                        reports.say(job, job.progress())  # another collector was faster
                        del named[id]
            except NoPermissionError as error:
                raise FleetError(f"Redis: {reason(error)}") from error
            except (RedisError, FleetError) as error:
                if isinstance(error, UsageError) and not may_pass(error):
                    raise
                log.warning("trying again: %s", error)
                time.sleep(RETRY_SECONDS)
    finally:
        reconciler.close()
        collector.close()
    for job in named.values():
        raise job.cancelled()


def _watched(owned: OwnedJob) -> Watched:
    return Watched(owned.job, lambda: owned.journal, owned.journal.answered)


def _not_sent(job: Job, error: Exception) -> None:
    log.warning("job %s: cannot be sent from here: %s", job.id, error)


class _Reports:
    """Says how far jobs are: of one that moves not each time."""

    def __init__(self, report: Report) -> None:
        self._report = report
        #: How many rows of a job were answered when that was said last, and when (`time.monotonic`).
        self._said: dict[str, tuple[int, float]] = {}

    def say(self, job: Job, progress: Progress) -> None:
        self._said[job.id] = (progress.answered, time.monotonic())
        if progress.complete:
            del self._said[job.id]
        self._report(job, progress)

    def say_if_due(self, owned: OwnedJob) -> None:
        """What has moved, unless something was said just before and it goes on."""
        answered, at = self._said.get(owned.job.id, (-1, float("-inf")))
        moved = owned.journal.answered != answered
        if owned.complete or (moved and (owned.error is not None or time.monotonic() >= at + LINE_SECONDS)):
            self.say(owned.job, owned.progress())


def _poll(collector: Collector, reports: _Reports, pause_seconds: float) -> list[Job]:
    """Move on, report what moved, and give back what is complete (returned) or cannot go on (for a pause)."""
    collector.poll(POLL_SECONDS)
    complete = []
    for owned in collector.jobs:
        reports.say_if_due(owned)
        if owned.complete:
            complete.append(owned.job)
            collector.release(owned)
        elif isinstance(owned.error, JobCancelledError):
            log.warning("job %s: let go of: %s", owned.job.id, owned.error)
            collector.release(owned)
        elif owned.error is not None:
            pause = max(pause_seconds, pause_after(owned.tried_seconds))
            log.warning("job %s: tried again in %.0f s, or by a restart: %s", owned.job.id, pause, owned.error)
            collector.release(owned, pause)
    return complete
