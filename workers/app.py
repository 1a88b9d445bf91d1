"""The Celery app: queues, routes and reliability settings. Knows neither vLLM nor the files of a job.

Flower, every producer and every other application can load it: importing it needs no engine.
The figures behind the reliability settings were measured with celery and kombu 5.7 on Redis.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from celery import Celery
from celery.app.amqp import AMQP, _callback_publish_retry
from celery.loaders.app import AppLoader
from kombu.connection import ConnectionPool
from kombu.entity import Exchange, Queue
from kombu.pools import ProducerPool
from kombu.utils.functional import lazy

from workers import discretion, flower_doors, keys
from workers.device import batch
from workers.messages import TASK_NAMES, TASKS, Task
from workers.redis_url import broker_url, celery_url, sentinel_master, sentinel_options, tls_options
from workers.settings import DEFAULT_REDIS_URL, Settings, settings

log = logging.getLogger(__name__)

#: Redis priorities: 0 is served first. Interactive calls go before bulk jobs.
PRIORITY_INTERACTIVE, PRIORITY_BULK = 0, 5
#: Between a queue and its priority in the name of a list: the bulk list of the queue `transcribe` is `transcribe:5`.
LIST_SEP = ":"
#: Between two rounds of tries to send what follows a call.
SEND_AGAIN_SECONDS = 2.0


def priority_of(delivery_info: Mapping[str, Any]) -> int:
    """That of a message, as kombu takes it: what is no number is served first."""
    try:
        return int(delivery_info["priority"])
    except (TypeError, ValueError, KeyError, OverflowError):
        return PRIORITY_INTERACTIVE


def queue_name(task: Task, model_slug: str | None = None) -> str:
    """The queue of a task type; models besides the fleet's default have queues of their own."""
    return f"{task}.{model_slug}" if model_slug else task


def task_threads(config: Settings) -> int:
    """Tasks that run at once. Each keeps a few windows in the engine, so half of the engine's batch is enough.

    One more is there for interactive calls (`workers.spare_thread`).
    """
    if config.concurrency is not None:
        return config.concurrency
    return max(2, min(64, batch(config).max_num_seqs // 2)) + 1


class FleetLoader(AppLoader):  # type: ignore[misc]
    """Celery's, without the module that ``CELERY_CONFIG_MODULE`` names."""

    def read_configuration(self, *_: Any) -> dict[str, Any]:
        """Nothing: `create_app` sets all that there is."""
        return {}


class FleetConnections(ConnectionPool):
    """kombu's, which closes connections without changing the time limit of all sockets of the process meanwhile."""

    def collect_resource(self, resource: Any, socket_timeout: float | None = None) -> None:
        """Close one, also one that is in use: those of Redis have time limits of their own."""
        if not isinstance(resource, lazy):
            with contextlib.suppress(Exception):
                resource._close()


class FleetAMQP(AMQP):  # type: ignore[misc]
    """Celery's, with producers on the connections of its app, and patience with what follows a call."""

    _producer_pool: Any = None
    #: Whether what follows a call (chain, chord, link) is to be sent again after this error (`workers.results`).
    outlasts: Callable[[Exception], bool] = staticmethod(lambda error: False)

    def _create_task_sender(self) -> Any:
        send = super()._create_task_sender()

        def sent(*arguments: Any, **options: Any) -> Any:
            # Message by message: of a group, what was sent is not sent again.
            while True:
                try:
                    return send(*arguments, **options)
                except Exception as error:
                    if not (_callback_publish_retry.get() and self.outlasts(error)):
                        raise
                    log.warning("what follows a call is not sent yet: %s", type(error).__name__)
                time.sleep(SEND_AGAIN_SECONDS)

        return sent

    @property
    def producer_pool(self) -> Any:
        """Made once; a forked process makes its own."""
        pool = self.app.pool
        with self.app.pools:
            if self._producer_pool is None:
                self._producer_pool = ProducerPool(pool, limit=pool.limit)  # type: ignore[no-untyped-call]
            return self._producer_pool


class FleetApp(Celery):  # type: ignore[misc]
    """Celery of one Redis. Not one whose broker or results the environment names.

    Celery takes ``CELERY_BROKER_URL``, ``CELERY_RESULT_BACKEND`` and ``CELERY_CONFIG_MODULE`` before all that an app
    says: those of an application's own Celery would send its calls of the fleet to its own workers' Redis. So
    ``celery -b`` says nothing here either. Nor does ``DJANGO_SETTINGS_MODULE``: Celery's fix-ups for Django are for
    the application's own app (and fail on a loader that is a class).

    Its connections are its own: kombu's pools are all apps' of a process, with one limit, which each app that begins
    to send sets anew. Where another one's connections are in use, that fails.
    """

    _pool: Any = None

    def __init__(self, *arguments: Any, broker: str, **options: Any) -> None:
        super().__init__(*arguments, broker=broker, loader=FleetLoader, fixups=[], amqp=FleetAMQP, **options)
        self._url = broker
        #: Held while they are made.
        self.pools = threading.Lock()

    @property
    def pool(self) -> Any:
        """Connections to send with. Made once; a forked process makes its own."""
        with self.pools:
            if self._pool is None:
                self._ensure_after_fork()
                self._pool = FleetConnections(self.connection_for_write(), self.conf.broker_pool_limit)  # type: ignore[no-untyped-call]
            return self._pool

    def close(self) -> None:
        """As Celery's, its connections too."""
        with self.pools:
            pool = self._pool
            super().close()
        if pool is not None:
            pool.force_close_all()

    def connection_for_read(self, url: str | None = None, **options: Any) -> Any:
        """As Celery's, to the fleet's Redis."""
        return super().connection_for_read(url or self._url, **options)

    def connection_for_write(self, url: str | None = None, **options: Any) -> Any:
        """As Celery's, to the fleet's Redis."""
        return super().connection_for_write(url or self._url, **options)

    def connection(self, hostname: str | None = None, *arguments: Any, **options: Any) -> Any:
        """As Celery's, to the fleet's Redis."""
        return super().connection(hostname or self._url, *arguments, **options)

    broker_connection = connection


def create_app(config: Settings, *, set_as_current: bool = True) -> Celery:
    """The app for one set of settings. Not ``set_as_current`` in an application that may have a Celery app itself."""
    from workers import bindings  # here: whoever only imports this module loads no transport

    url = celery_url(config.redis_url or DEFAULT_REDIS_URL)
    app = FleetApp(
        "whisper_fleet",
        broker=broker_url(config.redis_url or url),
        backend=url,
        include=["workers.tasks"],
        set_as_current=set_as_current,
    )
    app.backend_cls = url
    transport: dict[str, object] = {
        "visibility_timeout": config.visibility_timeout_seconds,
        # Of the fleet's own: other applications in this database may hold their messages for longer than that.
        "unacked_key": keys.UNACKED,
        "unacked_index_key": keys.UNACKED_INDEX,
        "unacked_mutex_key": keys.UNACKED_MUTEX,
        # Every `interval` x `throttle` seconds a worker gives out again what silent workers held.
        "unacked_restore_interval": config.restore_seconds,
        "unacked_restore_throttle": 1,
        # One worker at a time does so, under a lock. Killed in those milliseconds, it would keep all others from it for
        # kombu's five minutes. Two at once do no harm: each message is given out in a transaction.
        "unacked_mutex_expire": max(1.0, config.restore_seconds),
        "priority_steps": [PRIORITY_INTERACTIVE, PRIORITY_BULK],
        "sep": LIST_SEP,  # so Flower finds the lists too; in connections it is for nothing else (`workers.bindings`)
        "queue_order_strategy": "round_robin",
        "socket_connect_timeout": 5,
        "socket_timeout": 30,
        "health_check_interval": 25,
    }
    if not url.startswith("redis+socket://"):
        transport["socket_keepalive"] = True
    result_transport: dict[str, object] = {"visibility_timeout": config.visibility_timeout_seconds}
    tls = tls_options(config.redis_url or "")
    if tls:
        # Flower and the result backend look here, not into the broker's URL.
        app.conf.update(broker_use_ssl=tls, redis_backend_use_ssl=tls)
    if url.startswith("sentinel://"):
        transport["master_name"] = result_transport["master_name"] = sentinel_master(config.redis_url or "")
        transport["sentinel_kwargs"] = result_transport["sentinel_kwargs"] = sentinel_options(config.redis_url or "")
    app.conf.update(
        task_serializer="json",
        result_serializer="json",
        accept_content=["json"],
        task_queues=[Queue(task, Exchange(task), routing_key=task) for task in TASKS],  # type: ignore[no-untyped-call]
        # No worker of the fleet takes from it: where what follows a call (chain, chord, link) goes unless it names a
        # queue, for the workers of whoever sent that.
        task_default_queue="celery",
        task_routes={TASK_NAMES[task]: {"queue": task} for task in TASKS},
        # One message at a time per thread, acknowledged after its last row is stored.
        worker_pool="workers.pool:TaskPool",
        worker_concurrency=task_threads(config),
        task_acks_late=True,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,  # threads cannot be cancelled
        worker_enable_remote_control=True,
        worker_send_task_events=True,
        task_send_sent_event=False,  # costs a bulk producer a third of its rate
        worker_disable_rate_limits=True,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        result_expires=86400,
        result_backend_thread_safe=True,
        result_backend_transport_options=result_transport,
        visibility_timeout=config.visibility_timeout_seconds,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,  # an outage of any length
        broker_channel_error_retry=True,  # a Redis that refuses all writes: `workers.lost_connection`
        broker_transport_options=transport,
    )
    # By name: whoever only sends tasks loads none of it.
    app.steps["worker"].add("workers.lost_connection:LostConnectionStep")
    app.steps["worker"].add("workers.results:ResultsStep")
    app.steps["worker"].add("workers.bootsteps:EngineStep")
    app.steps["consumer"].add("workers.bootsteps:LeaseStep")
    app.steps["consumer"].add("workers.spare_thread:SpareThreadStep")
    app.steps["consumer"].add("workers.intake:IntakeStep")
    app.steps["consumer"].add("workers.discretion:DiscreetInfo")
    bindings.install()
    discretion.install()
    flower_doors.install()
    return app


def __getattr__(name: str) -> Celery:
    """``app``: the app of this process, made when it is first asked for, so that importing reads no settings."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made = globals()["app"] = create_app(settings())
    return made
