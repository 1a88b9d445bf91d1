"""A message of a newer version waits for a worker that can read it; it is neither misread nor given an error.

A fleet is updated worker by worker. One that meets such a message gives it back once, consumes its queue no longer, so
that it does not meet it again, and says so; workers that can read it carry on. Looked at on the consumer's own thread,
when the message comes in: no thread is spent on it, and the queue is left before the message is back in it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from celery.worker import strategy as celery_strategy

from workers import messages

log = logging.getLogger(__name__)


def strategy(task: Any, app: Any, consumer: Any, **options: Any) -> Callable[..., Any]:
    """Celery's execution strategy for messages that this worker can read (`celery.app.task.Task.Strategy`)."""
    handle = celery_strategy.default(task, app, consumer, **options)

    def handle_readable(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any, **more: Any) -> Any:
        version = messages.newer_version(options_of(message.payload if body is None else body))
        if version is None:
            return handle(message, body, ack, reject, callbacks, **more)
        return _leave(consumer, message, version)

    return handle_readable


def options_of(payload: Any) -> Any:
    """The options in a message's body, as protocol 1 (an object) or protocol 2 (a list) of Celery has them."""
    match payload:
        case {"args": args, "kwargs": kwargs}:
            pass
        case {"args": args}:
            kwargs = None
        case {"kwargs": kwargs}:
            args = None
        case [args, kwargs, *_]:
            pass
        case _:
            return None
    if isinstance(kwargs, dict) and "options" in kwargs:
        return kwargs["options"]
    return args[1] if isinstance(args, list) and len(args) > 1 else None


def _leave(consumer: Any, message: Any, version: int) -> None:
    """Stop consuming the message's queue, then give it back: in this order it cannot come here again."""
    queue = str((message.delivery_info or {}).get("routing_key") or "")
    # Taken out of the app's selection too, so that it does not come back with the next connection.
    consumer.cancel_task_queue(queue)
    message.reject_log_error(log, consumer.connection_errors, requeue=True)
    log.error(
        "task %s has version %d of the message format, this worker reads versions up to %d: it is back in the queue "
        "%s, which this worker consumes no longer. Update this worker and start it again; if the message is withdrawn, "
        "`celery -A workers control add_consumer %s` does as well",
        *(_task_id(message), version, messages.VERSION, queue, queue),
    )


def _task_id(message: Any) -> str:
    headers, properties = message.headers or {}, message.properties or {}
    return str(headers.get("id") or properties.get("correlation_id") or "without an id")
