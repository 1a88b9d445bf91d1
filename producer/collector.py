"""From the results streams to journals and merged step files. Knows neither audio nor models.

Order is what makes it exact: an answer is in the journal and on the disk before it leaves Redis, and of a row's
answers the first counts.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from redis import Redis

from producer import registry
from producer.cache import FileLock
from producer.errors import FleetError
from producer.job import Job, load_job
from producer.journal import Journal
from producer.registry import Progress
from workers import keys

log = logging.getLogger(__name__)

READ_COUNT = 500


@dataclass(slots=True)
class OwnedJob:
    """A job whose lock this process holds."""

    job: Job
    journal: Journal
    lock: FileLock
    #: Whether its step file is written.
    complete: bool = field(default=False)

    def progress(self) -> Progress:
        """How far it is."""
        journal = self.journal
        return Progress(
            rows=journal.rows,
            answered=journal.answered,
            failed=journal.failed,
            audio_seconds=journal.audio_seconds,
            reasons=journal.reasons,
            complete=self.complete,
        )


class Collector:
    """Serves any number of jobs with one Redis connection. One thread; call ``poll`` until nothing is left."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._owned: dict[str, OwnedJob] = {}

    @property
    def jobs(self) -> list[OwnedJob]:
        """The jobs that this collector serves now."""
        return list(self._owned.values())

    def add(self, job: Job) -> OwnedJob | None:
        """Take a job over: lock it, read its journal, register it. None where another has it, or it is complete."""
        lock = job.step.lock("collector")
        if not lock.acquire():
            return None
        try:
            # Read again now that nobody else writes it: another collector may have finished the job meanwhile.
            job = job.reload()
            if job.is_complete():
                registry.forget(self._redis, job.id)
                lock.release()
                return None
            owned = OwnedJob(job, Journal.open(job.step.journal_path, job.rows), lock)
            self.announce(owned)
        except BaseException:
            lock.release()
            raise
        self._owned[job.id] = owned
        return owned

    def announce(self, owned: OwnedJob) -> None:
        """Say in Redis that the job is there and how far it is."""
        registry.register(self._redis, owned.job.registration())
        registry.publish(self._redis, owned.job.id, owned.progress())

    def adopt_registered(self) -> list[OwnedJob]:
        """Take over every registered job whose files this process can write and nobody serves; returns the new ones."""
        adopted = []
        for registration in registry.registered(self._redis):
            if registration.id in self._owned:
                continue
            job = load_job(Path(registration.output))
            if job is None or job.id != registration.id:
                continue
            try:
                owned = self.add(job)
            except (FleetError, OSError) as error:
                log.warning("job %s cannot be served here: %s", registration.id, error)
                continue
            if owned is not None:
                log.info("job %s: %d of %d rows answered", job.id, owned.journal.answered, owned.journal.rows)
                adopted.append(owned)
        return adopted

    def poll(self, block_seconds: float = 1.0) -> int:
        """Move what has arrived into the journals, and write the steps that are complete; returns the new answers.

        Waits up to ``block_seconds`` for something to arrive. Raises RedisError (nothing is lost: call again) and
        FleetError (a full disk: free space and call again).
        """
        streams = {keys.results(id): "0" for id, owned in self._owned.items() if not owned.complete}
        new = 0
        if streams and not self._finish_complete():
            # Journaled entries are deleted, so whatever a stream holds is still to be done: always read from its start.
            answer = self._redis.xread(cast("Any", streams), count=READ_COUNT, block=int(block_seconds * 1000))
            by_stream = dict(cast("Any", answer or ()))
            for owned in self.jobs:
                entries = by_stream.get(keys.results(owned.job.id).encode())
                if entries:
                    new += self._take(owned, _flat(entries))
        self._finish_complete()
        return new

    def release(self, owned: OwnedJob) -> None:
        """Give a job back; its journal stays as it is."""
        self._owned.pop(owned.job.id, None)
        owned.journal.close()
        owned.lock.release()

    def close(self) -> None:
        """Give all jobs back."""
        for owned in self.jobs:
            self.release(owned)

    def _take(self, owned: OwnedJob, entries: list[tuple[bytes, dict[bytes, bytes]]]) -> int:
        new = owned.journal.append(fields.get(keys.RESULT_FIELD, b"") for _, fields in entries)
        self._redis.xdel(keys.results(owned.job.id), *(id for id, _ in entries))
        registry.publish(self._redis, owned.job.id, owned.progress())
        return new

    def _finish_complete(self) -> bool:
        """Write the steps whose rows are all answered; whether there was one."""
        finished = [owned for owned in self.jobs if not owned.complete and owned.journal.answered == owned.journal.rows]
        for owned in finished:
            owned.job = owned.job.finish(owned.journal)
            owned.complete = True
            registry.publish(self._redis, owned.job.id, owned.progress())
            registry.forget(self._redis, owned.job.id)
            log.info("job %s: complete, %s", owned.job.id, owned.job.step.path)
        return bool(finished)


def _flat(entries: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """The entries of one stream; redis-py nests them once more under RESP3."""
    if entries and isinstance(entries[0], list) and entries[0] and isinstance(entries[0][0], tuple | list):
        return [(id, dict(fields)) for batch in entries for id, fields in batch]
    return [(id, dict(fields)) for id, fields in entries]
