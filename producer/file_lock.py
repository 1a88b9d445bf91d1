"""Locks between processes that share a folder: they end with whoever holds them."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from contextlib import suppress
from pathlib import Path

from producer.disk import disk_errors
from producer.errors import FleetError


class FileLock:
    """A lock that ends with its process: `flock`, on a file that says who holds it and is never removed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    def acquire(self) -> bool:
        """Take the lock; False where another process (or another FileLock) holds it. Never waits."""
        if self._fd is not None:
            return True
        with disk_errors(self.path):
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Known only to people: a full disk must not keep a job from being locked.
            with suppress(OSError):
                os.ftruncate(fd, 0)
                os.pwrite(fd, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        except BlockingIOError:
            os.close(fd)
            return False
        except OSError as error:
            os.close(fd)
            raise FleetError(f"{self.path}: cannot be locked ({error.strerror}): use another cache path") from error
        self._fd = fd
        return True

    def in_place(self) -> bool:
        """Whether the lock is held, by the file that is at its path: one that was removed keeps nobody away."""
        try:
            return self._fd is not None and os.path.samestat(os.fstat(self._fd), self.path.stat())
        except (FileNotFoundError, NotADirectoryError):
            return False

    def is_held(self) -> bool:
        """Whether somebody has the lock, for a process that does not want it."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            return True
        finally:
            os.close(fd)

    def holder(self) -> str:
        """Who took the lock last, for messages: ``process 12 on host``."""
        try:
            data = json.loads(self.path.read_bytes())
            return f"process {data['pid']} on {data['host']}"
        except (OSError, ValueError, LookupError, TypeError):
            return "another process"

    def release(self) -> None:
        """Give the lock back; nothing where it is not held."""
        if self._fd is not None:
            fcntl.flock(self._fd, fcntl.LOCK_UN)  # closing alone leaves it with a forked child
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
