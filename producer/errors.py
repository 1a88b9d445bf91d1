"""What the producer's side raises: each message is one line that says what is wrong, where, and what to do."""

from __future__ import annotations


class FleetError(Exception):
    """The run cannot go on (disk full, damaged journal, changed input). ``exit_code`` is the process's exit status."""

    exit_code = 1


class UsageError(FleetError):
    """The input or the arguments are wrong: nothing was enqueued."""

    exit_code = 2
