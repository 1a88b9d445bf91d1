"""What the workers of a chaos run wrote down (see `benchmarks.chaos.in_worker`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Taken:
    """A worker took a message with these rows. ``at``: seconds since the epoch."""

    at: float
    pid: int
    rows: tuple[int, ...]


@dataclass(slots=True)
class Sightings:
    """Who did what. ``windows``: engine runs at temperature 0 by the checksum of their samples (retries are not runs
    of their own), ``poisoned``: when workers died of the poisonous row.
    """

    workers: set[int] = field(default_factory=set)
    taken: list[Taken] = field(default_factory=list)
    windows: Counter[str] = field(default_factory=Counter)
    poisoned: list[float] = field(default_factory=list)

    def held_by(self, pids: set[int], before: float) -> set[int]:
        """The rows that one of these workers took before a time."""
        return {row for one in self.taken if one.pid in pids and one.at <= before for row in one.rows}

    def taken_elsewhere(self, rows: set[int], pids: set[int], after: float) -> dict[int, float]:
        """When each of ``rows`` was first taken by another worker than these, after a time."""
        found: dict[int, float] = {}
        for one in self.taken:
            if one.pid not in pids and one.at > after:
                for row in rows.intersection(one.rows):
                    found[row] = min(one.at, found.get(row, one.at))
        return found


def read(path: Path) -> Sightings:
    """The file's sightings; a file that is not there yet says nothing."""
    found = Sightings()
    for line in path.read_text().splitlines() if path.exists() else ():
        kind, at, pid, *values = line.split(" ")
        if kind == "started":
            found.workers.add(int(pid))
        elif kind == "taken":
            found.taken.append(Taken(float(at), int(pid), tuple(map(int, values))))
        elif kind == "poisoned":
            found.poisoned.append(float(at))
        elif kind == "window" and float(values[1]) == 0.0:
            found.windows[values[0]] += 1
    return found


def recover_seconds(at: float, answered_at: Mapping[int, float], held: set[int]) -> float:
    """Seconds from a fault until nothing of it is felt any more, 0 where it was not felt at all.

    That is the later of two: the rows that workers held at the fault are answered on the disk, and the longest time
    without any new answer is over. ``answered_at``: by row, in any clock that ``at`` is of.
    """
    waited_for = [answered_at[row] - at for row in held if answered_at.get(row, 0.0) > at]
    after = sorted(time for time in answered_at.values() if time > at)
    silences = [later - earlier for earlier, later in zip([at, *after], after, strict=False)]
    return max([0.0, *waited_for, *silences])
