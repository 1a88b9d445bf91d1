"""A worker's start and its parts: for its log, for its presence, and for whoever waits for it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ConfigDict, ValidationError
from redis import Redis

from workers import keys
from workers.messages import Message
from workers.publisher import published

#: The parts, in the words in which a person sees them. Some run beside others.
PYTHON = "starting Python"
BROKER = "asking Redis"
DECODERS = "starting a decode process"
MODEL = "finding the model"
LIBRARIES = "importing vLLM"
OTHER_ENGINE = "waiting for another engine of this GPU to load"
ENGINE = "loading the engine"
WARM_UP = "warming up"
GOLDEN = "golden check"
CONNECT = "connecting"


@dataclass(slots=True)
class _Part:
    name: str
    began: float
    ended: float | None = None


class Startup:
    """Which part of its start this process is in, and what each took. Safe from any thread.

    ``changed`` is called when a part begins. ``age_seconds``: how long the process has lived already.
    """

    def __init__(self, age_seconds: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._began = clock() - age_seconds
        self._parts = [_Part(PYTHON, self._began, clock())] if age_seconds else []
        self.changed: Callable[[], None] = lambda: None

    @classmethod
    def of_process(cls) -> Startup:
        """The start of this process, which began when it was made."""
        return cls(process_age_seconds())

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """The block is the part ``name``."""
        part = self.begin(name)
        try:
            yield
        finally:
            self.end(part)

    def begin(self, name: str) -> _Part:
        """The part ``name`` begins; ``end`` ends it."""
        part = _Part(name, self._clock())
        with self._lock:
            self._parts.append(part)
        self.changed()
        return part

    def end(self, part: _Part) -> None:
        """``part`` is done."""
        with self._lock:
            part.ended = self._clock()

    @property
    def doing(self) -> str:
        """The part that began last of those that are not done; of several beside each other one is enough to tell."""
        with self._lock:
            return next((part.name for part in reversed(self._parts) if part.ended is None), PYTHON)

    @property
    def total_seconds(self) -> float:
        """Since the process was made."""
        return self._clock() - self._began

    def seconds(self) -> dict[str, float]:
        """What each part took, in the order in which they began; of one that is not done, what it took so far."""
        now, found = self._clock(), dict[str, float]()
        with self._lock:
            for part in self._parts:
                took = (part.ended or now) - part.began
                found[part.name] = round(found.get(part.name, 0.0) + took, 3)
        return found


def in_words(starting: Sequence[Starting]) -> str:
    """What these workers do, in one line without their hosts; the empty text for none."""
    return "; ".join(f"{one.name.partition('@')[0]}: {one.doing}" for one in starting)


def overview(seconds: Mapping[str, float]) -> str:
    """The parts in one line."""
    return ", ".join(f"{name} {took:.1f}" for name, took in seconds.items())


def process_age_seconds() -> float:
    """How long this process has lived, by the kernel's clock; 0.0 where /proc does not tell."""
    try:
        # After the name, which may hold anything: fields 3 and on of proc(5), of which 22 is the start in ticks.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0


class Starting(Message):
    """A worker that is not ready yet, and the part of its start that it is in."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    doing: str
    #: Since its process was made.
    total_seconds: float

    @classmethod
    def of(cls, name: str, startup: Startup) -> Starting:
        """What the worker ``name`` says of itself now."""
        return cls(name=name, doing=startup.doing, total_seconds=round(startup.total_seconds, 1))


def starting_workers(redis: Redis) -> list[Starting]:
    """The workers that are starting, by name. Skips what this version cannot read."""
    found = []
    for _, payload in published(redis, keys.STARTING):
        try:
            found.append(Starting.model_validate_json(payload))
        except ValidationError:  # a newer one's: it is not ready in any case
            continue
    return found
