"""Jobs as the fleet sees them: their registration in Redis, and the progress that a collector publishes."""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, cast

from pydantic import ValidationError
from redis import Redis

from workers import keys
from workers.messages import Message, first_problem

log = logging.getLogger(__name__)

#: Whoever is at a job repeats its registration and progress so often, as a flushed Redis has lost them, and looks
#: whether the job was removed or cancelled, or somebody starts it over.
ANNOUNCE_SECONDS = 5.0
#: How long the progress of a finished job stays readable.
FINISHED_EXPIRES_SECONDS = 86_400


class Registration(Message):
    """Where a job's files are, so that any collector that can write there may serve it."""

    id: str
    output: str
    rows: int
    created: str


@dataclass(slots=True)
class Progress:
    """How far a job is. ``audio_seconds``: of the recordings answered so far; ``reused``: rows of an earlier step."""

    rows: int = 0
    answered: int = 0
    failed: int = 0
    reused: int = 0
    audio_seconds: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)
    complete: bool = False
    step_path: str = ""


def register(redis: Redis, registration: Registration) -> None:
    """Make a job known to collectors."""
    redis.hset(keys.JOBS, registration.id, registration.model_dump_json())


def registered(redis: Redis) -> list[Registration]:
    """The jobs that wait for a collector or have one. Skips what another version wrote and this one cannot read."""
    found = []
    for job, payload in cast("dict[bytes, bytes]", redis.hgetall(keys.JOBS)).items():
        try:
            found.append(Registration.model_validate_json(payload))
        except ValidationError as error:
            log.warning("job %s: not a registration that this version reads: %s", job.decode(), first_problem(error))
    return found


def unregister(redis: Redis, job: str) -> None:
    """No collector is to take the job any more. Its answers may stay for two weeks, its progress for a day."""
    with redis.pipeline() as pipe:
        pipe.hdel(keys.JOBS, job)
        pipe.expire(keys.results(job), keys.RESULTS_EXPIRE_SECONDS)
        pipe.expire(keys.progress(job), FINISHED_EXPIRES_SECONDS)
        pipe.execute()


def forget(redis: Redis, job: str) -> None:
    """Take a finished or replaced job out of Redis. Its progress stays readable for a day."""
    redis.delete(keys.results(job))
    unregister(redis, job)


def publish(redis: Redis, job: str, progress: Progress) -> None:
    """Say how far a job is."""
    redis.hset(
        keys.progress(job),
        mapping={
            "rows": progress.rows,
            "answered": progress.answered,
            "failed": progress.failed,
            "reused": progress.reused,
            "audio_seconds": f"{progress.audio_seconds:.3f}",
            "reasons": json.dumps(progress.reasons),
            "state": "complete" if progress.complete else "running",
            "step_path": progress.step_path,
        },
    )


def read(redis: Redis, job: str) -> Progress | None:
    """What was last published about a job, None if nothing was."""
    values = cast("dict[bytes, Any]", redis.hgetall(keys.progress(job)))
    if not values:
        return None
    return Progress(
        rows=int(values[b"rows"]),
        answered=int(values[b"answered"]),
        failed=int(values[b"failed"]),
        reused=int(values.get(b"reused", 0)),
        audio_seconds=float(values[b"audio_seconds"]),
        reasons=Counter(json.loads(values[b"reasons"])),
        complete=values[b"state"] == b"complete",
        step_path=values.get(b"step_path", b"").decode(),
    )
