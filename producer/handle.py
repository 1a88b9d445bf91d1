"""What a caller has of a call that was sent: its answer, once it is there."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

from producer.errors import CallTimeoutError

if TYPE_CHECKING:
    from producer.connection import Connection

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Handle(Generic[T]):
    """One call. ``id`` is its task's, as Flower shows it. Any thread may use it."""

    id: str
    future: Future[T] = field(repr=False)
    _connection: Connection = field(repr=False)

    def result(self, timeout: float | None = None) -> T:
        """Wait for the answer, at most ``timeout`` seconds (None: as long as it takes); the same again at every call.

        Raises TranscriptionError for a recording that failed (of a list of them, a failure is an entry of the answer),
        CallTimeoutError (also a TimeoutError; the call goes on), CallCancelledError, ClientClosedError, FleetError for
        an own fleet that broke, and UsageError where this process was forked since the call.
        """
        self.check_process()
        try:
            return self.future.result(timeout)
        except TimeoutError:
            raise self.timed_out(timeout) from None

    def check_process(self) -> None:
        """Raise UsageError where no answer can come, as this process was forked since the call."""
        if not self.future.done():
            self._connection.check_process()

    def timed_out(self, timeout: float | None) -> CallTimeoutError:
        """The error of who has waited for so long, with what may be the matter. Asks Redis, for a second."""
        return CallTimeoutError(f"no answer within {timeout:g} s{self._connection.why_waiting()}")

    def done(self) -> bool:
        """Whether `result` would return or raise at once. Asks nobody."""
        return self.future.done()

    def cancel(self) -> bool:
        """Give the call up; False where it has its answer already. Waits for Redis, a few seconds at most.

        From here on `result` raises CallCancelledError. A worker that takes the call later, within a day, drops it. One
        that has begun it goes on to its end, as threads and engines do, and nobody reads the answer.
        """
        return bool(self._connection.cancel([self.id]))

    def when_done(self, tell: Callable[[], object]) -> None:
        """Call ``tell`` once, when the answer is there; by whichever thread brings it, so it must not wait."""
        self.future.add_done_callback(lambda _: tell())
