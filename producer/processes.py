"""Child processes that end with this one, and what their logs say."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import workers.guard


def start_guarded(
    command: list[str],
    environment: Mapping[str, str],
    log_path: Path,
    *,
    umask: int = -1,
    cores: Sequence[int] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a process that ends when this one does, in a session of its own: a terminal's Ctrl-C does not reach it.

    Its log is readable by this user only; ``umask`` is for the files that it makes itself (-1: as here). ``cores``:
    it and its own children run on these only.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(log, "ab") as output:
        return subprocess.Popen(
            workers.guard.guarded_command(os.getpid(), command, cores),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
            umask=umask,
        )


def end(process: subprocess.Popen[bytes], grace_seconds: float) -> None:
    """SIGTERM, then SIGKILL after ``grace_seconds``; returns when it is gone."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def log_lines(path: Path, start: int = 0) -> list[str]:
    """The lines of a log that say something, from byte ``start`` on."""
    with contextlib.suppress(OSError):
        text = path.read_bytes()[start:].decode(errors="replace")
        return [line for line in text.splitlines() if line.strip()]
    return []


def last_line(lines: list[str]) -> str:
    return lines[-1] if lines else "it said nothing"
