"""Whom a producer waits for when nothing moves: a collector, a worker, or one with the job's model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from redis import Redis

from producer.errors import UsageError
from producer.job import Job
from producer.patience import Patience
from producer.routing import queues_for, serves
from workers import keys
from workers.presence import Presence, live_workers
from workers.startup import in_words, starting_workers

#: How often it is looked for a worker that has the job's model.
ROUTE_SECONDS = 1.0
#: How often it is looked for whoever is missing.
AWAIT_SECONDS = 5.0

Route = Callable[[Sequence[Presence]], str]


def await_route(
    redis: Redis, job: Job, route: Route, patience: Patience, stop: threading.Event, look: Callable[[], None]
) -> tuple[str, list[Presence]] | None:
    """The queue of a job whose model is named, once a worker has it, and who is live then.

    None on ``stop``, and where the job was finished meanwhile. In another model's queue its rows would fail. ``look``
    is called now and then. Raises UsageError for what workers that have the model cannot do, and as `Patience.retried`
    does.
    """
    model = str(job.header.options["model"])
    while not stop.is_set() and not patience.current().is_finished():
        present = patience.retried(lambda: live_workers(redis))
        missing = patience.retried(lambda: in_words(starting_workers(redis))) or "no worker is live"
        try:
            if present:
                return route(present), present
        except UsageError as error:
            if any(serves(worker, queues_for(job.task, model), model) for worker in present):
                raise
            missing = error.message
        patience.say(f"{missing}: waiting for a worker with the model {model}", at_once=True)
        stop.wait(ROUTE_SECONDS)
        look()
    return None


def say_who_is_awaited(redis: Redis, job: Job, queue: str, patience: Patience) -> None:
    """Nothing moves, and nothing is lost: name who is missing, if anybody is."""
    answers = int(patience.retried(lambda: redis.xlen(keys.results(job.id))))
    if answers:
        where = f"is `whisper-fleet collect` running where {job.step.path} is?"
        patience.say(f"{answers} answers wait for a collector: {where}")
        return
    missing = patience.retried(lambda: missing_worker(redis, [queue]))
    if missing is not None:
        patience.say(missing)


def missing_worker(redis: Redis, queues: Sequence[str], where: str = "") -> str | None:
    """Whose absence keeps rows in ``queues``, in words; None where a live worker serves one. Raises RedisError."""
    present = live_workers(redis)
    if any(set(queues) & set(worker.queues) for worker in present):
        return None
    names, on = " or ".join(queues), where and f" on {where}"
    nobody = f"no live worker{on} serves {names}" if present else f"no worker is live{on}: rows wait in {names}"
    return in_words(starting_workers(redis)) or nobody


class Awaited:
    """Who is missing where a job's answers do not come: looked for at once if ``nobody`` was live, else after a while.

    ``where``: the broker, in words.
    """

    def __init__(self, redis: Redis, job: Job, where: str, stall_seconds: float, *, nobody: bool) -> None:
        self._redis = redis
        self._queues = queues_for(job.task, job.header.options["model"])
        self._where = where
        self._stall_seconds = stall_seconds
        self._answered: int | None = None
        self._missing: str | None = None
        self._next_look = time.monotonic() + (0.0 if nobody else stall_seconds)

    def missing(self, answered: int) -> str | None:
        """In words, of a job with so many answers; None where nobody is. Raises RedisError."""
        now = time.monotonic()
        if self._answered is None:
            self._answered = answered
        if answered != self._answered:
            self._answered, self._missing = answered, None
            self._next_look = now + self._stall_seconds
        elif now >= self._next_look:
            self._next_look = now + AWAIT_SECONDS
            self._missing = missing_worker(self._redis, self._queues, self._where)
        return self._missing
