"""Which rows of a job the fleet still has: in its queue, held by a worker, or answered and not yet collected.

The messages themselves say so; nothing else has to be kept, and nothing else can be wrong about it. Reads the format
of kombu's Redis transport: tests/producer/test_in_flight.py guards it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any, cast

from redis import Redis

from workers import keys
from workers.app import PRIORITY_BULK, PRIORITY_INTERACTIVE
from workers.messages import task_id as task_id

PAGE = 500
#: The id of a message, found without parsing the message: other jobs' messages are not worth it, whatever they are.
_ID = re.compile(rb'"id":\s*("(?:[^"\\]|\\.)*")')


def rows_in_flight(redis: Redis, queue: str, job: str) -> set[int]:
    """The rows of ``job`` in messages that are queued or held. At most a window of rows."""
    return _in_flight(redis, [queue], [job])[job]


def rows_uncollected(redis: Redis, job: str) -> set[int]:
    """The rows whose answers wait for a collector. At most a window of rows."""
    rows: set[int] = set()
    start = "-"
    while page := cast("list[Any]", redis.xrange(keys.results(job), start, "+", count=PAGE)):
        for _, fields in page:
            with contextlib.suppress(ValueError, KeyError, TypeError):  # the collector drops what is no answer
                rows.add(int(json.loads(fields[keys.RESULT_FIELD])["row"]))
        start = f"({page[-1][0].decode()}"
    return rows


def rows_on_their_way(redis: Redis, queues: Iterable[str], jobs: Collection[str]) -> dict[str, set[int]]:
    """The rows of each of ``jobs`` that are queued, held or uncollected, at the cost of one look at the queues.

    In the order in which a row moves on, so that none passes by unseen, but for this: a message that a worker has
    taken and does not hold yet is nowhere for a moment. Look twice before believing that a row is lost.
    """
    found = _in_flight(redis, queues, jobs)
    for job in jobs:
        found[job] |= rows_uncollected(redis, job)
    return found


def calls_on_their_way(redis: Redis, queues: Iterable[str]) -> set[str]:
    """The ids of the messages that are queued before all bulk ones, or held. Look twice, as above."""
    found = {_id_of(message) for queue in queues for message in _queued(redis, queue)}
    found |= {_id_of(held) for _, held in redis.hscan_iter(keys.UNACKED, count=PAGE)}
    return {id for id in found if id is not None}


def withdraw(redis: Redis, queues: Iterable[str], job: str) -> int:
    """Take the queued messages of ``job`` back; returns how many. What workers hold is theirs."""
    taken = 0
    for key in _lists(queues):
        mine = [message for message in _queued(redis, key) if _job_of(message) == job]
        for message in mine:
            taken += redis.lrem(key, 1, cast("str", message))
    return taken


def _in_flight(redis: Redis, queues: Iterable[str], jobs: Collection[str]) -> dict[str, set[int]]:
    rows: dict[str, set[int]] = {job: set() for job in jobs}
    for message in _messages(redis, queues):
        job = _job_of(message)
        if job in rows:
            rows[job].update(_rows_of(json.loads(message)))
    return rows


def _messages(redis: Redis, queues: Iterable[str]) -> Iterator[bytes]:
    for key in _lists(queues):
        yield from _queued(redis, key)
    for _, held in redis.hscan_iter(keys.UNACKED, count=PAGE):
        yield held


def _lists(queues: Iterable[str]) -> list[str]:
    """The lists of ``queues``, one a priority."""
    priorities = (PRIORITY_INTERACTIVE, PRIORITY_BULK)
    return [f"{queue}:{priority}" if priority else queue for queue in queues for priority in priorities]


def _queued(redis: Redis, key: str) -> Iterator[bytes]:
    # From the head, where messages come in: those that come meanwhile push the others on, so that some are seen twice
    # and none is passed over. Those that leave at the tail meanwhile are held, and found there.
    start = 0
    while page := cast("list[bytes]", redis.lrange(key, start, start + PAGE - 1)):
        yield from page
        start += PAGE


def _job_of(message: bytes) -> str | None:
    """Whose message it is, None for one that is no bulk message."""
    job, *parts = (_id_of(message) or "").rsplit(".", 2)
    return job if len(parts) == 2 else None


def _id_of(message: bytes) -> str | None:
    found = _ID.search(message)
    if found is not None:
        with contextlib.suppress(ValueError):
            return str(json.loads(found[1]))
    return None


def _rows_of(message: Any) -> Iterator[int]:
    if isinstance(message, list):  # held: the message, and the queue that it goes back to
        message = message[0]
    (records, *_), _, _ = json.loads(base64.b64decode(message["body"]))
    for record in records:
        yield int(record["row"])
