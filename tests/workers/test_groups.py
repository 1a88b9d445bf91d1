"""Windows that wait for each other are encoded together, and none waits for ever or for a reason that is over."""

from __future__ import annotations

import random
from collections import deque

from workers.groups import Groups

ROOM, SIZE, WINDOWS = 128, 8, 2000


class Batch:
    """vLLM's scheduler as far as it matters: each step fills free rows, encodes at most so many, and decodes all."""

    def __init__(self, size: int) -> None:
        self.groups = Groups(ROOM, size)
        self.steps = self.encoding_steps = self.ended = 0
        self._lengths = random.Random(1)
        self._waiting: deque[int] = deque()
        self._rows: list[int] = []

    def ask(self) -> None:
        self.groups.enter(self._come, urgent=False)

    def _come(self) -> bool:
        self._waiting.append(self._lengths.randint(60, 180))
        return True

    def step(self) -> int:
        """Returns how many windows have ended."""
        come = min(len(self._waiting), ROOM - len(self._rows), SIZE)
        self.encoding_steps += bool(come)
        self.steps += 1
        self._rows += [self._waiting.popleft() for _ in range(come)]
        left = [row - 1 for row in self._rows if row > 1]
        ended = len(self._rows) - len(left)
        self._rows = left
        self.ended += ended
        for _ in range(ended):
            self.groups.left()
        return ended


def run(size: int) -> Batch:
    """A job on an engine that is asked for twice its batch at once, as a worker does, to its last window."""
    batch, asked = Batch(size), 2 * ROOM
    for _ in range(asked):
        batch.ask()
    while batch.ended < WINDOWS:
        for _ in range(min(batch.step(), WINDOWS - asked)):
            batch.ask()
            asked += 1
        assert batch.steps < 2 * WINDOWS, "the last ones do not wait for others"
    return batch


def test_fewer_steps_encode_and_the_batch_is_nearly_as_full() -> None:
    alone, together = run(0), run(SIZE)

    assert WINDOWS / alone.encoding_steps < 3
    assert WINDOWS / together.encoding_steps > 6
    assert together.steps < 1.1 * alone.steps


def test_what_is_urgent_or_finds_room_goes_at_once() -> None:
    groups, began = Groups(room=4, size=2), list[str]()

    def window(name: str, *, urgent: bool = False, wanted: bool = True) -> None:
        def start() -> bool:
            began.append(name)
            return wanted

        groups.enter(start, urgent=urgent)

    # Given an engine with room for two groups
    for name in "abcd":
        window(name)
    # When there is not room enough for a group
    assert began == ["a", "b", "c"]
    window("now", urgent=True)
    assert began == ["a", "b", "c", "now"]
    groups.left()
    assert len(began) == 4

    # Then the others wait until there is
    groups.left()
    assert began[4:] == ["d"]


def test_what_nobody_wants_any_more_takes_no_room() -> None:
    groups, began = Groups(room=2, size=2), list[int]()

    def start(number: int) -> bool:
        began.append(number)
        return number >= 1000

    # Given a full engine, and many that were cancelled while they waited
    for number in (1001, *range(1000), 1002, 1003):
        groups.enter(lambda number=number: start(number), urgent=False)  # type: ignore[misc]
    # When there is room
    assert began == [1001]
    groups.left()

    # Then the first that are wanted have it
    assert began == [1001, *range(1000), 1002, 1003]
