"""Loaded into every worker of a chaos run: notes which rows it takes and which windows its engine runs.

It lets the poisonous recording kill its worker, and changes nothing else. ``CELERY_WORKER_INCLUDE`` has it loaded.

``CHAOS_WITNESS`` names the file; `benchmarks.chaos.witness` reads it. A line is one write to a file that is opened for
appending, so that workers can share it and a killed one leaves whole lines.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import zlib
from typing import Any

from celery import signals

from workers import runtime

#: Samples as loud as this are the poisonous recording: `benchmarks.chaos.inputs` keeps the others below.
POISON_PEAK = 0.99

_file = os.open(os.environ["CHAOS_WITNESS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
_watched = threading.Lock()


def _note(kind: str, *values: object) -> None:
    line = " ".join(map(str, (kind, f"{time.time():.3f}", os.getpid(), *values)))
    os.write(_file, f"{line}\n".encode())


@signals.task_prerun.connect(weak=False)  # type: ignore[untyped-decorator]
def _taken(args: Any = (), **_: Any) -> None:
    _watch_engine()
    records = args[0] if args else ()
    _note("taken", *(record["row"] for record in records if isinstance(record, dict) and "row" in record))


def _watch_engine() -> None:
    """Note every window from now on. The engine is there before the first task is."""
    if not _watched.acquire(blocking=False):
        return
    kind: Any = type(runtime.current().engine)
    submit = kind.submit

    def watched(self: Any, request: Any) -> Any:
        if abs(request.samples).max() >= POISON_PEAK:
            _note("poisoned")
            os.kill(os.getpid(), signal.SIGKILL)
        _note("window", f"{zlib.crc32(request.samples.tobytes()):08x}", request.temperature)
        return submit(self, request)

    kind.submit = watched


_note("started")
