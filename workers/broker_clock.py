"""The time by Redis's clock, for what machines with clocks of their own compare in Redis.

Workers stamp the messages that they hold with the time, and give out again those whose stamp is older than the
visibility timeout. Kombu 5.7 takes each machine's own clock: a worker that is a minute ahead would take all others for
dead, and run what they run. So those who sweep (workers, and Flower, which does too) go by Redis's clock.

Replaces ``time`` in kombu's Redis transport, which only stamps and sweeps use there, and has each sweep ask for the
time first: tests/workers/test_broker_clock.py guards both.
"""

from __future__ import annotations

from time import time as local_time
from typing import Any

from kombu.transport import redis as transport

#: An answer that takes longer tells the time too badly; what was known stays.
LONGEST_SECONDS = 1.0

_ahead_seconds = 0.0
_sweep: Any = transport.QoS.restore_visible


def now() -> float:
    """Seconds since the epoch by Redis's clock, as last `measure`d."""
    return local_time() - _ahead_seconds


def measure(redis: Any) -> None:
    """Ask Redis for the time, in one command. Raises RedisError."""
    global _ahead_seconds
    before = local_time()
    seconds, microseconds = redis.time()
    after = local_time()
    if 0 <= after - before < LONGEST_SECONDS:
        _ahead_seconds = (before + after) / 2 - (seconds + microseconds / 1e6)


def install() -> None:
    """Have this process's connections go by it. Not for applications, which may have several brokers."""
    transport.time = now  # type: ignore[attr-defined]
    transport.QoS.restore_visible = _timed_sweep  # type: ignore[method-assign]


def _timed_sweep(self: Any, *arguments: Any, **options: Any) -> Any:
    with self.channel.conn_or_acquire() as client:
        measure(client)
    return _sweep(self, *arguments, **options)
