"""What a live worker says of itself in Redis, and how a producer reads it."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from pydantic import ConfigDict, Field, ValidationError
from redis import Redis

from workers import keys
from workers.interface import EngineFacts, EngineLoad
from workers.messages import Message, first_problem
from workers.publisher import published

log = logging.getLogger(__name__)


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


def live_workers(redis: Redis) -> list[Presence]:
    """The workers that have said something within the last 30 s, by name. Skips what this version cannot read."""
    found = []
    for key, payload in published(redis, keys.WORKERS):
        try:
            found.append(Presence.model_validate_json(payload))
        except ValidationError as error:
            log.warning("%s: not a worker that this version can read: %s", key, first_problem(error))
    return found
