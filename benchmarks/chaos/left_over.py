"""What a fleet left behind on this machine: processes, shared memory, temporary folders.

Every process of a fleet carries a mark in its environment, and so do its children, wherever they were moved to.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

MARK = "CHAOS_ID"
SHARED_MEMORY = Path("/dev/shm")
#: A note of Intel's OpenMP, which its process, named here, does not keep mapped.
OPENMP_NOTE = re.compile(r"__KMP_REGISTERED_LIB_(\d+)_\d+")
#: What ends a fleet has ended it after so long.
GRACE_SECONDS = 15.0


@contextmanager
def marked(mark: str) -> Iterator[None]:
    """Every process that is started inside carries ``mark``."""
    os.environ[MARK] = mark
    try:
        yield
    finally:
        del os.environ[MARK]


def processes(mark: str, folder: Path) -> list[psutil.Process]:
    """The living processes that carry ``mark`` or work or write in ``folder``, other than this one.

    Valkey overwrites its environment with its title; it is found by its folder.
    """
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and (_carries(process, mark) or _lives_in(process, folder)):
                found.append(process)
    return found


def shared_memory() -> set[Path]:
    """The files in shared memory."""
    return set(SHARED_MEMORY.iterdir()) if SHARED_MEMORY.is_dir() else set()


def find(mark: str, folder: Path, temporary: Path, shared_before: set[Path]) -> list[str]:
    """What is left, a line each, after a while for what is about to end. ``temporary``: the ``TMPDIR`` of all."""
    deadline = time.monotonic() + GRACE_SECONDS
    while (left := _left(mark, folder, temporary, shared_before)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return left


def _left(mark: str, folder: Path, temporary: Path, shared_before: set[Path]) -> list[str]:
    # Other programs of this machine use shared memory too: what one of them has in use is its own.
    shared = [path for path in sorted(shared_memory() - shared_before) if not _in_use(path)]
    return [
        *(f"process {_said(process)}" for process in processes(mark, folder)),
        *(f"folder {path}" for path in sorted(temporary.glob("whisper-fleet-*"))),
        *(f"shared memory {path}" for path in shared),
    ]


def kill(mark: str, folder: Path) -> None:
    """End what `processes` finds, but for Python's resource trackers: they end last, and take shared memory along."""
    for process in processes(mark, folder):
        with contextlib.suppress(psutil.Error):
            if "resource_tracker" not in " ".join(process.cmdline()):
                process.kill()


def _carries(process: psutil.Process, mark: str) -> bool:
    return process.environ().get(MARK) == mark


def _lives_in(process: psutil.Process, folder: Path) -> bool:
    places = (Path(f"/proc/{process.pid}/cwd"), Path(f"/proc/{process.pid}/fd/1"))
    return any(place.readlink().is_relative_to(folder) for place in places)


def _in_use(path: Path) -> bool:
    """Whether a living process has the file mapped or is named by it, or it is gone.

    Told by the file's number: a semaphore is mapped before it gets its name.
    """
    if (note := OPENMP_NOTE.fullmatch(path.name)) and psutil.pid_exists(int(note[1])):
        return True
    try:
        number = str(path.stat().st_ino)
    except OSError:
        return True
    for process in psutil.process_iter():
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines():
                if str(SHARED_MEMORY) in line and line.split()[4] == number:
                    return True
    return False


def _said(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return f"{process.pid}: {' '.join(process.cmdline())[:120]}"
    return f"{process.pid}"
