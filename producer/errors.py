"""What the producer's side raises: each message is one line that says what is wrong, where, and what to do."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class FleetError(Exception):
    """The run cannot go on (disk full, damaged journal, changed input). ``exit_code`` is the process's exit status.

    ``type`` is a stable word that programs can test, as with `workers.errors.TranscriptionError`.
    """

    exit_code = 1
    type = "fleet"

    def __init__(self, message: str, *, type: str | None = None) -> None:
        super().__init__(message)
        if type is not None:
            self.type = type

    @property
    def message(self) -> str:
        """One line for people."""
        return str(self)


class UsageError(FleetError):
    """The input or the arguments are wrong: nothing was enqueued.

    ``type``: ``bad_argument``, or what is wrong in a word (``unknown_language``, ``no_audio``, ``not_supported``).
    """

    exit_code = 2
    type = "bad_argument"


class FleetUnavailableError(FleetError):
    """Redis does not take a call: nothing was enqueued, the same call may succeed later."""

    type = "unavailable"


class JobCancelledError(FleetError):
    """Somebody gave the job up (`whisper-fleet cancel`). Its answers so far are kept."""

    type = "job_cancelled"


class CallTimeoutError(FleetError, TimeoutError):
    """A call has no answer within the time that its caller gave it. It goes on: ask its handle again, or cancel it."""

    type = "timeout"


class CallCancelledError(FleetError):
    """A call was cancelled before it had an answer."""

    type = "cancelled"


class ClientClosedError(FleetError):
    """The client was closed before the call had an answer, or before it was made."""

    type = "closed"


@contextmanager
def reworded(change: Callable[[str], str]) -> Iterator[None]:
    """FleetErrors of the block say what ``change`` makes of their messages; all else of them stays as it is."""
    try:
        yield
    except FleetError as error:
        message = change(error.message)
        if message == error.message:
            raise
        same = copy.copy(error)
        same.args = (message,)
        raise same from error


def without_commands(message: str) -> str:
    """``message`` for those who call a function: they have no command to run again."""
    return message.replace("run the same command", "run it again")
