"""One thread of a worker is for interactive calls: a bulk backlog keeps none waiting for the end of a bulk message.

Redis gives interactive messages out before bulk ones, but only to a worker that asks. One whose threads all have bulk
messages does not ask, and those end together: they share an engine, and began together. So a worker has one thread
more than it takes bulk messages, and while it has all of those it asks for interactive messages only.

While a message runs alone here (`workers.alone`), or is about to, it asks for none: they are for other workers.
"""

from __future__ import annotations

import time
from typing import Any

from celery import bootsteps
from celery.worker import state

from workers import keys, runtime
from workers.app import PRIORITY_BULK, priority_of

#: How long a worker that could take no bulk message asks for interactive ones, and one that takes none for nothing,
#: before it looks again whether it can. Redis does not keep shorter times.
ASK_SECONDS = 0.1


def bulk_threads(threads: int) -> int:
    """How many of a worker's ``threads`` take bulk messages. With one or two there is none to spare."""
    return threads - 1 if threads > 2 else threads


class SpareThreadStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Asks Redis for what the worker can take now.

    Stands for kombu's own `Channel._brpop_start` while no bulk message can be taken: tests/workers/test_spare_thread.py
    guards the private attributes. Where ``worker_concurrency`` is below 3, no thread is kept for interactive calls.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, parent: Any) -> None:
        """Look at each time that the worker asks."""
        channel, threads = parent.task_consumer.channel, int(parent.pool.num_processes)
        most, ask = bulk_threads(threads), channel._brpop_start

        def ask_for_what_fits(timeout: float | None = None) -> None:
            if is_shut():
                ask_for_nothing(channel)
            elif most < threads and bulk_in_hand() >= most:
                ask_for_interactive(channel)
            else:
                ask(timeout)

        channel._brpop_start = ask_for_what_fits


def is_shut() -> bool:
    """Whether a message that this worker took now would have to wait for one that runs alone."""
    try:
        return runtime.current().deliveries.shut()
    except RuntimeError:  # no engine: the worker ends, or is a test's
        return False


def bulk_in_hand() -> int:
    """Bulk messages that this worker has taken and not ended."""
    while True:
        try:
            # By the messages' own word, as for the queue that they came from: kombu puts 1 to 4 into the first one.
            return sum(priority_of(one.delivery_info or {}) >= PRIORITY_BULK for one in state.reserved_requests)
        except RuntimeError:  # a thread ended one meanwhile, and the set changed
            continue


def ask_for_interactive(channel: Any) -> None:
    """As kombu's `Channel._brpop_start`, but for the queues of the first priority only."""
    queues = channel._queue_cycle.consume(len(channel.active_queues))
    if not queues:
        return
    _ask(channel, [channel._q_for_pri(queue, 0) for queue in queues])


def ask_for_nothing(channel: Any) -> None:
    """As kombu's `Channel._brpop_start`, but for what never comes: who does not ask at all has its connection closed.

    By a Redis with a ``timeout`` for idle ones; all that the worker holds would then go back to the queue.
    """
    _ask(channel, [keys.NOTHING])


def _ask(channel: Any, lists: list[str]) -> None:
    command = ["BRPOP", *lists, ASK_SECONDS]
    channel._in_poll = channel.client.connection
    channel._brpop_sent_at = time.monotonic()
    if channel.global_keyprefix:
        command = channel.client._prefix_args(command)
    channel.client.connection.send_command(*command)
