"""What workers tell each other about a message that is being run: who runs it, what it has done, who died over it.

Redis gives a message out again when its worker died, but also after a drain, a lost connection or a slow renewal, marks
all of them ``redelivered`` and keeps no count. So a worker leaves a mark while it runs a message. A mark that nobody
renews any more tells of a death. Marks are a cache: one that is lost only means another try.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from redis import Redis
from redis.exceptions import RedisError

from workers import keys
from workers.outage import outlast
from workers.settings import Settings

log = logging.getLogger(__name__)

#: For how long it is known that a message of a job was done, should it come back.
DONE_SECONDS = 120
#: A beat that failed is made again so soon, that nobody is taken for dead after an outage.
RETRY_SECONDS = 1.0
DONE = b"done"
#: What a message's hash says of who runs it.
_OF_HOLDER = ("holder", "alone", "told_to_end")


@dataclass(frozen=True, slots=True)
class Claim:
    """What a worker finds when it takes a message.

    ``state``: ``mine`` (run it), ``orphaned`` (its holder left it: dead, unless Redis was away), ``elsewhere`` (a live
    worker runs it), ``done``. ``deaths``: how often its worker died, ``deaths_alone``: while nothing else ran there.
    ``settled``: the rows that need nothing more from it. ``cancelled``: nobody waits for its answer (`mark_cancelled`).
    """

    state: Literal["mine", "orphaned", "elsewhere", "done"] = "mine"
    deaths: int = 0
    deaths_alone: int = 0
    settled: frozenset[int] = frozenset()
    #: Whether the holder that left it ran it alone, and whether it had been told to end.
    left_alone: bool = False
    told_to_end: bool = False
    cancelled: bool = False

    @property
    def suspect(self) -> bool:
        """Whether a worker died over it."""
        return self.deaths + self.deaths_alone > 0

    def with_death(self, *, alone: bool) -> Claim:
        """One death more, and the message in this worker's hands."""
        if alone:
            return replace(self, state="mine", deaths_alone=self.deaths_alone + 1)
        return replace(self, state="mine", deaths=self.deaths + 1)


def mark_cancelled(redis: Redis, task_ids: Iterable[str]) -> None:
    """Let workers drop these calls when they take them, within a day from now. Raises RedisError.

    Celery's ``revoke`` reaches only the workers that listen at that moment, and a worker that is restarted forgets it.
    """
    with redis.pipeline() as pipe:
        for task_id in task_ids:
            pipe.hset(keys.task(task_id), "cancelled", 1)
            pipe.expire(keys.task(task_id), keys.TASK_EXPIRES_SECONDS)
        pipe.execute()


class TaskMarks:
    """The marks of this process on the messages that it runs. Thread-safe.

    Not for what must never be lost: an answer is in its stream, a message in its queue.
    """

    def __init__(self, redis: Redis, stopping: threading.Event, settings: Settings, process: str | None = None) -> None:
        self._redis = redis
        self._stopping = stopping
        self.instance = (process or uuid.uuid4().hex).encode()
        # Shorter than the visibility timeout: when a dead worker's messages come back, its marks are silent already.
        self._held_ms = int(settings.visibility_timeout_seconds * 750)
        self._beat_seconds = settings.beat_seconds
        self._lock = threading.Lock()
        self._running: set[str] = set()
        #: What may have this process's claim without having been begun.
        self._claimed: set[str] = set()
        self._undisturbed_since = time.monotonic()
        #: Whether this worker was told to end.
        self._told_to_end = False
        self._closed = threading.Event()
        self._due = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="marks", daemon=True)

    def start(self) -> None:
        """Begin to renew the marks."""
        self._thread.start()

    def tell_ending(self) -> None:
        """Say that this worker was told to end: killed before it does, nothing that it runs is to blame."""
        self._told_to_end = True
        self._due.set()

    def close(self, *, release: bool) -> None:
        """Renew no more marks. ``release``: take back those of what still runs: the process ends, but not over it."""
        self._closed.set()
        self._due.set()
        if self._thread.is_alive():
            self._thread.join(RETRY_SECONDS)
        if not release or self._thread.is_alive():  # it waits for Redis, and so would we
            return

        def write() -> None:
            with self._redis.pipeline() as pipe:
                for task_id in self._running:
                    pipe.hdel(keys.task(task_id), *_OF_HOLDER)
                    pipe.delete(keys.held(task_id))
                pipe.execute()

        with self._lock:
            self._at_best(write)
            self._running.clear()

    def claim(self, task_id: str) -> Claim:
        """Take a message, if no live worker runs it and nobody has done it. Waits for Redis; raises EngineLostError."""

        def ask() -> list[Any]:
            with self._redis.pipeline() as pipe:
                pipe.hgetall(keys.task(task_id))
                pipe.set(keys.held(task_id), self.instance, nx=True, px=self._held_ms)
                pipe.get(keys.held(task_id))
                return pipe.execute()

        self._claimed.add(task_id)  # also where the reply is lost
        mark, _, holder = outlast(ask, self._stopping, f"the claim on task {task_id}")
        if holder != self.instance:
            self._claimed.discard(task_id)
        if holder == DONE:
            return Claim("done")
        state: Literal["mine", "orphaned", "elsewhere"] = "mine"
        if holder != self.instance:
            state = "elsewhere"
        elif mark.get(b"holder", self.instance) != self.instance:
            state = "orphaned"
        return Claim(
            state,
            deaths=int(mark.get(b"deaths", 0)),
            deaths_alone=int(mark.get(b"deaths_alone", 0)),
            settled=keys.settled_rows(mark),
            left_alone=mark.get(b"alone") == b"1",
            told_to_end=mark.get(b"told_to_end", b"") == mark.get(b"holder"),  # not one that was paused for long
            cancelled=b"cancelled" in mark,
        )

    def unclaim(self, task_id: str) -> None:
        """Take back a claim on a message that was not begun, if there is one. A mark that a dead worker left stays."""
        if task_id not in self._claimed:
            return

        def write() -> None:
            with self._redis.pipeline() as pipe:
                pipe.get(keys.held(task_id))
                pipe.hget(keys.task(task_id), "holder")
                claimed_by, left_by = pipe.execute()
                if claimed_by != self.instance:  # it was silent for too long
                    return
                if left_by == self.instance:  # of a `begin` whose reply was lost
                    pipe.hdel(keys.task(task_id), *_OF_HOLDER)
                pipe.delete(keys.held(task_id))
                pipe.execute()

        self._claimed.discard(task_id)
        self._at_best(write)

    def still_mine(self, task_id: str) -> bool:
        """Whether no other worker has shown since the claim that it runs the message. Waits for Redis."""
        key = keys.held(task_id)
        return outlast(lambda: self._redis.get(key), self._stopping, f"task {task_id}") in (self.instance, None)

    def undisturbed(self) -> bool:
        """Whether Redis has answered for so long that every live worker has had the time to renew its marks."""
        return time.monotonic() - self._undisturbed_since > 1.5 * self._beat_seconds

    def bury(self, task_id: str, claim: Claim) -> Claim:
        """Count the death of the worker that left its mark on the message. Waits for Redis; raises EngineLostError."""
        counted = claim.with_death(alone=claim.left_alone)
        outlast(lambda: self._write_deaths(task_id, counted), self._stopping, f"the mark of task {task_id}")
        return counted

    def begin(self, task_id: str, *, alone: bool) -> None:
        """Say that this process runs the message from now on. Waits for Redis; raises EngineLostError."""

        def write() -> None:
            with self._redis.pipeline() as pipe:
                pipe.hdel(keys.task(task_id), *_OF_HOLDER)
                pipe.hset(keys.task(task_id), mapping={"holder": self.instance, "alone": int(alone)})
                pipe.expire(keys.task(task_id), keys.TASK_EXPIRES_SECONDS)
                pipe.set(keys.held(task_id), self.instance, px=self._held_ms)
                pipe.execute()

        outlast(write, self._stopping, f"the mark of task {task_id}")
        self._claimed.discard(task_id)
        with self._lock:
            self._running.add(task_id)
        if self._told_to_end:
            self._due.set()

    def copied(self, task_id: str) -> None:
        """Note that a message was given out again while another process runs it. It may wait for as long as a queue."""

        def write() -> None:
            with self._redis.pipeline() as pipe:
                pipe.hset(keys.task(task_id), "copied", 1)
                pipe.expire(keys.task(task_id), keys.TASK_EXPIRES_SECONDS)
                pipe.execute()

        self._at_best(write)

    def end(self, task_id: str, *, done_seconds: int, done: bool) -> None:
        """Take the mark off a message that has ended. Should it come back in ``done_seconds``, nobody has to run it.

        One that was `copied` will: that it was ``done`` is known for a day then.
        """
        copied = None

        def write() -> None:
            nonlocal copied
            with self._redis.pipeline() as pipe:
                pipe.hget(keys.task(task_id), "copied")
                pipe.delete(keys.task(task_id), keys.held(task_id))
                if done_seconds:
                    pipe.set(keys.held(task_id), DONE, ex=done_seconds)
                copied = pipe.execute()[0] or copied  # that of the first try, where this one is another
            if copied and done:
                self._redis.set(keys.held(task_id), DONE, ex=keys.TASK_EXPIRES_SECONDS)

        self._forget(task_id)
        outlast(write, self._stopping, f"the end of task {task_id}")

    def release(self, task_id: str) -> None:
        """Take the mark off a message that goes back to the queue through no fault of its own."""

        def write() -> None:
            with self._redis.pipeline() as pipe:
                pipe.hdel(keys.task(task_id), *_OF_HOLDER)
                pipe.delete(keys.held(task_id))
                pipe.execute()

        self._forget(task_id)
        self._at_best(write)

    def lost(self, task_id: str, claim: Claim, *, alone: bool) -> None:
        """Note that the engine died under the message, which goes back to the queue."""

        def write() -> None:
            self._write_deaths(task_id, claim.with_death(alone=alone))
            self._redis.delete(keys.held(task_id))

        self._forget(task_id)
        self._at_best(write)

    def settle(self, task_id: str, row: int) -> None:
        """Note that a row needs nothing more from this message. Waits for Redis; raises EngineLostError."""

        def write() -> None:
            with self._redis.pipeline() as pipe:
                pipe.hset(keys.task(task_id), keys.settled_row(row), "")
                pipe.expire(keys.task(task_id), keys.TASK_EXPIRES_SECONDS)
                pipe.execute()

        outlast(write, self._stopping, f"the mark of task {task_id}")

    def accuse(self, task_id: str, claim: Claim) -> None:
        """Make a message that is not sent yet a suspect, with the deaths of the one that its row comes from.

        Waits for Redis; raises EngineLostError.
        """
        outlast(lambda: self._write_deaths(task_id, claim), self._stopping, f"the mark of task {task_id}")

    def _write_deaths(self, task_id: str, claim: Claim) -> None:
        """The counts as they are, not one more: a transaction whose reply is lost is sent again."""
        with self._redis.pipeline() as pipe:
            pipe.hset(keys.task(task_id), mapping={"deaths": claim.deaths, "deaths_alone": claim.deaths_alone})
            pipe.hdel(keys.task(task_id), *_OF_HOLDER)
            pipe.expire(keys.task(task_id), keys.TASK_EXPIRES_SECONDS)
            pipe.execute()

    def _at_best(self, write: Callable[[], None]) -> None:
        """The worker may be ending and Redis away: a mark that stays looks like a death, which costs a try."""
        try:
            write()
        except RedisError as error:
            log.warning("a mark stays as it is: Redis does not take it: %s", error)

    def _forget(self, task_id: str) -> None:
        self._claimed.discard(task_id)
        with self._lock:  # a beat that is under way ends first: it would put the mark back
            self._running.discard(task_id)

    def _repeat(self) -> None:
        last = time.monotonic()
        wait_seconds = self._beat_seconds
        while not self._pause(wait_seconds):
            away, wait_seconds = wait_seconds < self._beat_seconds, self._beat_seconds
            try:
                self._beat()
            except RedisError as error:
                log.log(logging.DEBUG if away else logging.WARNING, "marks are not renewed: %s", error)
                wait_seconds = min(RETRY_SECONDS, self._beat_seconds)
                self._undisturbed_since = time.monotonic()
            now = time.monotonic()
            if now - last > 2 * self._beat_seconds:  # Redis, or this process, stood still
                self._undisturbed_since = now
            last = now

    def _pause(self, seconds: float) -> bool:
        """Wait until the marks are to be renewed; whether they are no more."""
        self._due.wait(seconds)
        self._due.clear()
        return self._closed.is_set()

    def _beat(self) -> None:
        with self._lock, self._redis.pipeline(transaction=False) as pipe:
            # Written, though nobody reads it: a full Redis would answer a ping, and refuse the marks of the others.
            pipe.set(keys.beat(self.instance.decode()), 1, px=self._held_ms)
            for task_id in self._running:
                pipe.set(keys.held(task_id), self.instance, px=self._held_ms)
                if self._told_to_end:
                    pipe.hset(keys.task(task_id), "told_to_end", self.instance)
                    pipe.expire(keys.task(task_id), keys.TASK_EXPIRES_SECONDS)
            pipe.execute()
