"""Streaming a job's records into the queue, with back-pressure. Knows nothing of results but which rows have one."""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence

from celery import Celery
from redis import Redis

from producer import registry
from producer.awaiting import Route, await_route, say_who_is_awaited
from producer.chunks import Chunk, ChunkLimits, window_rows_for
from producer.errors import UsageError
from producer.follow import RowSet
from producer.in_flight import rows_on_their_way, task_id
from producer.job import Job
from producer.patience import TROUBLE, Patience
from producer.registry import ANNOUNCE_SECONDS
from producer.routing import check_one_model, queue_of_job, queues_for
from producer.unchanged_input import UnchangedInput
from producer.window import Window
from workers import keys
from workers.app import PRIORITY_BULK
from workers.messages import TASK_NAMES, Failure, Record, RowResult
from workers.presence import Presence, live_workers
from workers.settings import Settings

log = logging.getLogger(__name__)

#: How soon room in the window is looked for, at first and later; as long an eighth of it is waited for.
LOOK_SECONDS, GATHER_SECONDS = 0.02, 0.2
#: Between the two looks after which a row counts as lost: a message on its way is nowhere for a moment.
LOOK_AGAIN_SECONDS = 1.0
#: Messages sent in one round trip.
BATCH_MESSAGES = 100


def enqueuer_for(
    job: Job,
    app: Celery,
    redis: Redis,
    present: Sequence[Presence],
    config: Settings,
    answered: Callable[[], RowSet],
    stop: threading.Event,
) -> Enqueuer:
    """An enqueuer whose queue and chunk size suit the live workers. Raises UsageError for what none of them can do.

    Where a model is named, and no worker is live, only those that come can tell the queue: it is chosen then.
    """
    header = job.header
    # An own fleet was started with the job's model, whatever name the model gives itself.
    model = None if config.redis_url is None else header.options["model"]

    def route(present: Sequence[Presence]) -> str:
        return queue_of_job(present, job.task, header.options["language"], model)

    def sizes(queue: str, present: Sequence[Presence]) -> tuple[ChunkLimits, int]:
        serving = [worker for worker in present if queue in worker.queues]
        limits = ChunkLimits.of(job.rows, serving, rows=config.chunk_rows, window_rows=config.window_rows)
        return limits, config.window_rows or window_rows_for(serving, limits)

    queue = route(present)
    limits, window_rows = sizes(queue, present)
    return Enqueuer(
        job,
        app,
        redis,
        queue=queue,
        limits=limits,
        window_rows=window_rows,
        sizes=sizes,
        route=route if model is not None and not present else None,
        answered=answered,
        stop=stop,
        stall_seconds=config.stall_seconds,
    )


class Enqueuer:
    """Sends the unanswered rows of one job, at most a window of them ahead of the journal.

    ``answered`` gives the rows that are in the journal, ``sizes`` the limits of messages and the window that suit other
    workers of a queue than those that were live at the start; with ``route`` that queue is chosen once there are some.
    Not for interactive calls: those are plain Celery tasks.
    """

    def __init__(
        self,
        job: Job,
        app: Celery,
        redis: Redis,
        *,
        queue: str,
        limits: ChunkLimits,
        window_rows: int,
        answered: Callable[[], RowSet],
        stop: threading.Event,
        stall_seconds: float,
        sizes: Callable[[str, Sequence[Presence]], tuple[ChunkLimits, int]] | None = None,
        route: Route | None = None,
    ) -> None:
        self._job = job
        self._app = app
        self._redis = redis
        self._queue = queue
        self._queues = {queue, *queues_for(job.task, job.header.options["model"])}
        self._limits = limits
        self._window = Window(max(window_rows, limits.rows), answered)
        self._patience = Patience(redis, job, stop)
        self._stop = stop
        self._stall_seconds = stall_seconds
        self._sizes = sizes
        self._route = route
        self._announced = float("-inf")
        self._input = UnchangedInput(job)
        #: Seconds of audio of a row that does not say how long it is: the mean of the answered ones.
        self._typical_seconds = 0.0
        #: Rows sent by this producer or on their way from an earlier one.
        self.sent = 0

    def send_all(self) -> None:
        """Send every row that is neither answered nor on its way; returns when the last one is sent, or on ``stop``.

        Rows of the window that Redis has lost meanwhile are sent again. Waits for room, for memory in Redis and for
        Redis itself as long as it takes. Raises FleetError when stopped while Redis does not answer, UsageError where
        rows were lost and the input is another by now.
        """
        self._announce()
        self._window.add(self._patience.retried(self._look))
        if len(self._window) or self._was_begun():
            self._stop.wait(LOOK_AGAIN_SECONDS)
            self._window.add(self._patience.retried(self._look))
        self._window.look()
        self.sent = len(self._window)
        self._send(self._window.lacks)

    def _choose_queue(self, batch: list[list[Record]]) -> None:
        """Before the first message where nobody was live to tell it. Empties a ``batch`` that nobody needs any more."""
        if self._route is None or not batch:
            return
        found = await_route(self._redis, self._job, self._route, self._patience, self._stop, self._announce)
        if found is None:
            batch.clear()
            return
        self._route = None
        self._queue, present = found
        self._queues.add(self._queue)
        self._suit(present)

    def _send(self, wanted: Callable[[int], bool], *, last: int | None = None, again: bool = False) -> None:
        """Send the rows that are ``wanted``, the ``last`` of which is known; ``again``: they are in the window."""
        batch: list[list[Record]] = []
        chunk = Chunk(self._limits)

        def close_chunk() -> None:
            if records := chunk.take():
                if not again:
                    self._admit([record.row or 0 for record in records], batch)
                batch.append(records)
            if len(batch) >= BATCH_MESSAGES:
                self._flush(batch)

        end = self._job.rows if last is None else last + 1

        def looked_at(row: int) -> bool:
            return row >= end or wanted(row) or self._stop.is_set()

        for row, record, known_seconds in self._job.timed_records(looked_at):
            if self._stop.is_set():
                return
            if row >= end:
                break
            if isinstance(record, Record):
                seconds = self._typical_seconds if known_seconds is None else known_seconds
                if not chunk.records:
                    chunk.limits = self._limits.towards_end(self._job.rows - row)
                if not chunk.has_room(seconds):
                    close_chunk()
                chunk.add(record, seconds)
                if chunk.is_full:
                    close_chunk()
            else:
                if not again:
                    self._admit([row], batch)
                self._answer(row, record)
        close_chunk()
        self._flush(batch)

    def _admit(self, rows: list[int], batch: list[list[Record]]) -> None:
        """Wait until ``rows`` have room in the window; what is not sent yet goes first."""
        if self._window.free < len(rows):
            self._window.look()
        if self._window.free < len(rows):
            self._flush(batch)
            self._wait_for_room(len(rows))
        self._window.add(rows)
        self.sent += len(rows)

    def _wait_for_room(self, rows: int) -> None:
        """Wait for an eighth of the window, so that batches stay large; after a while for ``rows`` alone."""
        window = self._window
        last, since, patience_seconds = len(window), time.monotonic(), self._stall_seconds
        gather_until, pause_seconds = since + GATHER_SECONDS, LOOK_SECONDS
        # (a message that was made for a larger window goes alone)
        while window.free < rows and len(window) and not self._stop.wait(pause_seconds):
            pause_seconds = min(2 * pause_seconds, GATHER_SECONDS)
            self._announce()
            now = time.monotonic()
            if now >= gather_until or window.may_free(max(rows, window.limit // 8)):
                window.look()
                gather_until = now + GATHER_SECONDS
            if len(window) != last:
                last, since = len(window), now
            elif now - since >= patience_seconds:
                self._resend_lost()
                since = time.monotonic()
                # A look at long queues takes its time: Redis has other things to do.
                patience_seconds = max(self._stall_seconds, 20 * (since - now - LOOK_AGAIN_SECONDS))

    def _resend_lost(self) -> None:
        """Send the rows of the window again that Redis has lost: a flush, a crash, a failover to an older copy."""
        there = self._patience.retried(self._look)
        self._stop.wait(LOOK_AGAIN_SECONDS)
        there |= self._patience.retried(self._look)
        # Answers come before acknowledgements, so what was answered meanwhile is in the stream or in the journal.
        lost = self._window.lost(there)
        if lost and not self._stop.is_set():
            self._job.check_input()
            log.warning("job %s: %d rows were lost by Redis and are sent again", self._job.id, len(lost))
            self._send(lost.__contains__, last=max(lost), again=True)
        elif there and not self._stop.is_set():
            say_who_is_awaited(self._redis, self._job, self._queue, self._patience)

    def _look(self) -> set[int]:
        return rows_on_their_way(self._redis, self._queues, [self._job.id])[self._job.id]

    def _was_begun(self) -> bool:
        """Whether an earlier producer may have sent something."""
        with contextlib.suppress(OSError):
            return self._job.step.journal_path.stat().st_size > 0
        return False

    def _answer(self, row: int, failure: Failure) -> None:
        """A row without a record needs no worker: its answer is known."""
        payload = RowResult(row=row, items=[failure]).model_dump_json()
        self._patience.wait_for_memory()
        self._input.check()
        self._patience.retried(lambda: self._redis.xadd(keys.results(self._job.id), {keys.RESULT_FIELD: payload}))

    def _flush(self, batch: list[list[Record]]) -> None:
        self._choose_queue(batch)
        while batch and not self._stop.is_set():
            self._announce()
            self._patience.wait_for_memory()
            self._input.check()
            try:
                self._publish(batch)
                batch.clear()
            except TROUBLE as error:
                self._patience.wait_out(error)
                # Some of the batch may have arrived. Rows that come back twice are merged away, but they cost twice.
                there, done = self._patience.retried(self._look), self._window.answered()
                batch[:] = [
                    rows for rows in batch if (rows[0].row or 0) not in there and (rows[0].row or 0) not in done
                ]

    def _publish(self, batch: list[list[Record]]) -> None:
        name, options = TASK_NAMES[self._job.task], self._job.message_options.model_dump(exclude_defaults=True)
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

    def _announce(self) -> None:
        """Make the job known to collectors, again and again: a flushed Redis has forgotten it."""
        if time.monotonic() - self._announced < ANNOUNCE_SECONDS:
            return
        self._announced = time.monotonic()
        self._patience.current()
        self._patience.retried(lambda: registry.register(self._redis, self._job.registration()))
        if self._patience.current().is_finished():  # by another, just now
            self._patience.retried(lambda: registry.forget(self._redis, self._job.id))
        progress = self._patience.retried(lambda: registry.read(self._redis, self._job.id))
        if progress is not None and (transcribed := progress.answered - progress.failed - progress.reused) > 0:
            self._typical_seconds = progress.audio_seconds / transcribed
        self._suit_workers()

    def _suit_workers(self) -> None:
        """Messages and window as the workers that are live by now need them: a fleet comes and goes during a job."""
        if present := self._patience.retried(lambda: live_workers(self._redis)):
            self._suit(present)  # whoever comes back will likely be the same

    def _suit(self, present: Sequence[Presence]) -> None:
        if self._sizes is None:
            return
        try:
            check_one_model(present, self._queue)
        except UsageError as error:  # of workers that came since the job was made
            self._patience.say(f"the step gets texts of several models: {error.message}")
        self._limits, window_rows = self._sizes(self._queue, present)
        self._window.limit = max(window_rows, self._limits.rows)
