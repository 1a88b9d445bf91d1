"""Room in Redis. A job that fills it would keep workers from giving their answers, and so itself from ever ending."""

from __future__ import annotations

from redis import Redis
from redis.exceptions import NoPermissionError

#: A producer leaves the rest of Redis's memory to the answers and to the workers' own records.
PRODUCERS_SHARE = 0.8


def full(redis: Redis) -> str | None:
    """Why nothing may be sent now, None where there is room (or no ``maxmemory``, or no permission to ask)."""
    try:
        memory = redis.info("memory")
    except NoPermissionError:
        return None
    used, most = int(memory.get("used_memory", 0)), int(memory.get("maxmemory", 0))
    if not most or used <= PRODUCERS_SHARE * most:
        return None
    return f"Redis is full: {used / 2**20:.0f} of {most / 2**20:.0f} MiB (maxmemory) are used"
