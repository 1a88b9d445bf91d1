"""Messages that Redis has given and lets nobody hold: to hold one is a write, and Redis may be full.

Kombu would lose them. They are kept here until Redis lets them be held, also over the connection by which they came,
and nothing else is asked for meanwhile. Those that are left when the worker ends go back to their queues.

Uses ``_brpop_start`` of kombu's Redis channel and ``_deliver`` of its transport: tests/workers/test_kept.py holds them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from redis.exceptions import NoPermissionError, RedisError

log = logging.getLogger(__name__)

#: After so long it is tried again.
AGAIN_SECONDS = 1.0


class KeptMessages:
    """Those of one worker. For the thread of its consumer."""

    def __init__(self) -> None:
        #: Messages that are in nobody's hands, and their queues.
        self._messages: list[tuple[Any, str]] = []

    def attach(self, consumer: Any) -> Callable[[Any, str], None]:
        """Stand between the consumer's connection, which is a new one, and Celery.

        Returns what delivers a message of a queue, or keeps it and raises RedisError.
        """
        channel = consumer.task_consumer.channel
        deliver, ask = channel.connection._deliver, channel._brpop_start

        def deliver_or_keep(raw: Any, queue: str) -> None:
            try:
                deliver(raw, queue)
            except RedisError as error:
                if _is_held(channel, raw):
                    if not isinstance(error, NoPermissionError):
                        raise  # over the next connection it comes again
                    _done_with(channel, raw, error)
                    return
                log.error("a message is kept until Redis lets it be held: %s", error)
                self._messages.append((raw, queue))
                raise

        def ask_for_more(*arguments: Any) -> None:
            if not self._messages:
                ask(*arguments)

        def deliver_kept() -> None:
            """Once the consumer is there. Refused again, it is tried again."""
            if consumer.task_consumer is None or consumer.task_consumer.channel is not channel:
                return  # this connection is lost, and it is its successor's to do
            while self._messages:
                raw, queue = self._messages.pop(0)
                try:
                    deliver(raw, queue)
                except RedisError as error:
                    if isinstance(error, NoPermissionError) and _is_held(channel, raw):
                        _done_with(channel, raw, error)
                        continue
                    self._messages.insert(0, (raw, queue))
                    consumer.timer.call_after(AGAIN_SECONDS, deliver_kept)
                    return

        if self._messages:
            consumer.timer.call_after(AGAIN_SECONDS, deliver_kept)
        channel._brpop_start = ask_for_more
        return deliver_or_keep

    def give_back(self, consumer: Any) -> None:
        """The worker ends: what it keeps goes back to its queue."""
        while self._messages:
            raw, _ = self._messages.pop()
            try:
                consumer.task_consumer.channel.connection._reject_inbound_message(raw)
            except (RedisError, AttributeError) as error:  # refused to the end, or there is no connection
                id = raw["headers"].get("id")
                log.error("task %s is lost: Redis lets it neither be held nor put back: %s", id, error)


def _is_held(channel: Any, raw: Any) -> bool:
    """Whether it is in this worker's hands, and the error came after that."""
    return raw["properties"]["delivery_tag"] in channel.qos._delivered


def _done_with(channel: Any, raw: Any, error: RedisError) -> None:
    """A message that was held and has no task: it is expired or revoked, and Redis lets nobody say so to a chord."""
    log.error("task %s has expired or was revoked, and its chord cannot be told: %s", raw["headers"].get("id"), error)
    channel.basic_ack(raw["properties"]["delivery_tag"])
