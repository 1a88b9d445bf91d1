"""What a delivery of a message leads to: it is run, run alone, taken apart, joined, left to others or given up.

=================================================  ==================================================================
what is found                                      what is done
=================================================  ==================================================================
it runs in this process, or did a moment ago       joined: the same outcome (`workers.single_flight`), of which a
                                                   call's result and what follows it come once
it runs in another live worker                     wait for that; after a while back to the tail of the queue
it is done (a message of a job)                    nothing is left to do
its sender has given it up (a call)                dropped
nobody died over it                                run it, beside others; rows that have their answers are skipped
a worker died over it                              run it alone (`workers.alone`): another may be to blame
another that runs alone here is in its way         after a moment back to the tail of the queue, for other workers
a worker died over a chunk while it was alone      each row that is left goes on as a suspect, in its own message
two workers died over it while it was alone        quarantined: it gets its error
=================================================  ==================================================================

The marks behind this are in `workers.marks`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, Protocol

from celery.exceptions import Ignore, Reject
from celery.result import AsyncResult

from workers.alone import Gate, ShutError
from workers.app import priority_of
from workers.errors import EngineLostError, TranscriptionError
from workers.marks import DONE_SECONDS, Claim, TaskMarks
from workers.messages import Failure
from workers.outage import outlast
from workers.single_flight import SingleFlight

log = logging.getLogger(__name__)

#: So many deaths of its worker, with nothing else running there, are a record's own fault.
DEATHS_ALONE = 2
#: How long a thread waits for another worker's run before the message goes back to the tail of the queue.
ELSEWHERE_SECONDS = 30
CHECK_SECONDS = 1.0
#: A call's result is stored within this time after its run, unless nobody wants it.
STORED_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Envelope:
    """A message besides what it asks for. ``id`` is None where a task is called as a plain function."""

    id: str | None
    name: str
    queue: str
    priority: int
    redelivered: bool

    @classmethod
    def of(cls, task: Any) -> Envelope:
        """The envelope of the message that ``task`` (a bound Celery task) runs for."""
        info = task.request.delivery_info or {}
        return cls(
            id=None if task.request.id is None else str(task.request.id),  # a UUID, from some applications
            name=task.name,
            queue=str(info.get("routing_key") or ""),
            priority=priority_of(info),
            redelivered=bool(info.get("redelivered")),
        )


class CallDroppedError(Ignore):  # type: ignore[misc]
    """A call that was cancelled before it was begun: it has no result, and needs none."""


class Work(Protocol):
    """What a message asks for."""

    @property
    def of_job(self) -> bool:
        """Whether its answers go to a job's stream; otherwise they are the task's result."""

    @property
    def done_seconds(self) -> int:
        """For how long it is known that it was done, should it come back; 0 if nobody has to know."""

    @property
    def divisible(self) -> bool:
        """Whether its rows can go on in messages of their own."""

    def run(self, claim: Claim) -> Any:
        """Do it, and return the task's result. Raises TranscriptionError, EngineLostError."""

    def divide(self, claim: Claim) -> Any:
        """Send each row that is left on as a suspect in its own message, and return the task's result."""

    def give_up(self, claim: Claim, failure: Failure) -> Any:
        """Answer with ``failure``, without trying, and return the task's result."""

    def repeat(self) -> Any:
        """The task's result where all is done already. Raises Ignore where it is stored already."""


class Deliveries:
    """Decides for each delivery to this process. Thread-safe."""

    def __init__(self, marks: TaskMarks, stopping: threading.Event, healthy: Callable[[], bool]) -> None:
        self.marks = marks
        self._stopping = stopping
        self._healthy = healthy
        #: Whether a signal told this worker to end, which its engine's processes may have heard too (`workers.drain`).
        self.told_to_end: Callable[[], bool] = lambda: False
        #: The engine is closed on purpose: that it answers no more is no death.
        self._closing = False
        self._flights = SingleFlight()
        self._gate = Gate(stopping)

    def handle(self, envelope: Envelope, work: Work) -> Any:
        """The task's result. Raises TranscriptionError, Reject (the message goes back to the queue) or Ignore.

        The latter as CallDroppedError where nobody waits for it.
        """
        task_id = envelope.id
        try:
            if task_id is None:
                return work.run(Claim())
            return self._flights.run(
                task_id,
                lambda: self._deliver(task_id, envelope, work),
                reuse=work.of_job or envelope.redelivered,
                joined=lambda flight: self._joined(task_id, work, flight),
            )
        except EngineLostError as error:
            log.error("task %s goes back to the queue: %s", task_id, error)
            raise Reject(str(error), requeue=True) from error
        except ShutError as error:
            log.info("task %s goes back to the queue: %s", task_id, error)
            raise Reject(str(error), requeue=True) from error

    def shut(self) -> bool:
        """Whether a message that came now would have to wait for one that runs alone."""
        return self._gate.shut()

    def _joined(self, task_id: str, work: Work, flight: Future[Any]) -> Any:
        """The outcome of a run of this process that a further delivery has joined.

        A call's result, and what follows it, are its first delivery's: sent by both, what follows would come twice.
        """
        waited_seconds = 0.0
        if not work.of_job and not isinstance(flight.exception(), EngineLostError | ShutError):
            while waited_seconds < STORED_SECONDS and not self._stopping.wait(CHECK_SECONDS):
                if self._has_result(task_id):
                    return work.repeat()
                waited_seconds += CHECK_SECONDS
        return flight.result()

    def tell_ending(self) -> None:
        """Say that this worker was told to end: if it is killed now, what runs is not what it died over."""
        self.marks.tell_ending()

    def close(self) -> None:
        """Renew no more marks; what still runs goes back to the queue. Call it before the engine is closed."""
        self._closing = self._healthy()
        self.marks.close(release=self._closing)

    def _deliver(self, task_id: str, envelope: Envelope, work: Work) -> Any:
        try:
            return self._decide(task_id, envelope, work)
        finally:
            self.marks.unclaim(task_id)  # where it was not begun

    def _decide(self, task_id: str, envelope: Envelope, work: Work) -> Any:
        with self._gate.entered(alone=False):
            claim = self.marks.claim(task_id)
            # A call that comes again may be done, and its acknowledgement lost: it leaves no mark.
            fresh = work.of_job or not envelope.redelivered
            if fresh and claim.state == "mine" and not claim.suspect and not claim.cancelled:
                return self._run(task_id, work, claim, alone=False)
        if claim.cancelled and claim.state == "elsewhere":  # whose mark it is
            raise _dropped(task_id)
        was_elsewhere = claim.state == "elsewhere"
        claim = self._settled(task_id, claim)
        if was_elsewhere and not work.of_job:
            self._stopping.wait(CHECK_SECONDS)  # that worker's mark goes a moment before its result is stored
        again = envelope.redelivered or was_elsewhere
        if claim.state == "done" or (again and not work.of_job and self._has_result(task_id)):
            log.info("task %s is done already", task_id)
            return work.repeat()
        if claim.cancelled:
            # Should it come back before it is acknowledged.
            self.marks.end(task_id, done_seconds=DONE_SECONDS, done=False)
            raise _dropped(task_id)
        if claim.deaths_alone >= DEATHS_ALONE:
            return self._without_engine(task_id, work, lambda: work.give_up(claim, _quarantine(claim)))
        if claim.deaths_alone and work.divisible:
            return self._without_engine(task_id, work, lambda: work.divide(claim))
        with self._gate.entered(alone=claim.suspect):
            return self._run(task_id, work, claim, alone=claim.suspect)

    def _settled(self, task_id: str, claim: Claim) -> Claim:
        """Wait until the message is this worker's to run, or done."""
        waited_seconds = 0.0
        if claim.state == "elsewhere":
            self.marks.copied(task_id)
        while claim.state in ("elsewhere", "orphaned"):
            if claim.state == "orphaned" and self.marks.undisturbed():
                if self.marks.still_mine(task_id):
                    if claim.told_to_end:
                        log.warning("task %s: the worker that ran it was killed while it ended", task_id)
                        return replace(claim, state="mine")
                    claim = self.marks.bury(task_id, claim)
                    log.error("task %s: the worker that ran it is gone", task_id)
                    break
                claim = self.marks.claim(task_id)
                continue
            if claim.state == "elsewhere" and waited_seconds >= ELSEWHERE_SECONDS:
                raise Reject("it runs in another worker", requeue=True)
            if self._stopping.wait(CHECK_SECONDS):
                raise EngineLostError("the worker is ending and its grace is over")
            waited_seconds += CHECK_SECONDS
            claim = self.marks.claim(task_id)
        return claim

    def _run(self, task_id: str, work: Work, claim: Claim, *, alone: bool) -> Any:
        if not self._healthy():
            self.marks.unclaim(task_id)  # for another worker: this one keeps its thread
            time.sleep(CHECK_SECONDS)  # the message comes back at once, and this worker ends at any moment
            raise EngineLostError("the engine is gone")  # not by this message: it was not begun
        self.marks.begin(task_id, alone=alone)
        try:
            result = work.run(claim)
        except EngineLostError:
            if self.told_to_end() or (self._stopping.is_set() and (self._closing or self._healthy())):
                self.marks.release(task_id)
            else:
                self.marks.lost(task_id, claim, alone=alone)
            raise
        except BaseException:
            self.marks.end(task_id, done_seconds=0, done=False)
            raise
        # A call's result is stored after this: that is what tells that it is done.
        self.marks.end(task_id, done_seconds=work.done_seconds, done=work.of_job)
        return result

    def _without_engine(self, task_id: str, work: Work, answer: Callable[[], Any]) -> Any:
        try:
            result = answer()
        except TranscriptionError:
            self.marks.end(task_id, done_seconds=0, done=False)
            raise
        self.marks.end(task_id, done_seconds=work.done_seconds, done=work.of_job)
        return result

    def _has_result(self, task_id: str) -> bool:
        return outlast(lambda: bool(AsyncResult(task_id).ready()), self._stopping, f"the result of task {task_id}")


def _dropped(task_id: str) -> CallDroppedError:
    log.info("task %s was cancelled", task_id)
    return CallDroppedError()


def _quarantine(claim: Claim) -> Failure:
    total = claim.deaths + claim.deaths_alone
    return Failure(
        type="quarantined",
        message=f"took its worker down {total} times, {claim.deaths_alone} of them while nothing else ran there; "
        "listen to the file apart from the fleet",
    )
