"""One job from its first message to its step file, in one process: on the fleet of ``REDIS_URL``, or on an own one."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from redis import Redis
from redis.exceptions import RedisError

from producer.collector import Collector, OwnedJob
from producer.display import Display
from producer.embedded import EmbeddedFleet
from producer.enqueue import Enqueuer, chunk_rows_for
from producer.errors import FleetError
from producer.job import Job
from producer.journal import Journal
from producer.routing import choose_queue
from workers.app import create_app
from workers.presence import Presence, live_workers
from workers.redis_client import connect, shown_url
from workers.settings import Settings, load_settings

POLL_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a job is run, as opposed to what it is. ``max_failed``: rows, or a share of all rows (``"5%"``)."""

    workers: int = 1
    tensor_parallel_size: int | None = None
    max_failed: str | None = None


class TooManyFailedError(FleetError):
    """More rows failed than ``--max-failed`` allows; the job can be resumed."""


def run_job(job: Job, options: RunOptions, settings: Settings, display: Display) -> Job:
    """Do what is left of ``job`` and return it complete. A second caller of a running job follows its progress.

    Raises FleetError; what is answered by then stays in the journal, and the same call resumes.
    """
    while not (job := job.reload()).is_complete():
        with job.step.lock("producer") as producing:
            if not producing.acquire():
                display.waiting(f"following {producing.holder()}, which runs this job")
                _follow(job, display)
            elif job.rows == 0:
                _finish_empty(job)
            else:
                _run(job, options, settings, display)
    return job


def failed_limit(text: str | None, rows: int) -> int | None:
    """How many rows may fail: ``"10"`` or ``"5%"`` of ``rows``; None for no limit. Raises ValueError."""
    if text is None:
        return None
    if text.endswith("%"):
        share = float(text[:-1])
        if not 0 <= share <= 100:
            raise ValueError
        return int(rows * share / 100)
    if int(text) < 0:
        raise ValueError
    return int(text)


def _run(job: Job, options: RunOptions, settings: Settings, display: Display) -> None:
    with _fleet(job, options, settings, display) as (url, fleet):
        redis = connect(url)
        collector = Collector(redis)
        try:
            owned = _take(collector, job, redis, display)
            if owned is None:
                return
            if fleet is not None:
                _clear(redis, collector, owned)
            present = _await_workers(redis, fleet, display)
            _transfer(owned, collector, present, url, options, settings, display, fleet)
        finally:
            collector.close()
            redis.close()


@contextlib.contextmanager
def _fleet(
    job: Job, options: RunOptions, settings: Settings, display: Display
) -> Iterator[tuple[str, EmbeddedFleet | None]]:
    """The broker's URL, and the own fleet if there is one."""
    if settings.redis_url is not None:
        yield settings.redis_url, None
        return
    environment = {}
    if job.header.options["model"] is not None:
        environment["WHISPER_MODEL"] = job.header.options["model"]
    if options.tensor_parallel_size is not None:
        environment["WHISPER_TENSOR_PARALLEL_SIZE"] = str(options.tensor_parallel_size)
    display.waiting("starting a private Valkey and a local worker")
    with EmbeddedFleet(job.step.job_path, workers=options.workers, environment=environment) as fleet:
        yield fleet.url, fleet


def _take(collector: Collector, job: Job, redis: Redis, display: Display) -> OwnedJob | None:
    """Collect the job here, or follow the collector that has it; None once it is complete."""
    while True:
        try:
            owned = collector.add(job)
        except RedisError as error:
            raise FleetError(f"Redis does not answer: {error}") from error
        if owned is not None or job.reload().is_complete():
            return owned
        display.waiting(f"{job.step.lock('collector').holder()} collects this job")
        time.sleep(POLL_SECONDS)


def _clear(redis: Redis, collector: Collector, owned: OwnedJob) -> None:
    """Answers that an earlier run left in the private Valkey count; its messages do not: their rows are sent again."""
    while collector.poll(0.001):
        pass
    if not owned.complete:
        redis.flushdb()
        collector.announce(owned)


def _await_workers(redis: Redis, fleet: EmbeddedFleet | None, display: Display) -> list[Presence]:
    if fleet is not None:
        log = fleet.log_path()
        return fleet.wait_ready(redis, lambda s: display.waiting(f"loading the engine, log in {log} ({s:.0f} s)"))
    return live_workers(redis)


def _transfer(
    owned: OwnedJob,
    collector: Collector,
    present: list[Presence],
    url: str,
    options: RunOptions,
    settings: Settings,
    display: Display,
    fleet: EmbeddedFleet | None,
) -> None:
    """Send and collect until the step file is written."""
    job = owned.job
    limit = failed_limit(options.max_failed, job.rows)
    stop, failures = threading.Event(), list[BaseException]()
    enqueuer = enqueuer_for(job, url, present, settings, lambda: owned.journal.answered, stop)

    def send() -> None:
        try:
            enqueuer.send_all()
            enqueuer.resend_lost()
        except Exception as error:  # noqa: BLE001 - handed to the main thread, which raises it
            failures.append(error)

    sender = threading.Thread(target=send, name="enqueue", daemon=True)
    sender.start()
    try:
        if not present:
            display.waiting(f"no worker is live on {shown_url(url)}: rows wait in its queue")
        while not owned.complete:
            _poll(collector, display)
            if failures:
                raise failures[0]
            if fleet is not None:
                fleet.check()
            if owned.journal.answered or present:
                display.progress(owned.progress())
            if limit is not None and owned.journal.failed > limit:
                raise TooManyFailedError(
                    f"{owned.journal.failed} of {job.rows} rows failed, more than --max-failed {options.max_failed}: "
                    f"{_reasons(owned)}. {owned.journal.answered} answers are kept: the same command resumes"
                )
    finally:
        stop.set()
        sender.join()


def enqueuer_for(
    job: Job,
    url: str,
    present: list[Presence],
    settings: Settings,
    journaled: Callable[[], int],
    stop: threading.Event,
) -> Enqueuer:
    """An enqueuer for ``job`` on the fleet at ``url``, its queue and chunk size chosen from the live workers."""
    header = job.header
    threads = sum(worker.threads for worker in present) or 8
    return Enqueuer(
        job,
        create_app(load_settings(REDIS_URL=url)),
        connect(url),
        queue=choose_queue(present, job.task, header.options["language"], header.options["model"]),
        chunk_rows=settings.chunk_rows or chunk_rows_for(job.rows, threads),
        window_rows=settings.window_rows,
        journaled=journaled,
        stop=stop,
    )


def _poll(collector: Collector, display: Display) -> None:
    try:
        collector.poll(POLL_SECONDS)
    except RedisError as error:
        display.waiting(f"Redis does not answer, trying again: {error}")
        time.sleep(POLL_SECONDS)


def _follow(job: Job, display: Display) -> None:
    """Show another process's progress until the job is complete or nobody runs it any more."""
    while not job.reload().is_complete():
        with job.step.lock("producer") as producing:
            if producing.acquire():
                return
        display.waiting(f"{len(Journal.read_answered(job.step.journal_path, job.rows))} of {job.rows} rows answered")
        time.sleep(2 * POLL_SECONDS)


def _finish_empty(job: Job) -> None:
    """An input without rows needs no fleet."""
    with job.step.lock("collector") as collecting:
        if collecting.acquire():
            journal = Journal.open(job.step.journal_path, 0)
            job.finish(journal)
            journal.close()


def _reasons(owned: OwnedJob) -> str:
    return ", ".join(f"{count} x {reason}" for reason, count in sorted(owned.journal.reasons.items()))
