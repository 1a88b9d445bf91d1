"""Whether and when a worker that has ended is started again."""

from __future__ import annotations

from dataclasses import dataclass

from workers import exit_codes

#: A worker that ran for so long was healthy: what ends it then is a new story.
HEALTHY_SECONDS = 600.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0


@dataclass(slots=True)
class Restarts:
    """The restarts of one worker. ``limit``: how many in a row, without a healthy run between."""

    limit: int
    in_a_row: int = 0
    _has_started: bool = False

    def pause_seconds(self, code: int, ran_seconds: float) -> float | None:
        """How long to wait before the next start; None for not again.

        ``code``: its exit code, negative for a signal. A worker that cannot start at all (a model that does not
        exist) is not tried again, unless an earlier one could: then it may be the GPU that is not free yet.
        """
        if code == 0 or (code in (exit_codes.CANNOT_START, exit_codes.USAGE) and not self._has_started):
            return None
        self._has_started = True
        if ran_seconds >= HEALTHY_SECONDS:
            self.in_a_row = 0
        if self.in_a_row >= self.limit:
            return None
        self.in_a_row += 1
        return min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** (self.in_a_row - 1))
