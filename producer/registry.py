"""Jobs as the fleet sees them: their registration in Redis, and the progress that a collector publishes."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, cast

from redis import Redis

from workers import keys
from workers.messages import Message

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
    """How far a job is. ``audio_seconds``: of the recordings answered so far."""

    rows: int = 0
    answered: int = 0
    failed: int = 0
    audio_seconds: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)
    complete: bool = False


def register(redis: Redis, registration: Registration) -> None:
    """Make a job known to collectors."""
    redis.hset(keys.JOBS, registration.id, registration.model_dump_json())


def registered(redis: Redis) -> list[Registration]:
    """The jobs that wait for a collector or have one."""
    payloads = cast("dict[bytes, bytes]", redis.hgetall(keys.JOBS))
    return [Registration.model_validate_json(payload) for payload in payloads.values()]


def forget(redis: Redis, job: str) -> None:
    """Take a finished or replaced job out of Redis. Its progress stays readable for a day."""
    with redis.pipeline() as pipe:
        pipe.hdel(keys.JOBS, job)
        pipe.delete(keys.results(job))
        pipe.expire(keys.progress(job), FINISHED_EXPIRES_SECONDS)
        pipe.execute()


def publish(redis: Redis, job: str, progress: Progress) -> None:
    """Say how far a job is."""
    redis.hset(
        keys.progress(job),
        mapping={
            "rows": progress.rows,
            "answered": progress.answered,
            "failed": progress.failed,
            "audio_seconds": f"{progress.audio_seconds:.3f}",
            "reasons": json.dumps(progress.reasons),
            "state": "complete" if progress.complete else "running",
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
        audio_seconds=float(values[b"audio_seconds"]),
        reasons=Counter(json.loads(values[b"reasons"])),
        complete=values[b"state"] == b"complete",
    )
