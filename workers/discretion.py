"""What leaves a worker by its logs and by `inspect` (Flower's pages) holds no secret, whoever put it there.

Celery masks the broker's password in its own lines, but writes whole messages that it discards into the log (signed
URLs and prompts with them), and gives the password of a unix socket's URL to whoever inspects the worker.
"""

from __future__ import annotations

import logging
from typing import Any

from celery import bootsteps, signals

from workers.redis_url import without_secrets


class Discreet(logging.Filter):
    """Cleans records on their way to a handler: URLs without user and query, discarded messages without content."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Clean ``record`` in place; none is held back."""
        short = _shortened(record)
        if short is not None:
            record.msg, record.args, record.exc_info, record.exc_text = short, (), None, None
            return True
        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # the handler reports a record that cannot be formatted
            return True
        clean = without_secrets(text)
        if clean != text:
            record.msg, record.args = clean, ()
        if record.exc_info:
            record.exc_text = without_secrets(record.exc_text or logging.Formatter().formatException(record.exc_info))
        return True


def _shortened(record: logging.LogRecord) -> str | None:
    """A line in place of those in which Celery quotes a whole message; None for every other record."""
    if record.name == "celery.pool" and str(record.msg).startswith("TaskPool: Apply"):  # on level DEBUG
        return "TaskPool: Apply a task"
    if record.name != "celery.worker.consumer.consumer":
        return None
    from celery.worker.consumer import consumer  # a worker's inside: whoever logs there has loaded it

    first = record.args[0] if isinstance(record.args, tuple) and record.args else None
    match record.msg:
        case consumer.UNKNOWN_TASK_ERROR:
            return f"message discarded: there is no task {first} here"
        case consumer.UNKNOWN_FORMAT:
            return "message discarded: it is no message of Celery's"
        case consumer.INVALID_TASK_ERROR:
            return f"message discarded: {without_secrets(str(first))}"
        case consumer.MESSAGE_DECODE_ERROR:
            return f"message discarded: its body cannot be read ({type(first).__name__})"
    return None


def guard(logger: logging.Logger) -> None:
    """Let all that ``logger``'s handlers write be cleaned first."""
    for handler in logger.handlers:
        if not any(isinstance(one, Discreet) for one in handler.filters):
            handler.addFilter(Discreet())


def install() -> None:
    """Guard the loggers that Celery sets up in this process."""
    for signal in (signals.after_setup_logger, signals.after_setup_task_logger):
        signal.connect(_guard_celery, weak=False, dispatch_uid="whisper-fleet-discretion")


def _guard_celery(logger: logging.Logger | None = None, **_: Any) -> None:
    if logger is not None:
        guard(logger)


class DiscreetInfo(bootsteps.StartStopStep):  # type: ignore[misc]
    """Answers `inspect stats` about the broker in place of Celery's own step, which tells a socket's password."""

    requires = ("celery.worker.consumer.connection:Connection",)

    def info(self, parent: Any) -> dict[str, Any]:
        """What is known of the connection, by kombu's names; nothing in it lets anybody in."""
        if not parent.connection:
            return {"broker": "N/A"}
        known = parent.connection.info()
        for name in ("password", "credential_provider", "alternates", "ssl"):
            known.pop(name, None)
        known["hostname"] = without_secrets(str(known.get("hostname")))
        options = known.get("transport_options")
        if isinstance(options, dict):
            known["transport_options"] = {name: value for name, value in options.items() if name != "sentinel_kwargs"}
        return {"broker": known}
