"""What the exit code of a worker says, beside 0: it ended because it was told to."""

from __future__ import annotations

#: The worker could not start: a wrong setting, a model that does not load. The same start again would end the same.
CANNOT_START = 1
#: Wrong arguments (Celery's own).
USAGE = 2
#: A worker that had started failed, or lost its engine (EX_SOFTWARE of <sysexits.h>): a new one may do better.
FAILED = 70
