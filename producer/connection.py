"""A client's way to its fleet: the one of ``REDIS_URL``, or one of its own. Sends calls and waits for their answers."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from redis import Redis
from redis.exceptions import OutOfMemoryError, RedisError

from producer.answers import Answers
from producer.brief import Brief, SharedAnswer
from producer.calls import Call
from producer.errors import CallCancelledError, ClientClosedError, FleetError, FleetUnavailableError, UsageError
from producer.handle import Handle
from workers.errors import SettingsError
from workers.marks import mark_cancelled
from workers.messages import TASK_NAMES
from workers.presence import Presence, live_workers
from workers.redis_client import check_server, connect, connect_briefly, reason, shown_url
from workers.settings import Settings, variable

if TYPE_CHECKING:
    from celery import Celery

    from producer.keeper import FleetKeeper
    from producer.lost_calls import LostCalls

log = logging.getLogger(__name__)

#: For how long it is remembered which workers are live.
PRESENCE_SECONDS = 5.0
#: Longest wait for Redis of those who ask why an answer does not come, and of those who tell what is cancelled.
ASK_SECONDS, TELL_SECONDS = 1.0, 5.0
FORKED = "the client was opened before this process was forked: open one in each process"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class OwnFleet:
    """What a client's own fleet is made of; ``environment`` holds further settings of its workers."""

    workers: int
    environment: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Open:
    """What an open connection has."""

    url: str
    app: Celery
    redis: Redis
    #: For why an answer does not come, and to tell the fleet what is cancelled.
    asking: SharedAnswer[list[Presence]]
    telling: Brief
    answers: Answers
    lost: LostCalls
    #: The process that has its threads.
    pid: int


class Connection:
    """Thread-safe. Opens at its first use, and can be used until it is closed."""

    def __init__(self, config: Settings, own: OwnFleet | None) -> None:
        self.config = config
        self._own = own
        self.keeper: FleetKeeper | None = None
        self._opened: _Open | None = None
        self._opening = threading.Lock()
        self._closed = False
        self._present: list[Presence] = []
        #: When that was last asked for (`time.monotonic`), by one thread at a time.
        self._present_at = float("-inf")
        self._looking = threading.Lock()

    @property
    def own_model(self) -> str | None:
        """The model that an own fleet was started with; None for the default, and without an own fleet."""
        return None if self._own is None else self._own.environment.get(variable("model"))

    def open(self) -> _Open:
        """Reach the broker, or start the own fleet and wait until its workers are ready; once, whoever asks first.

        Raises UsageError, FleetUnavailableError, ClientClosedError, and FleetError for an own fleet that cannot start.
        """
        opened = self._opened
        if opened is None:
            with self._opening:
                opened = self._opened = self._opened or self._open()
        if self._closed:
            raise ClientClosedError("the client is closed: make another one")
        self.check_process()
        return opened

    def check_process(self) -> None:
        """Raise UsageError in a forked process: it has no thread that brings answers."""
        if self._opened is not None and self._opened.pid != os.getpid():
            raise UsageError(FORKED)

    def submit(self, call: Call[T]) -> Handle[T]:
        """Send ``call``. Raises UsageError for what no live worker can do, and as `open` does."""
        opened = self.open()
        id = uuid.uuid4().hex
        queue = self._queue_of(call, opened)
        handle = Handle(id, opened.answers.expect(id, call.answer), self)
        send = partial(self._send, opened.app, call, id, queue)
        try:
            send()
        except BaseException as error:
            opened.answers.give_up([id], CallCancelledError("the call was not sent"))
            if self._closed and isinstance(error, Exception):  # its connections, beneath this thread
                raise ClientClosedError("the client was closed") from error
            if _is_trouble(error):
                raise FleetUnavailableError(f"{shown_url(opened.url)} does not answer: {reason(error)}") from error
            raise
        opened.lost.sent(id, queue, send)
        if self._closed:  # meanwhile: nobody would look for its answer
            opened.answers.give_up([id], ClientClosedError("the client was closed"))
        return handle

    def check(self, call: Call[Any]) -> None:
        """Raise UsageError if no live worker can do ``call``, and as `open` does."""
        self._queue_of(call, self.open())

    def cancel(self, ids: Iterable[str], error: FleetError | None = None) -> list[str]:
        """Give up those of ``ids`` that have no answer, here and (as far as it answers) in the fleet; returns them.

        Waits for Redis, a few seconds at most.
        """
        opened = self._opened
        if opened is None or opened.pid != os.getpid():
            return []
        cancelled = opened.answers.give_up(ids, error or CallCancelledError("the call was cancelled"))
        if cancelled:
            try:
                _tell_workers(opened, cancelled)
            except Exception as trouble:
                if not _is_trouble(trouble):
                    raise
                log.warning("%d calls are cancelled here, but not in the fleet: %s", len(cancelled), reason(trouble))
        return cancelled

    def why_waiting(self) -> str:
        """What may keep an answer from coming, for messages; nothing where all is well. Asks Redis, for a second."""
        opened = self._opened
        if opened is None:
            return ""
        if opened.pid != os.getpid():
            return f": {FORKED}"
        where = shown_url(opened.url)
        if self._closed:
            return ": the client was closed"
        if opened.answers.trouble is not None:
            return f": {where} does not answer ({opened.answers.trouble})"
        try:
            return "" if opened.asking.get() else f": no worker is live on {where}"
        except RedisError as error:
            return f": {where} does not answer ({reason(error)})"

    def close(self) -> None:
        """Give up what has no answer yet, and end the own fleet. Returns when all is gone; again: does nothing.

        Where Redis is silent it is waited for a few seconds, by nobody who waits for an answer.
        """
        atexit.unregister(self.close)
        if self._opened is not None and self._opened.pid != os.getpid():
            return  # a forked process has nothing of its own here to end
        self._closed = True
        if self.keeper is not None:
            self.keeper.stop()
        with self._opening:
            opened, keeper = self._opened, self.keeper
        if opened is not None:
            left, closed = opened.answers.outstanding(), ClientClosedError("the client was closed")
            if keeper is None:
                self.cancel(left, closed)
            else:
                opened.answers.give_up(left, closed)
            opened.answers.close()
            opened.app.close()
            opened.redis.close()
            opened.asking.brief.close()
            opened.telling.close()
        if keeper is not None:
            keeper.stop()

    def _open(self) -> _Open:
        # Here, so that `from producer import Client` stays cheap.
        from producer.lost_calls import LostCalls
        from workers.app import create_app
        from workers.settings import load_settings

        if self._closed:
            raise ClientClosedError("the client is closed: make another one")
        url = self._reach()
        app = create_app(load_settings(REDIS_URL=url), set_as_current=False)
        app.backend_cls = "disabled"  # `Answers` reads them; Celery's own would subscribe to each
        redis = connect(url)
        atexit.register(self.close)
        lost = LostCalls(redis, self.config.stall_seconds)
        asking = SharedAnswer(Brief(connect_briefly(url, ASK_SECONDS)), live_workers)
        telling = Brief(connect_briefly(url, TELL_SECONDS))
        answers = Answers(redis, self._check, lost.step)
        return _Open(url, app, redis, asking, telling, answers, lost, os.getpid())

    def _reach(self) -> str:
        """The broker's URL, once the fleet is there."""
        if self._own is None:
            return _answering(str(self.config.redis_url))
        from producer.keeper import FleetKeeper

        keeper = self.keeper = FleetKeeper(self._own.workers, self._own.environment, self.config.worker_restarts)
        try:
            keeper.wait()
        except BaseException:
            keeper.stop()
            self.keeper = None
            raise
        return keeper.url

    def _check(self) -> None:
        if self.keeper is not None:
            self.keeper.check()

    def _send(self, app: Celery, call: Call[Any], id: str, queue: str) -> None:
        from workers.app import PRIORITY_INTERACTIVE

        app.send_task(
            TASK_NAMES[call.task],
            args=[[call.record.model_dump(exclude_defaults=True)]],
            kwargs={"options": call.options.model_dump(exclude_defaults=True)},
            task_id=id,
            queue=queue,
            priority=PRIORITY_INTERACTIVE,
            argsrepr="(1 record)",
            kwargsrepr="{}",
            add_to_parent=False,  # where an application's own task calls: its result would list every call
        )

    def _queue_of(self, call: Call[Any], opened: _Open) -> str:
        from producer.routing import choose_queue

        model = call.options.model
        if self._own is not None and model == self.own_model:
            model = None  # whatever name it gives itself
        try:
            return choose_queue(self._workers(opened), call.task, call.language, model)
        except UsageError:  # unless a worker came meanwhile
            present = self._workers(opened, fresh=True)
        try:
            return choose_queue(present, call.task, call.language, model)
        except UsageError as error:  # in the words of the command line's options
            raise UsageError(error.message.removeprefix("--"), type="not_supported") from None

    def _workers(self, opened: _Open, *, fresh: bool = False) -> list[Presence]:
        """Who is live: as of a few seconds ago, unless it is to be ``fresh``. While one thread looks, others go on."""
        self._check()
        asked = time.monotonic()
        since = asked if fresh else asked - PRESENCE_SECONDS
        if self._present_at < since:
            must_wait = fresh or self._present_at == float("-inf")
            if self._looking.acquire(blocking=must_wait):
                try:
                    if self._present_at < since:  # nobody else has looked meanwhile
                        self._look(opened)
                finally:
                    self._looking.release()
        return self._present

    def _look(self, opened: _Open) -> None:
        began = time.monotonic()
        try:
            self._present = live_workers(opened.redis)
        except Exception as error:
            if self._closed:  # its connection, beneath this thread
                raise ClientClosedError("the client was closed") from error
            if not isinstance(error, RedisError):
                raise
            raise FleetUnavailableError(f"{shown_url(opened.url)} does not answer: {reason(error)}") from error
        self._present_at = began


def _tell_workers(opened: _Open, cancelled: list[str]) -> None:
    try:
        opened.telling.ask(lambda redis: mark_cancelled(redis, cancelled))
    except OutOfMemoryError:  # a full Redis takes no mark, but tells those who listen now
        opened.app.control.revoke(cancelled)


def _answering(url: str) -> str:
    try:
        check_server(url, control=False)
    except SettingsError as error:
        raise UsageError(str(error)) from None
    except RedisError as error:
        raise FleetUnavailableError(f"REDIS_URL {shown_url(url)}: does not answer ({reason(error)})") from None
    return url


def _is_trouble(error: BaseException) -> bool:
    from kombu.exceptions import OperationalError

    return isinstance(error, OperationalError | RedisError | OSError)
