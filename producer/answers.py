"""The answers of calls: one thread and one connection for all of them, however many are waited for.

Asks for all outstanding keys at once, every few hundredths of a second. Of what it has read only a word stays for two
minutes, that the call is done: a worker that gets it again by then does not begin it anew. Celery's own
``AsyncResult`` subscribes to a channel for each call on a connection that its waiting threads share, and has to ask
for the keys anyway after each lost connection, because what was published meanwhile is gone.
"""

from __future__ import annotations

import copy
import json
import logging
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from redis import Redis
from redis.exceptions import OutOfMemoryError, RedisError

from producer.errors import FleetError
from workers.redis_client import reason

log = logging.getLogger(__name__)

#: Celery's key of a task's result.
RESULT_KEY = "celery-task-meta-{}"
#: What stays of a result that was read, as Celery would read it, and for how long.
READ, READ_SECONDS = '{"status": "SUCCESS", "result": null}', 120
#: Celery's states of a task that goes on.
_NOT_YET = ("PENDING", "RECEIVED", "STARTED", "RETRY")
#: A look is repeated after this share of the time that the answer before, or the last call, is ago.
_AGE_SHARE = 0.05
_SHORTEST_SECONDS, _LONGEST_SECONDS = 0.01, 0.1
#: After an error; Redis is asked three times before there is one.
_TROUBLE_SECONDS = 1.0
_KEYS_A_LOOK = 500
_CLOSE_SECONDS = 2.0

T = TypeVar("T")
Meta = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Expected:
    future: Future[Any]
    read: Callable[[Meta], Any]


class Answers:
    """Gives each call its answer. Thread-safe. An outage of Redis fails no call.

    While calls are outstanding, each look begins with ``check`` (when that raises FleetError, all of them fail with it)
    and ends with ``tend``, which is given their ids and may raise RedisError.
    """

    def __init__(
        self,
        redis: Redis,
        check: Callable[[], None] = lambda: None,
        tend: Callable[[list[str]], None] = lambda ids: None,
    ) -> None:
        self._redis = redis
        self._check = check
        self._tend = tend
        self._changed = threading.Condition()
        self._expected: dict[str, _Expected] = {}
        self._closed = False
        #: When the last call was made or answered (`time.monotonic`).
        self._event_at = 0.0
        #: Why Redis does not answer at present.
        self.trouble: str | None = None
        self._thread = threading.Thread(target=self._work, name="answers", daemon=True)
        self._thread.start()

    def expect(self, id: str, read: Callable[[Meta], T]) -> Future[T]:
        """The answer of task ``id``, as ``read`` reads it; what that raises is raised by the future."""
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()  # from here on, who stops waiting for it does not cancel it
        with self._changed:
            self._expected[id] = _Expected(future, read)
            self._event_at = time.monotonic()
            self._changed.notify()
        return future

    def give_up(self, ids: Iterable[str], error: FleetError) -> list[str]:
        """Let those of ``ids`` that have no answer yet fail; returns them. What comes for them later expires."""
        with self._changed:
            given_up = {id: self._expected.pop(id) for id in ids if id in self._expected}
        for expected in given_up.values():
            expected.future.set_exception(copy.copy(error))
        return list(given_up)

    def outstanding(self) -> list[str]:
        """The ids of the calls that have no answer yet."""
        with self._changed:
            return list(self._expected)

    def close(self) -> None:
        """Stop, within seconds. What is outstanding is the caller's to give up."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:  # who is told of an answer may well close the client
            self._thread.join(_CLOSE_SECONDS)  # it may be waiting for a Redis that is silent

    def _work(self) -> None:
        pause = 0.0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed, pause)
                self._changed.wait_for(lambda: self._closed or self._expected)
                if self._closed:
                    return
                ids = list(self._expected)
            try:
                pause = self._look(ids)
            except Exception:
                if not self._closed:  # then its connection was, beneath this thread
                    raise

    def _look(self, ids: list[str]) -> float:
        """Read what has come for ``ids``; returns the seconds until the next look."""
        try:
            self._check()
            found = sum(self._read(ids[start : start + _KEYS_A_LOOK]) for start in range(0, len(ids), _KEYS_A_LOOK))
            self._tend(ids)
        except FleetError as error:
            self.give_up(ids, error)
            return 0.0
        except RedisError as error:
            if self.trouble is None and not self._closed:
                log.warning("Redis does not answer, trying again: %s", reason(error))
            self.trouble = reason(error)
            return _TROUBLE_SECONDS
        self.trouble = None
        now = time.monotonic()
        if found:
            self._event_at = now
        return min(_LONGEST_SECONDS, max(_SHORTEST_SECONDS, _AGE_SHARE * (now - self._event_at)))

    def _read(self, ids: list[str]) -> int:
        payloads = cast("list[bytes | None]", self._redis.mget([RESULT_KEY.format(id) for id in ids]))
        found = {id: _meta(payload) for id, payload in zip(ids, payloads, strict=True) if payload}
        final = {id: meta for id, meta in found.items() if meta.get("status") not in _NOT_YET}
        try:
            if final:
                self._take([RESULT_KEY.format(id) for id in final])
        finally:  # a Redis that refuses that, or goes away over it, keeps nobody from an answer that was read
            with self._changed:
                settled = [(self._expected.pop(id), meta) for id, meta in final.items() if id in self._expected]
            for expected, meta in settled:
                _settle(expected, meta)
        return len(settled)

    def _take(self, names: list[str]) -> None:
        try:
            with self._redis.pipeline(transaction=False) as pipe:
                for name in names:
                    pipe.set(name, READ, ex=READ_SECONDS)
                pipe.execute()
        except OutOfMemoryError:  # then there is no room for that
            self._redis.delete(*names)


def _meta(payload: bytes) -> Meta:
    try:
        meta = json.loads(payload)
    except ValueError:
        return {}
    return meta if isinstance(meta, dict) else {}


def _settle(expected: _Expected, meta: Meta) -> None:
    try:
        answer = expected.read(meta)
    except Exception as error:  # noqa: BLE001 - whoever waits for the answer gets it
        expected.future.set_exception(error)
    else:
        expected.future.set_result(answer)
