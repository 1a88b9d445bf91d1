"""Where a job's answers go: the job's own Redis stream, retried until Redis has them."""

from __future__ import annotations

import threading

from redis import Redis

from workers import keys
from workers.messages import PartResult, RowResult
from workers.outage import outlast


class ResultSink:
    """Adds rows to jobs' streams. An answer that Redis has not taken is never taken for delivered."""

    def __init__(self, redis: Redis, stopping: threading.Event) -> None:
        self._redis = redis
        self._stopping = stopping

    def add(self, job: str, result: RowResult | PartResult, task_id: str | None = None) -> None:
        """Add one row's answer, or a part of it, waiting for Redis as long as it takes.

        With the id of its message the row is noted as settled in the same transaction: if the message comes back, the
        row is not run again. Raises EngineLostError (the record goes back to the queue) if the worker has to end first.
        """
        payload = result.model_dump_json(exclude_defaults=False)

        def send() -> None:
            with self._redis.pipeline() as pipe:
                pipe.xadd(keys.results(job), {keys.RESULT_FIELD: payload})
                pipe.expire(keys.results(job), keys.RESULTS_EXPIRE_SECONDS)
                if task_id is not None:
                    pipe.hset(keys.task(task_id), keys.settled_row(result.row), "")
                    pipe.expire(keys.task(task_id), keys.TASK_EXPIRES_SECONDS)
                pipe.execute()

        outlast(send, self._stopping, f"the answer of row {result.row} of job {job}")
