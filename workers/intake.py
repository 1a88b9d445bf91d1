"""The door of the task queues: a message that is none costs itself, not the worker.

Whoever can write to Redis can push anything into a queue. Celery 5.7 with kombu 5.7 refuses some of it, and ends on the
rest (an object for a body, an id that is no text, broken base64, text that is not JSON), most often after it has put
the message back for the next worker to end on. So what comes from a queue is looked at before they see it. What cannot
be a task is left out with one line in the log, and is gone; its sender gets ``bad_argument`` as the result of the task
where the message says which that is. A job's rows are not lost with it: its producer sends unanswered rows again.

Uses ``cycle`` and ``_deliver`` of kombu's Redis transport: tests/workers/test_intake.py holds them.
"""

from __future__ import annotations

import base64
import logging
import zlib
from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import UUID

from celery import bootsteps, states
from celery.utils.time import maybe_iso8601
from kombu.serialization import loads
from kombu.utils.json import dumps
from redis.exceptions import RedisError

from workers.errors import TranscriptionError
from workers.kept import KeptMessages
from workers.messages import MAX_MESSAGE_BYTES

log = logging.getLogger(__name__)

#: Header and properties of Celery's own clients take less than a tenth of it.
MAX_ENVELOPE_BYTES = 2**16
MAX_ID_CHARACTERS = 1000
ACCEPTED = frozenset({"application/json"})
#: What kombu's reader of JSON raises, whose values may stand for dates, bytes, numbers and the like.
UNREADABLE = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError)
#: Kombu's names of the one compression whose result can be limited.
DEFLATED = ("zlib", "gzip", "application/x-gzip")


class IntakeStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Looks at every message that comes in on the consumer's connection, also on the next one after it was lost."""

    requires = ("celery.worker.consumer.tasks:Tasks", "workers.spare_thread:SpareThreadStep")

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self._kept = KeptMessages()

    def start(self, parent: Any) -> None:
        """Stand between the channel and Celery."""
        transport = parent.task_consumer.channel.connection
        deliver, read = transport._deliver, transport.cycle.on_readable
        deliver_or_keep = self._kept.attach(parent)
        delivering = False

        def checked(raw: Any, queue: str) -> None:
            nonlocal delivering
            delivering = True
            if queue not in parent.app.amqp.queues.consume_from:
                _deliver_other(deliver, raw, queue)
                delivering = False
                return
            try:
                check(raw)
            except ValueError as error:
                refuse(parent.app, raw, str(error))
            except UNREADABLE as error:
                refuse(parent.app, raw, f"it cannot be read ({type(error).__name__})")
            else:
                # Given back, it goes to where it came from, whatever its sender wrote there: kombu would lose it.
                raw["properties"]["delivery_info"] |= {"exchange": "", "routing_key": queue}
                deliver_or_keep(raw, queue)
            delivering = False  # several may be read at once

        def reading(socket: int) -> None:
            nonlocal delivering
            delivering = False
            try:
                read(socket)
            except UNREADABLE as error:
                if delivering:
                    raise
                log.error("message discarded: it is not JSON (%s)", type(error).__name__)

        transport._deliver = checked
        transport.cycle.on_readable = reading

    def shutdown(self, parent: Any) -> None:
        """The worker ends."""
        self._kept.give_back(parent)


def check(raw: Any) -> None:
    """Raises ValueError, in words that show nothing of it, for a message that Celery cannot make a task of.

    ``raw``: what kombu puts into a queue, read from JSON.
    """
    _need(isinstance(raw, dict), "it is no object")
    headers, properties = raw.get("headers"), raw.get("properties")
    _need(isinstance(headers, dict) and isinstance(properties, dict), "it is no message of Celery's")
    _need(isinstance(properties.get("delivery_tag"), str), "it has no delivery_tag")
    route = properties.get("delivery_info")
    _need(isinstance(route, dict), "it has no delivery_info")
    places = [route.get(name) for name in ("exchange", "routing_key")]
    _need(all(isinstance(place, str) for place in places), "its delivery_info has no exchange or routing_key")
    _check_priority(properties.get("priority"))
    _check_priority(route.get("priority"))
    try:
        size = len(dumps([headers, properties], ensure_ascii=False).encode())  # type: ignore[no-untyped-call]
    except UnicodeEncodeError:  # half a letter, which Redis would not take for a name
        raise ValueError("its headers are no valid Unicode") from None
    except RecursionError:
        raise ValueError("its headers are nested too deep") from None
    _need(size <= MAX_ENVELOPE_BYTES, f"its headers have more than {MAX_ENVELOPE_BYTES} bytes")
    payload = _payload(raw, headers, properties.get("body_encoding"))
    if "task" in headers:  # protocol 2, or its headers with the body of protocol 1
        _check_task(headers)
        if isinstance(payload, dict):
            _check_task({**payload, **headers})
            _check_arguments(payload.get("args"), payload.get("kwargs", {}))
            return
        _need(isinstance(payload, list) and len(payload) == 3, "its body is no list of args, kwargs and more")
        args, kwargs, embed = payload
        _check_arguments(args, kwargs)
        _need(embed is None or isinstance(embed, dict), "the third part of its body is no object")
    else:  # protocol 1
        _need(isinstance(payload, dict) and "task" in payload, "it names no task")
        _check_task({**payload, **headers})
        _check_arguments(payload.get("args", []), payload.get("kwargs", {}))


def refuse(app: Any, raw: Any, reason: str) -> None:
    """Leave a message out; whoever waits for its result is told."""
    log.error("message discarded: %s", reason)
    headers = raw.get("headers") if isinstance(raw, dict) else None
    if not isinstance(headers, dict) or headers.get("ignore_result"):
        return
    id = headers.get("id")
    if not _is_id(id):
        return
    try:
        app.backend.store_result(id, TranscriptionError("bad_argument", f"the message: {reason}"), states.FAILURE)
    except RedisError as error:
        log.error("task %s was refused, and its result cannot be stored: %s", id, error)


def _payload(raw: dict[str, Any], headers: dict[str, Any], body_encoding: Any) -> Any:
    body = raw.get("body")
    if not isinstance(body, str):
        raise ValueError("it has no body")
    _need(body_encoding in (None, "", "utf-8", "base64"), "its body_encoding is not base64")
    _check_size(len(body) * 3 // 4 if body_encoding == "base64" else len(body.encode(errors="replace")))
    try:
        content: bytes | str = base64.b64decode(body) if body_encoding == "base64" else body
    except ValueError:
        raise ValueError("its body is not base64") from None
    if compression := headers.get("compression"):
        _need(compression in DEFLATED, "its compression is neither zlib nor gzip")
        content = _inflated(content)
    try:
        return loads(content, raw.get("content-type"), raw.get("content-encoding"), accept=ACCEPTED)  # type: ignore[no-untyped-call]
    except Exception:  # noqa: BLE001 - whatever the content leads to, it is the sender's fault
        raise ValueError("its body is not JSON") from None


def _inflated(content: bytes | str) -> bytes:
    unpack = zlib.decompressobj()
    try:
        plain = unpack.decompress(content if isinstance(content, bytes) else content.encode(), MAX_MESSAGE_BYTES + 1)
    except (zlib.error, ValueError):
        raise ValueError("its body is not compressed as its headers say") from None
    _check_size(len(plain))
    return plain


def _check_size(size_bytes: int) -> None:
    _need(
        size_bytes <= MAX_MESSAGE_BYTES,
        f"its body has more than {MAX_MESSAGE_BYTES} bytes, which is the limit: send several tasks",
    )


def _check_task(fields: dict[str, Any]) -> None:
    """The fields that Celery takes for granted; it looks at the others itself."""
    _need(isinstance(fields.get("task"), str), "its task is no text")
    id = fields.get("id")
    _need(_is_id(id), "its id is no text")
    _need(isinstance(fields.get("shadow"), str | None), "shadow is no text")
    limits = fields.get("timelimit")
    pair = isinstance(limits, list) and len(limits) == 2 and all(isinstance(one, int | float | None) for one in limits)
    _need(not limits or pair, "timelimit is no pair of numbers")
    stamped = fields.get("stamped_headers")
    listed = stamped is None or (isinstance(stamped, list) and all(isinstance(one, str) for one in stamped))
    _need(listed, "stamped_headers is no list of texts")
    for name in ("eta", "expires"):
        _need(_is_time(fields.get(name)), f"{name} is no time")
    _need(isinstance(fields.get("stamps"), dict | None), "stamps is no object")


def _is_time(value: Any) -> bool:
    """Whether Celery can read it, which takes what is empty for a time and ends on it."""
    try:
        return value is None or (isinstance(value, str | datetime) and maybe_iso8601(value) is not None)
    except (ValueError, OverflowError):
        return False


def _check_priority(priority: Any) -> None:
    """What is no number is served first; on what is infinite kombu ends."""
    try:
        int(priority)
    except OverflowError:
        raise ValueError("its priority is infinite") from None
    except (TypeError, ValueError):
        return


def _is_id(id: Any) -> bool:
    """Whether it can be a task's name in Redis: a text, or a UUID, a kind of value that kombu's JSON has."""
    if isinstance(id, UUID):
        return True
    try:
        return isinstance(id, str) and 0 < len(id) <= MAX_ID_CHARACTERS and bool(id.encode())
    except UnicodeEncodeError:
        return False


def _check_arguments(args: Any, kwargs: Any) -> None:
    _need(isinstance(args, list) and isinstance(kwargs, dict), "its arguments are no list and object")


def _need(true: bool, otherwise: str) -> None:
    if not true:
        raise ValueError(otherwise)


def _deliver_other(deliver: Callable[[Any, str], None], raw: Any, queue: str) -> None:
    """What comes by another way (remote control, events of other workers): they look at the content themselves."""
    try:
        deliver(raw, queue)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        log.error("message for %s discarded: %s", queue, type(error).__name__)
