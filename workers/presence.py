"""What a live worker says of itself in Redis, and how a producer reads it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import cast

from pydantic import ConfigDict, Field, ValidationError
from redis import Redis
from redis.exceptions import RedisError

from workers import keys
from workers.interface import EngineFacts, EngineLoad
from workers.messages import Message, first_problem

log = logging.getLogger(__name__)

#: A worker that has said nothing for so long is gone.
EXPIRES_SECONDS = 30
REPEAT_SECONDS = 10.0


class Presence(Message):
    """A worker's name, queues, what its model is and can do, and how busy it is.

    ``threads``: bulk messages that it works on at once. ``windows_running``, ``windows_waiting``: in its engine, a few
    seconds ago. ``startup_seconds``: what the parts of its start took (`workers.startup`), and ``total``. What a newer
    worker says besides is passed over: it must not hide the fleet from an older producer.
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
    #: None: a worker of an older version, which does not say.
    tensor_parallel_size: int | None = None
    max_tokens: int | None = None
    windows_running: int = 0
    windows_waiting: int = 0
    startup_seconds: dict[str, float] = Field(default_factory=dict)

    @classmethod
    def of(
        cls,
        name: str,
        queues: list[str],
        facts: EngineFacts,
        threads: int,
        load: EngineLoad | None = None,
        startup_seconds: Mapping[str, float] | None = None,
    ) -> Presence:
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
            tensor_parallel_size=facts.tensor_parallel_size,
            max_tokens=facts.max_tokens,
            windows_running=load.running if load else 0,
            windows_waiting=load.waiting if load else 0,
            startup_seconds=dict(startup_seconds or {}),
        )


class Publisher:
    """Repeats what a worker says of itself under ``key`` until stopped, and takes it back then.

    ``say`` is asked anew each time, in a thread of this object's: a worker may stop consuming a queue.
    """

    def __init__(self, redis: Redis, key: str, say: Callable[[], Message]) -> None:
        self._redis = redis
        self._key = key
        self._say = say
        self._wake = threading.Event()
        self._stopped = self._complained = False
        self._thread = threading.Thread(target=self._repeat, name="presence", daemon=True)

    def start(self) -> None:
        """Publish at once and then every 10 s."""
        self._thread.start()

    def refresh(self) -> None:
        """Publish now: there is news."""
        self._wake.set()

    def stop(self) -> None:
        """Take it back: nobody counts on this worker any more."""
        self._stopped = True
        self._wake.set()
        self._thread.join()

    def _repeat(self) -> None:
        while not self._stopped:
            try:
                self._redis.set(self._key, self._say().model_dump_json(), ex=EXPIRES_SECONDS)
                self._complained = False
            except RedisError as error:
                if not self._complained:
                    log.warning("cannot publish this worker's presence: %s", error)
                self._complained = True
            self._wake.wait(REPEAT_SECONDS)
            self._wake.clear()
        try:
            self._redis.delete(self._key)
        except RedisError:
            log.debug("%s is left to expire", self._key)


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
