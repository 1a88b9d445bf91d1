"""Giving jobs up: nobody sends or collects their rows any more, and no worker takes one. What is answered is kept.

The mark in the job's folder is what counts; whoever is at the job looks for it every few seconds. What workers have
begun they finish: those answers wait in Redis, for a while, for somebody who resumes the job.
"""

from __future__ import annotations

import time

from redis import Redis

from producer import registry
from producer.disk import disk_errors
from producer.errors import FleetError, UsageError
from producer.file_lock import FileLock
from producer.in_flight import withdraw
from producer.job import Job, load_job
from producer.journal import Journal
from producer.lookup import job_at, output_of
from producer.registry import ANNOUNCE_SECONDS, Registration
from producer.routing import queues_for
from workers.app import PRIORITY_BULK
from workers.messages import TASKS

#: Whoever is at a job lets go of it within this time, if it does.
GIVE_UP_SECONDS = 6 * ANNOUNCE_SECONDS
#: Somebody else would have registered a job again within this time.
ANNOUNCED_AGAIN_SECONDS = ANNOUNCE_SECONDS + 2.0


def cancel(redis: Redis, name: str) -> str:
    """Give up the job with this id or step file; returns what came of it, in a line.

    Raises UsageError where there is none, or nothing to give up, and FleetError where somebody keeps at it.
    """
    job = job_at(name)
    if job is None:
        output = output_of(name, redis)
        job = None if output is None else load_job(output)
        if job is None or job.id != name:  # at this path may be another job by now, or another machine's
            return _forget(redis, name)
    if job.is_finished():
        raise UsageError(f"{job.step.path}: is complete: there is nothing to cancel")
    try:
        with disk_errors(job.step.cancelled_path):
            job.cancel()
        _end(redis, job)
        answered = len(Journal.read_answered(job.step.journal_path, job.rows))
    except FileNotFoundError:
        take_back(redis, job)
        return f"{job.id}: cancelled, and its job folder was removed meanwhile"
    return f"{job.id}: cancelled with {answered} of {job.rows} rows answered, which are kept in {job.step.job_path}"


def _end(redis: Redis, job: Job) -> None:
    """Wait until nobody is at the job, and take it out of Redis. Raises FileNotFoundError where its folder is gone."""
    deadline = time.monotonic() + GIVE_UP_SECONDS
    with job.step.lock("producer") as producing, job.step.lock("collector") as collecting:
        while (busy := _first_busy(producing, collecting)) is not None:
            _check_cancelled(job)
            if time.monotonic() > deadline:
                raise FleetError(
                    f"{job.step.path}: {busy.holder()} is still at it after {GIVE_UP_SECONDS:.0f} s: "
                    "it lets go as soon as it sees that the job is cancelled: cancel it again then, or stop that one"
                )
            time.sleep(0.05)
        _check_cancelled(job)
        take_back(redis, job)


def _first_busy(*locks: FileLock) -> FileLock | None:
    """Take the locks; the first that somebody else has, None where all are taken."""
    return next((lock for lock in locks if not lock.acquire()), None)


def _check_cancelled(job: Job) -> None:
    """Raise UsageError where the job was finished or resumed meanwhile, or is another one by now."""
    if not job.is_cancelled():
        job.step.header_path.stat()
        what = "is complete by now" if job.reload().is_finished() else "was resumed or replaced meanwhile"
        raise UsageError(f"{job.step.path}: {what}: nothing was cancelled")


def take_back(redis: Redis, job: Job) -> None:
    """Take the job's messages out of the queues, and its registration: no worker and no collector begins with it."""
    withdraw(redis, queues_for(job.task, job.header.options["model"]), job.id)
    registry.unregister(redis, job.id)


def _forget(redis: Redis, id: str) -> str:
    """Take a job whose files are not here out of Redis. Raises FleetError where somebody puts it back."""
    registration = _registered(redis, id)
    if registration is None:
        raise UsageError(f"{id}: no step file of a job, with its job folder beside it, and no job's id: see `jobs`")
    registry.unregister(redis, id)
    deadline = time.monotonic() + ANNOUNCED_AGAIN_SECONDS
    while time.monotonic() < deadline:
        if _registered(redis, id) is not None:
            raise FleetError(f"{id}: somebody is at it where its files are ({registration.output}): cancel it there")
        time.sleep(0.5)
    withdraw(redis, _all_queues(redis), id)
    registry.unregister(redis, id)
    return f"{id}: forgotten: it is not in {registration.output} as this machine sees it, and nobody is at it"


def _registered(redis: Redis, id: str) -> Registration | None:
    return next((one for one in registry.registered(redis) if one.id == id), None)


def _all_queues(redis: Redis) -> set[str]:
    """The queues in which messages of jobs wait, whatever model they are for."""
    plain = [queue for task in TASKS for queue in queues_for(task, None)]
    suffix = f":{PRIORITY_BULK}"
    found = (key.decode() for queue in plain for key in redis.scan_iter(match=f"{queue}*{suffix}", count=1000))
    return {*plain, *(key.removesuffix(suffix) for key in found)}
