"""A running job's answers: collected here, or by a collector of the fleet that has the job already."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from redis import Redis

from producer import registry
from producer.collector import Collector
from producer.follow import Follower, RowSet
from producer.job import Job
from producer.owned import OwnedJob
from producer.reconcile import Watched
from producer.registry import Progress

POLL_SECONDS = 0.5


@dataclass(slots=True)
class Collection:
    """The answers of one job. Takes the job over as soon as nobody else collects it."""

    collector: Collector
    redis: Redis
    job: Job
    owned: OwnedJob | None = None
    _follower: Follower = field(init=False)

    def __post_init__(self) -> None:
        self._follower = Follower(self.job)

    def take(self) -> bool:
        """Collect the job here from now on, unless another process does; whether it is so."""
        if self.owned is None:
            self.owned = self.collector.add(self.job)
        return self.owned is not None

    @property
    def writing(self) -> bool:
        """Whether the step file is being written here."""
        return self.owned is not None and self.owned.merging is not None

    def poll(self, seconds: float = POLL_SECONDS) -> int:
        """Wait up to ``seconds`` for answers; returns how many came here.

        Raises FleetError, also where the job was cancelled or replaced, and RedisError.
        """
        self.job.current()
        if not self.take() or self.owned is None:
            time.sleep(seconds)
            return 0
        new = self.collector.poll(seconds)
        if self.owned.error is not None:
            raise self.owned.error
        return new

    def progress(self) -> Progress:
        """How far the job is. ``complete`` is what its files say (`Job.current` and its error), not Redis."""
        if self.owned is not None:
            return self.owned.progress()
        published = registry.read(self.redis, self.job.id) or Progress(rows=self.job.rows)
        return replace(published, complete=self.job.current().is_finished())

    def answered(self) -> RowSet:
        """The rows that are answered and on the disk."""
        return self.owned.journal if self.owned is not None else self._follower.read()

    def watched(self) -> Watched:
        """The job as it stands now."""
        if self.owned is not None:
            return Watched(self.job, self.answered, self.owned.journal.answered)
        self._follower.read()
        return Watched(self.job, self.answered, self._follower.count)
