"""Which rows of a job the fleet still has: in its queue, held by a worker, or answered and not yet collected.

The messages themselves say so; nothing else has to be kept, and nothing else can be wrong about it. Reads the format
of kombu's Redis transport: tests/producer/test_in_flight.py guards it.
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterator
from typing import Any, cast

from redis import Redis

from workers import keys
from workers.app import PRIORITY_BULK, PRIORITY_INTERACTIVE

PAGE = 500
UNACKED = "unacked"


def task_id(job: str, first_row: int, part: str) -> str:
    """The id of a bulk message: says whose it is, and to people which rows."""
    return f"{job}.{first_row}.{part}"


def rows_in_flight(redis: Redis, queue: str, job: str) -> set[int]:
    """The rows of ``job`` in messages that are queued or held. At most a window of rows."""
    rows: set[int] = set()
    mark = f'"{job}.'.encode()
    for message in _messages(redis, queue):
        if mark in message:  # other jobs' messages are not worth parsing, whatever they are
            rows.update(_rows_of(json.loads(message), job))
    return rows


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


def _messages(redis: Redis, queue: str) -> Iterator[bytes]:
    for priority in (PRIORITY_INTERACTIVE, PRIORITY_BULK):
        key = f"{queue}:{priority}" if priority else queue
        # Messages leave at the tail while we read from it: what is passed over now is held and found below.
        end = -1
        while page := cast("list[bytes]", redis.lrange(key, end - PAGE + 1, end)):
            yield from page
            end -= PAGE
    for _, held in redis.hscan_iter(UNACKED, count=PAGE):
        yield held


def _rows_of(message: Any, job: str) -> Iterator[int]:
    if isinstance(message, list):  # held: the message, and the queue that it goes back to
        message = message[0]
    if not str(message.get("headers", {}).get("id", "")).startswith(f"{job}."):
        return
    (records, *_), _, _ = json.loads(base64.b64decode(message["body"]))
    for record in records:
        yield int(record["row"])
