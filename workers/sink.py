"""Where a job's answers go: the job's own Redis stream, retried until Redis has them."""

from __future__ import annotations

import logging
import threading

from redis import Redis
from redis.exceptions import RedisError

from workers import keys
from workers.errors import EngineLostError
from workers.messages import RowResult

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0


class ResultSink:
    """Adds rows to jobs' streams. An answer that Redis has not taken is never taken for delivered."""

    def __init__(self, redis: Redis, stopping: threading.Event) -> None:
        self._redis = redis
        self._stopping = stopping

    def add(self, job: str, result: RowResult) -> None:
        """Add one row's answer, waiting for Redis as long as it takes.

        Raises EngineLostError (the record goes back to the queue) if the worker has to end before Redis answers.
        """
        payload = result.model_dump_json(exclude_defaults=False)
        while True:
            try:
                self._redis.xadd(keys.results(job), {keys.RESULT_FIELD: payload})
            except RedisError as error:
                log.warning("job %s row %d: Redis does not take the answer yet: %s", job, result.row, error)
                if self._stopping.wait(RETRY_SECONDS):
                    raise EngineLostError("the worker is ending and Redis takes no answers") from error
            else:
                return
