"""Outlasting Redis: a call that has to be taken is made again until it is, or until the worker has to end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from redis.exceptions import RedisError

from workers.errors import EngineLostError

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0

Value = TypeVar("Value")


def outlast(
    call: Callable[[], Value],
    stopping: threading.Event,
    what: str,
    errors: tuple[type[Exception], ...] = (RedisError,),
) -> Value:
    """``call`` until Redis takes it, be it away or full; ``what`` names it in the log.

    Raises EngineLostError (the message goes back to the queue) if the worker has to end before that.
    """
    while True:
        try:
            return call()
        except errors as error:
            log.warning("%s: Redis does not take it yet: %s", what, error)
            if stopping.wait(RETRY_SECONDS):
                raise EngineLostError(f"the worker is ending and Redis does not take {what}") from error
