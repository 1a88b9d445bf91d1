"""Celery's pool of threads, in which no message is held for ever.

What goes wrong after a task has ended (what is to follow it cannot be sent, its result cannot be stored) leaves
Celery's own pool without a word: the thread's error is nobody's, the message neither acknowledged nor given back, and
after as many of them as there are threads the worker takes no more. Here it is a failure like any other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from billiard.einfo import ExceptionInfo
from celery.concurrency import thread

log = logging.getLogger(__name__)


class TaskPool(thread.TaskPool):  # type: ignore[misc]
    """Not for targets that others wait for: errors end here."""

    def on_apply(self, target: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """As Celery's, of a target that always ends as `celery.app.trace` says: failed, value, seconds."""

        def ended(*args: Any, **kwargs: Any) -> Any:
            try:
                return target(*args, **kwargs)
            except Exception as error:  # noqa: BLE001 - whatever it is, the message is done with
                id = args[1] if len(args) > 1 else "without an id"
                log.error("task %s: what was to follow it failed: %s", id, type(error).__name__)
                return 1, ExceptionInfo(), 0.0

        accept: Callable[..., Any] = options.get("accept_callback") or (lambda *_: None)

        def accepted(*args: Any) -> None:
            try:
                accept(*args)
            except Exception as error:  # noqa: BLE001 - such as a revoke with ``terminate``, which threads cannot be
                log.warning("what Celery does before a task failed: %s", type(error).__name__)

        return super().on_apply(ended, *arguments, **{**options, "accept_callback": accepted})
