"""One job from its first message to its step file, in one process: on the fleet of ``REDIS_URL``, or on an own one."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from redis import Redis
from redis.exceptions import NoPermissionError, RedisError

from producer.awaiting import Awaited
from producer.cancel import take_back
from producer.collection import POLL_SECONDS, Collection
from producer.collector import Collector
from producer.disk import disk_errors, may_pass
from producer.display import Display
from producer.embedded import EmbeddedFleet, check_machine
from producer.errors import FleetError, FleetUnavailableError, UsageError
from producer.follow import Follower
from producer.job import Job
from producer.journal import Journal
from producer.owned import OwnedJob
from producer.reconcile import Reconciler, producing
from workers.app import create_app
from workers.errors import SettingsError
from workers.presence import Presence, live_workers
from workers.redis_client import check_server, connect, reason, shown_url
from workers.settings import Settings, load_settings, variables

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a job is run, as opposed to what it is. ``max_failed``: rows, or a share of all rows (``"5%"``)."""

    workers: int = 1
    tensor_parallel_size: int | None = None
    max_failed: str | None = None


class PrivateFleet(Protocol):
    """A fleet on this machine that only this process uses: `EmbeddedFleet`, or what keeps one."""

    @property
    def url(self) -> str:
        """The private broker's URL."""

    def wait_ready(self, redis: Redis, waiting: Callable[[str], None]) -> list[Presence]:
        """Wait until every worker has loaded its engine. Raises FleetError when one cannot."""

    def check(self) -> None:
        """Raise FleetError once the fleet is hopeless."""


class TooManyFailedError(FleetError):
    """More rows failed than ``--max-failed`` allows; the job can be resumed."""


def run_job(
    job: Job, options: RunOptions, settings: Settings, display: Display, fleet: PrivateFleet | None = None
) -> Job:
    """Do what is left of ``job`` and return it complete. A second caller of a running job follows its progress.

    ``fleet``: one that is running already and goes on when the job is done; without it, that of ``settings``.
    Raises FleetError; what is answered by then stays in the journal, and the same call resumes.
    """
    display.begin(job.task)
    while not (job := job.current()).is_finished():
        with job.step.lock("producer") as lock:
            if not lock.acquire():
                display.waiting(f"following {lock.holder()}, which runs this job")
                _follow(job, display)
            elif job.rows == 0:
                _finish_empty(job)
            else:
                _run(job, options, settings, display, fleet)
    return job


def check_own_fleet(options: RunOptions) -> None:
    """Raise UsageError and SettingsError where this machine cannot have the own fleet that ``options`` ask for."""
    check_machine(options.workers, _environment(None, options))


def own_fleet_options(
    settings: Settings, workers: int | None, tensor_parallel_size: int | None, max_failed: str | None = None
) -> RunOptions:
    """What a command's options say of its own fleet. Raises UsageError where ``REDIS_URL`` names another one."""
    given = [("--workers", workers), ("--tensor-parallel-size", tensor_parallel_size)]
    for option in [name for name, value in given if value is not None and settings.redis_url is not None]:
        raise UsageError(f"{option} is for a fleet of the command's own, and REDIS_URL names another: leave one out")
    return RunOptions(workers or 1, tensor_parallel_size, max_failed)


def reach(url: str) -> Redis:
    """A client for a broker, which has to answer and to let it in.

    Raises FleetUnavailableError where it does not answer, and UsageError for what no waiting mends (`check_server`).
    """
    try:
        check_server(url)
    except SettingsError as error:
        raise UsageError(str(error)) from None
    except RedisError as error:
        raise FleetUnavailableError(f"REDIS_URL {shown_url(url)}: does not answer ({reason(error)})") from None
    return connect(url)


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


def _run(job: Job, options: RunOptions, settings: Settings, display: Display, standing: PrivateFleet | None) -> None:
    with _fleet(job, options, settings, display, standing) as (url, fleet):
        redis = reach(url)
        collection = Collection(Collector(redis), redis, job)
        try:
            _take(collection, private=fleet is not None, own=standing is None)
            if collection.progress().complete:
                return
            present = _await_workers(redis, fleet, display)
            _transfer(collection, present, url, options, settings, display, fleet)
        except TooManyFailedError:
            if fleet is None or standing is not None:  # others, or workers that stay, would go on to its end
                _give_up(job, redis)
            raise
        except RedisError as error:
            raise FleetError(f"{shown_url(url)} does not answer: {reason(error)}") from error
        finally:
            collection.collector.close()
            redis.close()


def _give_up(job: Job, redis: Redis) -> None:
    """As `producer.cancel` does, once nobody here sends any more. What cannot be done is left, with a line."""
    try:
        with disk_errors(job.step.cancelled_path):
            job.cancel()
        take_back(redis, job)
    except (FleetError, RedisError) as error:
        log.warning("job %s: not given up, so others may go on with it: %s", job.id, error)


@contextlib.contextmanager
def _fleet(
    job: Job, options: RunOptions, settings: Settings, display: Display, standing: PrivateFleet | None
) -> Iterator[tuple[str, PrivateFleet | None]]:
    """The broker's URL, and the own fleet if there is one."""
    if standing is not None:
        yield standing.url, standing
        return
    if settings.redis_url is not None:
        yield settings.redis_url, None
        return
    _check_alone(job)
    environment = _environment(job.header.options["model"], options)
    display.waiting("starting a private Valkey")
    with EmbeddedFleet(
        job.step.job_path, workers=options.workers, environment=environment, restarts=settings.worker_restarts
    ) as fleet:
        yield fleet.url, fleet


def _environment(model: str | None, options: RunOptions) -> dict[str, str]:
    """What the workers of an own fleet are told."""
    return variables(model=model, tensor_parallel_size=options.tensor_parallel_size)


def _take(collection: Collection, *, private: bool, own: bool) -> None:
    """Begin with the answers that are there already, and with nothing else in a private Valkey of this job's own.

    Answers that an earlier run left there count; its messages do not: their rows are sent again.
    """
    taken = collection.take()
    while taken:
        try:
            taken = bool(collection.poll(0.001)) or collection.writing
        except UsageError as error:
            if not may_pass(error):
                raise
            time.sleep(POLL_SECONDS)
    if private:
        _check_alone(collection.job, collection.owned)
        if own and collection.owned is not None and not collection.owned.complete:
            collection.redis.flushdb()
            collection.collector.announce(collection.owned)


def _await_workers(redis: Redis, fleet: PrivateFleet | None, display: Display) -> list[Presence]:
    if fleet is not None:
        return fleet.wait_ready(redis, display.waiting)
    return live_workers(redis)


def _transfer(
    collection: Collection,
    present: list[Presence],
    url: str,
    options: RunOptions,
    settings: Settings,
    display: Display,
    fleet: PrivateFleet | None,
) -> None:
    """Send and collect until the step file is written."""
    job = collection.job
    limit = failed_limit(options.max_failed, job.header.rows)
    retry = job.header.retry
    # Rows that are not done again, and in the step.
    failed_before, reasons_before = (retry.kept_failed, Counter(retry.kept_reasons)) if retry else (0, Counter())
    failures: list[Exception] = []
    app = create_app(load_settings(REDIS_URL=url), set_as_current=False)
    with contextlib.closing(connect(url)) as redis, contextlib.closing(app), producing(job):
        reconciler = Reconciler(
            redis,
            app,
            settings,
            lambda _, error: failures.append(error),
            is_producer=True,
        )
        try:
            reconciler.send(collection.watched())
            awaited = Awaited(redis, job, shown_url(url), settings.stall_seconds, nobody=not present)
            if collection.owned is None:
                display.waiting(f"{job.step.lock('collector').holder()} collects this job")
            while True:
                if fleet is not None:
                    fleet.check()
                try:
                    collection.poll()
                    progress = collection.progress()
                    if progress.complete:
                        return
                    reconciler.step([collection.watched()])
                    missing = awaited.missing(progress.answered)
                except NoPermissionError:
                    raise
                except (RedisError, UsageError) as error:
                    if isinstance(error, UsageError) and not may_pass(error):
                        raise
                    cause = f"Redis does not answer: {reason(error)}" if isinstance(error, RedisError) else str(error)
                    display.waiting(f"trying again: {cause}")
                    time.sleep(POLL_SECONDS)
                    progress = None
                if failures:
                    raise failures[0]
                if progress is None:
                    continue
                if progress.answered == progress.rows:
                    display.waiting(f"writing {job.step.path}")
                elif missing is not None:
                    display.waiting(missing)
                else:
                    display.progress(progress)
                failed = failed_before + progress.failed
                if limit is not None and failed > limit:
                    raise TooManyFailedError(
                        f"{failed} of {job.header.rows} rows failed, more than --max-failed {options.max_failed}: "
                        f"{_reasons(progress.reasons + reasons_before)}. {progress.answered} answers are kept: "
                        "a higher --max-failed (without --force) resumes"
                    )
        finally:
            reconciler.close()


def _follow(job: Job, display: Display) -> None:
    """Show another process's progress until the job is complete or nobody runs it any more."""
    follower = Follower(job)
    while not job.current().is_finished():
        with job.step.lock("producer") as lock:
            if lock.acquire():
                return
        follower.read()
        display.waiting(f"another run makes it ({follower.count} of {job.rows} rows answered)")
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
        if owned is None and not collecting.acquire() and not job.reload().is_finished():
            raise FleetError(
                f"{job.step.path}: {collecting.holder()} collects this job from a shared broker: "
                "set REDIS_URL to it, or stop that collector"
            )


def _reasons(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{count} x {reason}" for reason, count in sorted(reasons.items()))
