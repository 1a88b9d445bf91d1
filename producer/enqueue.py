"""Streaming a job's records into the queue, with back-pressure. Knows nothing of results but their count."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable, Collection, Iterator
from typing import Any

from celery import Celery
from kombu.exceptions import BatchPublishError, OperationalError
from redis import Redis
from redis.exceptions import RedisError

from producer.errors import FleetError
from producer.in_flight import rows_in_flight, rows_uncollected, task_id
from producer.job import Job
from producer.journal import Journal
from workers import keys
from workers.app import PRIORITY_BULK
from workers.messages import TASK_NAMES, Failure, Record, RowResult

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
RETRY_SECONDS = 2.0
#: Messages sent in one round trip.
BATCH_MESSAGES = 100
#: A job that got no answer for so long looks whether its messages are still there.
STALL_SECONDS = 15.0


def chunk_rows_for(rows: int, threads: int) -> int:
    """Rows per message: 1 in small jobs, so that every thread of the fleet gets work; at most 64 in large ones."""
    return max(1, min(64, rows // (8 * max(1, threads))))


class Enqueuer:
    """Sends the unanswered rows of one job, at most a window of them ahead of the journal.

    ``journaled`` tells how many rows of the job are answered and on disk. Not for interactive calls: those are plain
    Celery tasks.
    """

    def __init__(
        self,
        job: Job,
        app: Celery,
        redis: Redis,
        *,
        queue: str,
        chunk_rows: int,
        window_rows: int,
        journaled: Callable[[], int],
        stop: threading.Event,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        self._job = job
        self._app = app
        self._redis = redis
        self._queue = queue
        self._chunk_rows = chunk_rows
        self._window_rows = max(window_rows, chunk_rows)
        self._journaled = journaled
        self._stop = stop
        self._stall_seconds = stall_seconds
        self._journaled_before = 0
        #: Rows sent by this producer or on their way from an earlier one.
        self.sent = 0

    def send_all(self) -> None:
        """Send every row that is neither answered nor in flight; returns when the last one is sent, or on ``stop``."""
        # In the order in which a row moves on, so that none passes by unseen.
        self._journaled_before = self._retried(self._journaled)
        on_its_way = self._retried(lambda: rows_in_flight(self._redis, self._queue, self._job.id))
        on_its_way |= self._retried(lambda: rows_uncollected(self._redis, self._job.id))
        answered = self._answered()
        if self._retried(self._journaled) >= self._job.rows:  # complete meanwhile, and its journal gone
            return
        self.sent = len(on_its_way)
        self._send(lambda row: row not in answered and row not in on_its_way)

    def resend_lost(self) -> None:
        """Until every row is answered: when no answer comes, send again what Redis has lost.

        Redis can lose a message (a worker killed between taking and holding it, a flushed server); the job cannot.
        """
        last, quiet_seconds = self._retried(self._journaled), 0.0
        while last < self._job.rows and not self._stop.wait(POLL_SECONDS):
            now = self._retried(self._journaled)
            quiet_seconds = 0.0 if now != last else quiet_seconds + POLL_SECONDS
            last = now
            if quiet_seconds >= self._stall_seconds:
                quiet_seconds = 0.0
                lost = self._retried(self._lost_rows)
                if lost:
                    log.warning("job %s: %d rows were lost by Redis and are sent again", self._job.id, len(lost))
                    self._send(lost.__contains__)

    def _lost_rows(self) -> Collection[int]:
        """Rows neither answered nor in flight. Looked at twice: a message on its way is nowhere for a moment."""
        in_flight = rows_in_flight(self._redis, self._queue, self._job.id)
        self._stop.wait(1.0)
        in_flight |= rows_in_flight(self._redis, self._queue, self._job.id)
        # Answers come before acknowledgements, so what was answered meanwhile is in the stream or in the journal.
        if self._redis.xlen(keys.results(self._job.id)):
            return ()
        answered = self._answered()
        if self._journaled() >= self._job.rows:  # here too
            return ()
        return {row for row in range(self._job.rows) if row not in answered and row not in in_flight}

    def _answered(self) -> Any:
        return Journal.read_answered(self._job.step.journal_path, self._job.rows)

    def _send(self, wanted: Callable[[int], bool]) -> None:
        batch: list[list[Record]] = []
        for chunk in self._chunks(wanted):
            if self._room() < len(chunk):
                self._flush(batch)
                self._wait_for_room(len(chunk))
            if self._stop.is_set():
                return
            batch.append(chunk)
            self.sent += len(chunk)
            if len(batch) >= BATCH_MESSAGES:
                self._flush(batch)
        self._flush(batch)

    def _chunks(self, wanted: Callable[[int], bool]) -> Iterator[list[Record]]:
        chunk: list[Record] = []
        for row, record in self._job.records():
            if not wanted(row):
                continue
            if isinstance(record, Failure):
                self._answer(row, record)
                continue
            chunk.append(record)
            if len(chunk) == self._chunk_rows:
                yield chunk
                chunk = []
        if chunk:
            yield chunk

    def _answer(self, row: int, failure: Failure) -> None:
        """A row without a record needs no worker: its answer is known."""
        self.sent += 1
        payload = RowResult(row=row, items=[failure]).model_dump_json()
        self._retried(lambda: self._redis.xadd(keys.results(self._job.id), {keys.RESULT_FIELD: payload}))

    def _room(self) -> int:
        journaled: int = self._retried(self._journaled)
        return self._window_rows - (self.sent - (journaled - self._journaled_before))

    def _wait_for_room(self, rows: int) -> None:
        while self._room() < rows and not self._stop.is_set():
            self._stop.wait(POLL_SECONDS)

    def _flush(self, batch: list[list[Record]]) -> None:
        if not batch:
            return
        name, options = TASK_NAMES[self._job.task], self._job.message_options.model_dump(exclude_defaults=True)

        def publish() -> None:
            with self._app.producer_or_acquire() as producer, producer.batch(max_size=BATCH_MESSAGES):
                for chunk in batch:
                    first = chunk[0].row or 0
                    self._app.send_task(
                        name,
                        args=[[record.model_dump(exclude_defaults=True) for record in chunk]],
                        kwargs={"options": options, "job": self._job.id},
                        task_id=task_id(self._job.id, first, secrets.token_hex(4)),
                        queue=self._queue,
                        priority=PRIORITY_BULK,
                        ignore_result=True,
                        argsrepr=f"({len(chunk)} rows from row {first})",
                        kwargsrepr=f"{{job: {self._job.id}}}",
                        retry=False,
                        producer=producer,
                    )

        # A batch whose fate is unknown is sent again: rows that come back twice are merged away.
        self._retried(publish)
        batch.clear()

    def _retried(self, call: Callable[[], Any]) -> Any:
        """``call`` until Redis answers. Raises FleetError when stopped meanwhile."""
        while True:
            try:
                return call()
            except (OperationalError, BatchPublishError, RedisError, OSError) as error:
                log.warning("job %s: Redis does not answer, trying again: %s", self._job.id, error)
                if self._stop.wait(RETRY_SECONDS):
                    raise FleetError(f"Redis does not answer: {error}") from error
