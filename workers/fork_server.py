"""What a CPU worker's fork server does when it starts: import all that vLLM's engine and its ranks need.

Python's fork server imports this module by its name (`workers.forked_engine`), and nobody else does: importing it has
effects.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import os
import signal

from workers import guard
from workers.forked_engine import MODULES

# A terminal's Ctrl-C and a supervisor's TERM reach the whole group: the worker drains, and needs its engine, which
# ends with this process.
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT, signal.SIGTERM])
# No watching thread: what is forked has to come from a process that has none. A worker that is gone by now is noticed
# by the fork server itself, after this module.
guard.kernel_signal_with_parent()
with contextlib.suppress(OSError):
    os.setpgid(0, 0)
with contextlib.suppress(ImportError):
    from setproctitle import setproctitle

    setproctitle("whisper-fleet: fork server")
for module in MODULES:
    # What cannot be imported is the engine's own to report, once it needs it.
    with contextlib.suppress(Exception):
        importlib.import_module(module)


def _end() -> None:
    """Libraries that are torn down complain of what they leave behind."""
    guard.unlink_openmp_note(os.getpid())
    os._exit(0)


atexit.register(_end)
# Copies that collect garbage leave what is here alone, and so share its memory (`gc.freeze` in Python's documentation).
gc.freeze()
