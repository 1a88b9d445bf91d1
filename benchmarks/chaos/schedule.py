"""When a fault strikes, and whom: drawn from a seed, so that a failure can be repeated."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")

DEFAULT_SEED = 20261123


@dataclass(frozen=True, slots=True)
class Moment:
    """When and where one fault strikes. ``share``: of the rows that are answered by then."""

    share: float
    victim: int
    #: How long what the fault takes away stays away, for those faults that give it back.
    down_seconds: float

    def choose(self, items: Sequence[Item]) -> Item:
        """The victim among ``items``, of which there must be one."""
        return items[self.victim % len(items)]


def moment(seed: int, engine: str, fault: str) -> Moment:
    """The moment of ``fault``. It depends on nothing but the arguments: not on which other faults are run."""
    draw = random.Random(f"{seed}:{engine}:{fault}")
    return Moment(share=draw.uniform(0.2, 0.7), victim=draw.randrange(1 << 16), down_seconds=draw.uniform(1.0, 5.0))
