"""From the results streams to journals and merged step files. Knows neither audio nor models.

Order is what makes it exact: an answer is in the journal and on the disk before it leaves Redis, and of a row's
answers the first counts.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from redis import Redis
from redis.exceptions import OutOfMemoryError

from producer import registry
from producer.aside import THREADS, Piece, never
from producer.errors import FleetError
from producer.job import Job, load_job
from producer.owned import OwnedJob, opened
from producer.read_size import READ_COUNT, ReadSize
from producer.registry import ANNOUNCE_SECONDS
from workers import keys

log = logging.getLogger(__name__)

#: Answers that come a few at a time are gathered for so long: each read ends with a write that waits for the disk.
GATHER_SECONDS = 0.05
#: The share of the time that tries to go on with a job that cannot may take.
TRY_SHARE = 0.05
#: And the longest pause: whoever has made room on a disk waits for the next try.
LONGEST_PAUSE_SECONDS = 600.0
#: A journal is opened, and a step file written, within this time, or the other jobs are served meanwhile.
AT_ONCE_SECONDS = 0.5


class Collector:
    """Serves any number of jobs with one Redis client. Call ``poll`` until nothing is left, all from one thread.

    What takes long where a job is large, reading its journal and writing its step file, is done beside that thread.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._owned: dict[str, OwnedJob] = {}
        self._opening: dict[str, Piece[OwnedJob | Job | None]] = {}
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="collector")
        self._paused_until: dict[str, float] = {}
        self._next_announcement = self._next_read = 0.0
        self._read_size = ReadSize()
        self._said: dict[str, str] = {}

    @property
    def jobs(self) -> list[OwnedJob]:
        """The jobs that this collector serves now."""
        return list(self._owned.values())

    def add(self, job: Job) -> OwnedJob | None:
        """Take a job over: lock it, read its journal, register it. None where another has it, or it is complete."""
        return self._serve(opened(job, never))

    def _serve(self, found: OwnedJob | Job | None) -> OwnedJob | None:
        """Say in Redis what was found, which is served from now on if it is not complete."""
        if isinstance(found, Job):
            with _unless_full():
                registry.publish(self._redis, found.id, found.progress())
            registry.forget(self._redis, found.id)
            return None
        if found is not None:
            try:
                self.announce(found)
            except BaseException:
                found.let_go()
                raise
            self._owned[found.job.id] = found
            self._read_size.begin_small()
        return found

    def announce(self, owned: OwnedJob) -> None:
        """Say in Redis that the job is there and how far it is."""
        with _unless_full():
            registry.register(self._redis, owned.job.registration())
            registry.publish(self._redis, owned.job.id, owned.progress())

    def adopt_registered(self) -> list[OwnedJob]:
        """Take over every registered job whose files this process can write and nobody serves; returns the new ones."""
        known = []
        for registration in registry.registered(self._redis):
            with self._reporting(registration.id):
                job = None if registration.id in self._owned else load_job(Path(registration.output))
                if job is not None and job.id == registration.id:
                    known.append(job)
        return self.adopt(known)

    def adopt(self, jobs: Iterable[Job]) -> list[OwnedJob]:
        """Take over those of ``jobs`` that this process can write and nobody serves; returns the new ones.

        One whose journal takes long to read is given by a later call, whichever jobs that one is for.
        """
        begun = []
        for job in jobs:
            paused = self._paused_until.get(job.id, 0.0) > time.monotonic()
            if not (job.id in self._owned or job.id in self._opening or paused):
                self._opening[job.id] = Piece(self._threads, partial(opened, job))
                begun.append(self._opening[job.id])
        Piece.wait_all(begun, AT_ONCE_SECONDS)
        ended = [job for job, opening in self._opening.items() if opening.wait()]
        return [owned for owned in map(self._adopted, ended) if owned is not None]

    def _adopted(self, job: str) -> OwnedJob | None:
        opening = self._opening.pop(job)
        with self._reporting(job):
            owned = self._serve(opening.result())
            if owned is not None:
                owned.tried_seconds = opening.seconds
                log.info("job %s: %d of %d rows answered", job, owned.journal.answered, owned.journal.rows)
            return owned
        self._paused_until[job] = time.monotonic() + pause_after(opening.seconds)
        return None

    def poll(self, block_seconds: float = 1.0) -> int:
        """Move what has arrived into the journals, and write the steps that are complete; returns the new answers.

        Waits up to ``block_seconds`` for something to arrive. A job that cannot go on keeps its answers where they are
        and says why in ``error``. Raises RedisError (nothing is lost: call again).
        """
        for owned in self.jobs:
            owned.error = None
        if time.monotonic() >= self._next_announcement:
            for owned in self.jobs:
                if not owned.complete:
                    with _failing(owned):
                        owned.check_in_place()
                        if owned.is_asked_back():
                            log.info("job %s: given back, somebody starts over", owned.job.id)
                            self.release(owned)
                        else:
                            self.announce(owned)
            self._next_announcement = time.monotonic() + ANNOUNCE_SECONDS
        new = 0
        if not self._write_complete():
            # Journaled entries are deleted, so what a stream holds is still to be done: always read from its start.
            streams = {keys.results(id): "0" for id, owned in self._owned.items() if _awaits(owned)}
            if streams:
                time.sleep(max(0.0, min(block_seconds, self._next_read - time.monotonic())))
                new = self._read(streams, block_seconds)
            else:
                Piece.wait_all(self._merging(), block_seconds)
            self._write_complete()
        return new

    def _read(self, streams: dict[str, str], block_seconds: float) -> int:
        """Read, and again where all was journaled already that filled a first, small read."""
        new = taken = 0
        while not new and taken < READ_COUNT:
            count = self._read_size.count
            answer = self._redis.xread(cast("Any", streams), count=count, block=max(1, int(block_seconds * 1000)))
            by_stream = {stream: _flat(entries) for stream, entries in dict(cast("Any", answer or ())).items()}
            self._read_size.learn([sum(map(len, fields.values())) for _, fields in each] for each in by_stream.values())
            new = sum(self._take_if_any(owned, by_stream) for owned in self.jobs)
            taken += sum(map(len, by_stream.values()))
            self._next_read = time.monotonic() + (GATHER_SECONDS if new < count // 2 else 0.0)
            full = any(len(entries) >= count for entries in by_stream.values())
            if not full or any(owned.error for owned in self.jobs):
                break
        return new

    def _take_if_any(self, owned: OwnedJob, by_stream: Mapping[bytes, list[tuple[bytes, dict[bytes, bytes]]]]) -> int:
        entries = by_stream.get(keys.results(owned.job.id).encode())
        if entries:
            with _failing(owned):
                return self._take(owned, entries)
        return 0

    def _merging(self) -> list[Piece[Job]]:
        return [owned.merging for owned in self.jobs if owned.merging is not None]

    def release(self, owned: OwnedJob, pause_seconds: float = 0.0) -> None:
        """Give a job back; its journal stays as it is. It is not adopted again before ``pause_seconds`` are over."""
        self._paused_until[owned.job.id] = time.monotonic() + pause_seconds
        self._owned.pop(owned.job.id, None)
        owned.let_go()

    def close(self) -> None:
        """Give all jobs back."""
        for opening in self._opening.values():
            opening.stop()
        for opening in self._opening.values():
            if isinstance(owned := opening.end(), OwnedJob):
                owned.let_go()
        self._opening.clear()
        for owned in self.jobs:
            self.release(owned)
        self._threads.shutdown(wait=False)

    def _take(self, owned: OwnedJob, entries: list[tuple[bytes, dict[bytes, bytes]]]) -> int:
        owned.check_in_place()
        new = owned.journal.append(owned.parts.take(fields.get(keys.RESULT_FIELD, b"") for _, fields in entries))
        with _unless_full(), self._redis.pipeline(transaction=False) as pipe:
            pipe.xdel(keys.results(owned.job.id), *(id for id, _ in entries))
            registry.publish(pipe, owned.job.id, owned.progress())
            pipe.execute()
        return new

    def _write_complete(self) -> bool:
        """Have the steps written whose rows are all answered, beside this thread; whether one is complete now."""
        answered = [owned for owned in self.jobs if owned.answered and not owned.complete and owned.error is None]
        begun = []
        for owned in answered:
            if owned.merging is None:
                owned.merging = Piece(self._threads, owned.merge)
                begun.append(owned.merging)
        Piece.wait_all(begun, AT_ONCE_SECONDS)
        for owned in answered:
            merging = owned.merging
            if merging is not None and merging.wait():
                owned.merging = None
                owned.tried_seconds += merging.seconds
                with _failing(owned):
                    owned.job = _merged(owned, merging)
                    self._say_complete(owned)
        return any(owned.complete for owned in answered)

    def _say_complete(self, owned: OwnedJob) -> None:
        with _unless_full():
            registry.publish(self._redis, owned.job.id, replace(owned.progress(), complete=True))
        registry.forget(self._redis, owned.job.id)
        owned.complete = True
        log.info("job %s: complete, %s", owned.job.id, owned.job.step.path)

    @contextmanager
    def _reporting(self, job: str) -> Iterator[None]:
        """A job that cannot be served here is left to others; said once."""
        try:
            yield
        except (FleetError, OSError) as error:
            if self._said.get(job) != str(error):
                self._said[job] = str(error)
                log.warning("job %s: cannot be served here: %s", job, error)


def pause_after(tried_seconds: float) -> float:
    """Seconds until the next try of what has failed, after one that took so long."""
    return min(LONGEST_PAUSE_SECONDS, tried_seconds / TRY_SHARE)


def _merged(owned: OwnedJob, merging: Piece[Job]) -> Job:
    """Raises FleetError, whatever it was: one job's fault must not end the service of all."""
    try:
        return merging.result()
    except (FleetError, OSError):
        raise
    except Exception as error:
        log.exception("job %s: unexpected failure", owned.job.id)
        raise FleetError(f"{owned.job.step.path}: cannot be written: {type(error).__name__}: {error}") from error


def _awaits(owned: OwnedJob) -> bool:
    return not owned.answered and owned.error is None


@contextmanager
def _failing(owned: OwnedJob) -> Iterator[None]:
    """A job that cannot go on must not keep the others waiting."""
    try:
        yield
    except FleetError as error:
        owned.error = error
    except OSError as error:
        owned.error = FleetError(f"{owned.job.step.job_path}: {error.strerror or error}: was it removed?")


@contextmanager
def _unless_full() -> Iterator[None]:
    """What is published is a picture of the journal. A full Redis does without: collecting is what makes room in it."""
    try:
        yield
    except OutOfMemoryError as error:
        log.warning("the progress of jobs is not published: %s", error)


def _flat(entries: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """The entries of one stream; redis-py nests them once more under RESP3."""
    if entries and isinstance(entries[0], list) and entries[0] and isinstance(entries[0][0], tuple | list):
        return [(id, dict(fields)) for batch in entries for id, fields in batch]
    return [(id, dict(fields)) for id, fields in entries]
