"""Seeing to it that a job ends complete: rows that nobody has, and nobody else sends, are sent."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from celery import Celery
from redis import Redis

from producer.enqueue import enqueuer_for
from producer.errors import FleetError
from producer.follow import RowSet
from producer.in_flight import rows_on_their_way
from producer.job import Job, under_way
from producer.routing import queues_for
from workers.presence import live_workers
from workers.settings import Settings

log = logging.getLogger(__name__)

#: A look at the queues may take this share of the time.
LOOK_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Watched:
    """A job that is looked after: ``answered`` gives the rows that are in its journal, ``count`` says how many."""

    job: Job
    answered: Callable[[], RowSet]
    count: int


@dataclass(slots=True, eq=False)
class _Sender:
    """A thread that sends what a job lacks."""

    thread: threading.Thread
    stop: threading.Event

    def running(self) -> bool:
        return self.thread.is_alive()


@dataclass(slots=True)
class _Standing:
    """What was seen of a job: its answers, and when they were last more than before."""

    count: int
    since: float
    sender: _Sender | None = None


class Reconciler:
    """Sends the rows of jobs that stand still and have rows that are neither answered nor queued, held or uncollected.

    That is so when Redis has lost messages (a flush, a failover to an older copy, a worker killed at the wrong moment),
    and when the producer was killed before it had sent all. Rows that a live producer is about to send are its own
    affair: it holds the job's producer lock. One thread calls ``step``; each job that lacks something is sent by a
    thread of its own, with the same window as ever.

    ``failed`` is told what went wrong with a job; it may be called by those threads.
    """

    def __init__(
        self,
        redis: Redis,
        app: Celery,
        config: Settings,
        failed: Callable[[Job, Exception], None],
        *,
        is_producer: bool = False,
    ) -> None:
        self._redis = redis
        self._app = app
        self._config = config
        self._failed = failed
        #: Whether this process holds the producer locks of its jobs already.
        self._is_producer = is_producer
        self._standings: dict[str, _Standing] = {}
        self._next_look = 0.0
        #: The jobs of which it was said that nobody sends them.
        self._said: set[str] = set()

    def step(self, jobs: Sequence[Watched]) -> None:
        """Look after ``jobs``, and no others from now on. Raises RedisError: call again."""
        for id in self._standings.keys() - {watched.job.id for watched in jobs}:
            self._stop(self._standings.pop(id))
        now = time.monotonic()
        still = []
        for watched in jobs:
            standing = self._standings.setdefault(watched.job.id, _Standing(watched.count, now))
            if watched.count != standing.count:
                self._said.discard(watched.job.id)
            if watched.count != standing.count or (standing.sender and standing.sender.running()):
                standing.count, standing.since = watched.count, now
            elif now - standing.since >= self._config.stall_seconds:
                still.append(watched)
        if still and now >= self._next_look:
            self._look_after(still)

    def send(self, watched: Watched, *, just_scanned: bool = True) -> bool:
        """Send what a job lacks, now; whether it is for this process to send.

        It is not while a producer lives, or where one was stopped on purpose. Raises UsageError for what no live worker
        can do, RedisError. An input that was not ``just_scanned`` is compared with the one that the job began with:
        answers know only the number of their row.
        """
        lock = None
        if not self._is_producer:
            lock = watched.job.step.lock("producer")
            if watched.job.step.stopped_path.exists() or not lock.acquire():
                return False
        try:
            stop = threading.Event()
            present = live_workers(self._redis)
            enqueuer = enqueuer_for(
                *(watched.job, self._app, self._redis, present, self._config), answered=watched.answered, stop=stop
            )
        except BaseException:
            if lock is not None:
                lock.release()
            raise

        def work() -> None:
            try:
                with under_way():
                    if not just_scanned:
                        watched.job.check_input()
                    enqueuer.send_all()
            except Exception as error:  # noqa: BLE001 - handed to whoever waits for the job
                if not stop.is_set():
                    self._failed(watched.job, error)
            finally:
                if lock is not None:
                    lock.release()

        sender = _Sender(threading.Thread(target=work, name=f"send {watched.job.id}", daemon=True), stop)
        self._standings[watched.job.id] = _Standing(watched.count, time.monotonic(), sender)
        sender.thread.start()
        return True

    def close(self) -> None:
        """Stop all senders; returns when they have ended."""
        senders = [standing.sender for standing in self._standings.values() if standing.sender is not None]
        for sender in senders:
            sender.stop.set()
        for sender in senders:
            sender.thread.join()
        self._standings.clear()

    def _look_after(self, still: Sequence[Watched]) -> None:
        began = time.monotonic()
        queues = {queue for one in still for queue in queues_for(one.job.task, one.job.header.options["model"])}
        there = rows_on_their_way(self._redis, queues, [watched.job.id for watched in still])
        now = time.monotonic()
        self._next_look = now + (now - began) / LOOK_SHARE
        for watched in still:
            self._standings[watched.job.id].since = now
            answered = watched.answered()
            lacking = watched.job.rows - watched.count - sum(row not in answered for row in there[watched.job.id])
            if lacking > 0:
                try:
                    if self.send(watched, just_scanned=False):
                        log.warning("job %s: %d rows are neither answered nor on their way", watched.job.id, lacking)
                    else:
                        self._say_if_stopped(watched.job, lacking)
                except (FleetError, OSError) as error:
                    self._failed(watched.job, error)

    def _say_if_stopped(self, job: Job, lacking: int) -> None:
        """Once: who looks at this job's collector would see it stand still."""
        if job.step.stopped_path.exists() and job.id not in self._said:
            self._said.add(job.id)
            log.warning(
                "job %s: %d rows are neither answered nor on their way, and who sent them was stopped: "
                "the command that made the job sends them",
                *(job.id, lacking),
            )

    def _stop(self, standing: _Standing) -> None:
        if standing.sender is not None:
            standing.sender.stop.set()


@contextlib.contextmanager
def producing(job: Job) -> Iterator[None]:
    """The time in which this process sends the rows of ``job``.

    One that is stopped on purpose, or gives up, leaves a mark, so that no collector goes on in its place: the same
    command does. One that is killed cannot.
    """
    job.step.stopped_path.unlink(missing_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            job.step.stopped_path.touch(mode=0o600)
        raise
