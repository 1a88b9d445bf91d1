"""Trying again in place what failed for a moment: storage or a network that may be back in a second or two."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from workers.errors import EngineLostError
from workers.messages import ChannelTranscripts, Failure, Item, Options, Record, Task, failures_of

if TYPE_CHECKING:
    from workers.transcriber import Share, Transcriber

Deliver = Callable[[Record, list[Item]], None]

TRIES_IN_PLACE = 3
#: A record is sent that often, in messages of its own from the second time on.
MAX_ATTEMPTS = 5
#: These took minutes and are not tried again in place.
SLOW = frozenset({"engine_timeout", "decode_timeout"})


def transcribe(
    transcriber: Transcriber,
    records: Iterable[Record],
    task: Task,
    options: Options,
    deliver: Deliver,
    *,
    pause_seconds: float,
    stopping: threading.Event,
    share: Share | None = None,
    urgent: bool = False,
) -> list[tuple[Record, list[Item]]]:
    """`Transcriber.transcribe`, where what fails for a moment gets up to two more tries after short pauses.

    The first pause is ``pause_seconds`` x the record's attempt, the second four times that. Returns, undelivered, the
    records that failed for a moment in their last try too, with their items.
    """
    failed: list[tuple[Record, list[Item]]] = []

    def sort(record: Record, items: list[Item]) -> None:
        if not any(failure.transient for failure in _failures(items)):
            deliver(record, items)
            return
        if stopping.is_set():  # the end of this worker is no fault of the record's
            raise EngineLostError("the worker is ending and its grace is over")
        failed.append((record, items))

    transcriber.transcribe(records, task, options, sort, share, urgent=urgent)
    for number in range(1, TRIES_IN_PLACE):
        again = [record for record, items in failed if not any(one.type in SLOW for one in _failures(items))]
        if not again:
            break
        pause = pause_seconds * 4 ** (number - 1) * max(record.attempt for record in again)
        if stopping.wait(pause):
            raise EngineLostError("the worker is ending and its grace is over")
        chosen = {id(record) for record in again}
        failed[:] = [one for one in failed if id(one[0]) not in chosen]
        transcriber.transcribe(again, task, options, sort, share, urgent=urgent)
    return failed


def given_up(items: list[Item], tried: str) -> list[Item]:
    """The items of a record that is not tried again; their failures say how often it was."""
    return [_given_up(item, tried) for item in items]


def _given_up(item: Item, tried: str) -> Item:
    if isinstance(item, ChannelTranscripts):
        return item.model_copy(update={"channels": [_given_up(channel, tried) for channel in item.channels]})
    if isinstance(item, Failure) and item.transient:
        return Failure(type=item.type, message=f"{item.message} ({tried})")
    return item


def _failures(items: list[Item]) -> list[Failure]:
    return [failure for item in items for failure in failures_of(item)]
