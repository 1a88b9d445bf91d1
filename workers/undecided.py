"""Windows that are read while their recording's first ones still vote on its language: they wait for it in order.

Meanwhile the recording is read on, so that its decode process is free for others as soon as it can be.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from workers.rooms import Leave
from workers.windows import Window


@dataclass(slots=True)
class Undecided:
    """Close it: what was not taken leaves its room."""

    _waiting: deque[tuple[Window, float, Leave]] = field(default_factory=deque)

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, window: Window, start_s: float, leave: Leave) -> None:
        """Keep a window, which has its room in the engine already. ``start_s``: where its span starts."""
        self._waiting.append((window, start_s, leave))

    def take(self) -> Iterator[tuple[Window, float, Leave]]:
        """All of them, in order; whoever takes one has its room."""
        while self._waiting:
            yield self._waiting.popleft()

    def close(self) -> None:
        """Forget the rest."""
        for _, _, leave in self.take():
            leave()
