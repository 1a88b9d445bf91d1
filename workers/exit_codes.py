"""What a worker says when it ends: its exit code, beside 0 (it was told to), and why it could not start."""

from __future__ import annotations

#: The worker could not start: a wrong setting, a model that does not load. The same start again would end the same.
CANNOT_START = 1
#: Wrong arguments (Celery's own).
USAGE = 2
#: A worker that had started failed, or lost its engine (EX_SOFTWARE of <sysexits.h>): a new one may do better.
FAILED = 70

#: Begins what a worker says that could not start, in its log or on its standard error; why follows.
CANNOT_START_WORDS = "The worker cannot start: "
