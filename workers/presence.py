"""What a live worker says of itself in Redis, and how a producer reads it."""

from __future__ import annotations

import logging
import threading
from typing import cast

from pydantic import ConfigDict, ValidationError
from redis import Redis
from redis.exceptions import RedisError

from workers import keys
from workers.interface import EngineFacts
from workers.messages import Message, first_problem

log = logging.getLogger(__name__)

#: A worker that has said nothing for so long is gone.
EXPIRES_SECONDS = 30
REPEAT_SECONDS = 10.0


class Presence(Message):
    """A worker's name, queues and what its model is and can do.

    What a newer worker says besides is passed over: it must not hide the fleet from an older producer.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    queues: list[str]
    model: str
    revision: str
    device: str
    version: str
    tasks: list[str]
    languages: list[str]
    max_num_seqs: int
    threads: int

    @classmethod
    def of(cls, name: str, queues: list[str], facts: EngineFacts, threads: int) -> Presence:
        """The presence of a worker with this engine."""
        return cls(
            name=name,
            queues=queues,
            model=facts.model,
            revision=facts.revision,
            device=facts.device,
            version=facts.version,
            tasks=list(facts.tasks),
            languages=list(facts.languages),
            max_num_seqs=facts.max_num_seqs,
            threads=threads,
        )


class PresencePublisher:
    """Repeats a worker's presence until stopped, and takes it back then."""

    def __init__(self, redis: Redis, presence: Presence) -> None:
        self._redis = redis
        self._presence = presence
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="presence", daemon=True)

    def start(self) -> None:
        """Publish at once and then every 10 s."""
        self._thread.start()

    def stop(self) -> None:
        """Take the presence back: no producer counts on this worker any more."""
        self._stop.set()
        self._thread.join()

    def _repeat(self) -> None:
        key = keys.worker(self._presence.name)
        payload = self._presence.model_dump_json()
        while True:
            try:
                self._redis.set(key, payload, ex=EXPIRES_SECONDS)
            except RedisError as error:
                log.warning("cannot publish this worker's presence: %s", error)
            if self._stop.wait(REPEAT_SECONDS):
                break
        try:
            self._redis.delete(key)
        except RedisError:
            log.debug("presence of %s left to expire", self._presence.name)


def live_workers(redis: Redis) -> list[Presence]:
    """The workers that have said something within the last 30 s. Skips what this version cannot read."""
    names = list(redis.scan_iter(match=keys.WORKERS_PATTERN, count=1000))
    payloads = cast("list[bytes | None]", redis.mget(names) if names else [])
    found = []
    for name, payload in zip(names, payloads, strict=True):
        try:
            found += [Presence.model_validate_json(payload)] if payload else []
        except ValidationError as error:
            log.warning("%s: not a worker that this version can read: %s", name.decode(), first_problem(error))
    return found
