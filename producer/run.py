"""One job from its first message to its step file, in one process: on the fleet of ``REDIS_URL``, or on an own one."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from redis import Redis
from redis.exceptions import RedisError

from producer import registry
from producer.collector import Collector, OwnedJob
from producer.display import Display
from producer.embedded import EmbeddedFleet
from producer.enqueue import Enqueuer, chunk_rows_for
from producer.errors import FleetError, UsageError
from producer.job import Job
from producer.journal import Journal
from producer.registry import Progress
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


def reach(url: str) -> Redis:
    """A client for a broker, which has to answer. Raises UsageError."""
    redis = connect(url)
    try:
        redis.ping()
    except RedisError as error:
        raise UsageError(f"REDIS_URL {shown_url(url)}: does not answer ({error})") from None
    return redis


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


@dataclass(slots=True)
class _Collection:
    """A running job's answers: collected here, or by a collector of the fleet that has the job already."""

    collector: Collector
    redis: Redis
    job: Job
    owned: OwnedJob | None = None

    def take(self) -> bool:
        """Collect the job here from now on, unless another process does; whether it is so."""
        if self.owned is None:
            self.owned = self.collector.add(self.job)
        return self.owned is not None

    def poll(self, seconds: float = POLL_SECONDS) -> int:
        """Wait up to ``seconds`` for answers; returns how many came here. Raises FleetError and RedisError."""
        if not self.take() or self.owned is None:
            time.sleep(seconds)
            return 0
        new = self.collector.poll(seconds)
        if self.owned.error is not None:
            raise self.owned.error
        return new

    def progress(self) -> Progress:
        """How far the job is. ``complete`` is what its files say, not what Redis says."""
        if self.owned is not None:
            return self.owned.progress()
        published = registry.read(self.redis, self.job.id) or Progress(rows=self.job.rows)
        return replace(published, complete=self.job.reload().is_complete())

    def answered(self) -> int:
        """Rows that are answered and on the disk."""
        return self.owned.journal.answered if self.owned is not None else self.progress().answered


def _run(job: Job, options: RunOptions, settings: Settings, display: Display) -> None:
    with _fleet(job, options, settings, display) as (url, fleet):
        redis = reach(url)
        collection = _Collection(Collector(redis), redis, job)
        try:
            _take(collection, private=fleet is not None)
            if collection.progress().complete:
                return
            present = _await_workers(redis, fleet, display)
            _transfer(collection, present, url, options, settings, display, fleet)
        except RedisError as error:
            raise FleetError(f"{shown_url(url)} does not answer: {error}") from error
        finally:
            collection.collector.close()
            redis.close()


@contextlib.contextmanager
def _fleet(
    job: Job, options: RunOptions, settings: Settings, display: Display
) -> Iterator[tuple[str, EmbeddedFleet | None]]:
    """The broker's URL, and the own fleet if there is one."""
    if settings.redis_url is not None:
        yield settings.redis_url, None
        return
    _check_alone(job)
    environment = {}
    if job.header.options["model"] is not None:
        environment["WHISPER_MODEL"] = job.header.options["model"]
    if options.tensor_parallel_size is not None:
        environment["WHISPER_TENSOR_PARALLEL_SIZE"] = str(options.tensor_parallel_size)
    display.waiting("starting a private Valkey and a local worker")
    with EmbeddedFleet(job.step.job_path, workers=options.workers, environment=environment) as fleet:
        yield fleet.url, fleet


def _take(collection: _Collection, *, private: bool) -> None:
    """Begin with the answers that are there already, and with nothing else in a private Valkey.

    Answers that an earlier run left there count; its messages do not: their rows are sent again.
    """
    if collection.take():
        while collection.poll(0.001):
            pass
    if private:
        _check_alone(collection.job, collection.owned)
        if collection.owned is not None and not collection.owned.complete:
            collection.redis.flushdb()
            collection.collector.announce(collection.owned)


def _await_workers(redis: Redis, fleet: EmbeddedFleet | None, display: Display) -> list[Presence]:
    if fleet is not None:
        log = fleet.log_path()
        return fleet.wait_ready(redis, lambda s: display.waiting(f"loading the engine, log in {log} ({s:.0f} s)"))
    return live_workers(redis)


def _transfer(
    collection: _Collection,
    present: list[Presence],
    url: str,
    options: RunOptions,
    settings: Settings,
    display: Display,
    fleet: EmbeddedFleet | None,
) -> None:
    """Send and collect until the step file is written."""
    job = collection.job
    limit = failed_limit(options.max_failed, job.rows)
    stop, failures = threading.Event(), list[BaseException]()
    enqueuer = enqueuer_for(job, url, present, settings, collection.answered, stop)

    def send() -> None:
        try:
            enqueuer.send_all()
            enqueuer.resend_lost()
        except Exception as error:  # noqa: BLE001 - handed to the main thread, which raises it
            failures.append(error)

    sender = threading.Thread(target=send, name="enqueue", daemon=True)
    sender.start()
    if not present:
        display.waiting(f"no worker is live on {shown_url(url)}: rows wait in its queue")
    if collection.owned is None:
        display.waiting(f"{job.step.lock('collector').holder()} collects this job")
    try:
        while True:
            try:
                collection.poll()
                progress = collection.progress()
            except RedisError as error:
                if fleet is not None:
                    fleet.check()
                display.waiting(f"Redis does not answer, trying again: {error}")
                time.sleep(POLL_SECONDS)
                continue
            if progress.complete:
                return
            if failures:
                raise failures[0]
            if fleet is not None:
                fleet.check()
            if progress.answered or present:
                display.progress(progress)
            if limit is not None and progress.failed > limit:
                raise TooManyFailedError(
                    f"{progress.failed} of {job.rows} rows failed, more than --max-failed {options.max_failed}: "
                    f"{_reasons(progress)}. {progress.answered} answers are kept: a higher --max-failed resumes"
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
    # An own fleet was started with the job's model, whatever name the model gives itself.
    model = None if settings.redis_url is None else header.options["model"]
    return Enqueuer(
        job,
        create_app(load_settings(REDIS_URL=url)),
        connect(url),
        queue=choose_queue(present, job.task, header.options["language"], model),
        chunk_rows=settings.chunk_rows or chunk_rows_for(job.rows, threads),
        window_rows=settings.window_rows,
        journaled=journaled,
        stop=stop,
    )


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
        if not collecting.acquire():
            time.sleep(POLL_SECONDS)
            return
        journal = Journal.open(job.step.journal_path, 0)
        job.finish(journal)
        journal.close()


def _check_alone(job: Job, owned: OwnedJob | None = None) -> None:
    """Raise FleetError where a collector of another broker has the job: it would not see a private fleet's answers."""
    with job.step.lock("collector") as collecting:
        if owned is None and not collecting.acquire() and not job.reload().is_complete():
            raise FleetError(
                f"{job.step.path}: {collecting.holder()} collects this job from a shared broker: "
                "set REDIS_URL to it, or stop that collector"
            )


def _reasons(progress: Progress) -> str:
    return ", ".join(f"{count} x {reason}" for reason, count in sorted(progress.reasons.items()))
