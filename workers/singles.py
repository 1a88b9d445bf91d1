"""A row of a chunk that goes on in a message of its own, at the tail of the queue that its chunk came from."""

from __future__ import annotations

import re
import threading
from typing import Any

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from workers.app import app
from workers.delivery import Envelope
from workers.messages import task_id
from workers.outage import outlast

#: What is added to the last part of a message's id: ``-s`` for a suspect, ``-a3`` for attempt 3.
_SUFFIXES = re.compile(r"(-s|-a\d+)+$")


def single_id(job: str, row: int, origin: str, suffix: str) -> str:
    """The id of a row's own message: the same each time, so that one that is sent twice runs once.

    ``origin``: the id of the message that the row was in; ``suffix``: ``s`` or ``a`` and the number of the attempt.
    """
    part = _SUFFIXES.sub("", origin.rpartition(".")[2])
    return task_id(job, row, f"{part}-{suffix}")


def send_single(
    envelope: Envelope,
    id: str,
    record: dict[str, Any],
    options: dict[str, Any] | None,
    job: str,
    stopping: threading.Event,
) -> None:
    """Send ``record`` alone, waiting for Redis as long as it takes. Raises EngineLostError if the worker has to end."""
    row = record.get("row")

    def publish() -> None:
        app.send_task(
            envelope.name,
            args=[[record]],
            kwargs={"options": options or {}, "job": job},
            task_id=id,
            queue=envelope.queue,
            priority=envelope.priority,
            ignore_result=True,
            argsrepr=f"(1 row from row {row})",
            kwargsrepr=f"{{job: {job}}}",
            retry=False,
            add_to_parent=False,
        )

    outlast(publish, stopping, f"row {row} of job {job}", (OperationalError, RedisError, OSError))
