"""Whether the rows that are sent are still those that the job began with: answers know only their numbers."""

from __future__ import annotations

import time

from producer.inputs import stamp_of
from producer.job import Job

#: The share of the time that looks at an input which grows may take: each reads all rows of the job.
CHECK_SHARE = 0.1


class UnchangedInput:
    """The input of one job, which somebody may write over. Not in every moment: one that grows all the time would be
    read all the time.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        #: As it was when its rows were found to be the job's, and when that may be looked at again.
        self._stamp, self._next_check = job.stamp or stamp_of(job.header.inputs), float("-inf")

    def check(self) -> None:
        """Raise UsageError where it has other rows now."""
        stamp, began = stamp_of(self._job.header.inputs), time.monotonic()
        if stamp != self._stamp and began >= self._next_check:
            self._job.check_input()
            self._stamp, now = stamp, time.monotonic()
            self._next_check = now + (now - began) / CHECK_SHARE
