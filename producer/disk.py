"""What a full, failing or odd file system says, in words."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from producer.errors import FleetError

#: What a full or failing disk says; the run ends with one line and can be resumed. EFBIG is a file-size limit.
DISK_ERRORS = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)
)
#: What a network's file system says while its server is away for a moment.
PASSING_ERRORS = frozenset(
    (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EHOSTUNREACH, errno.EHOSTDOWN)
)


def may_pass(error: BaseException) -> bool:
    """Whether ``error`` comes of a file system that may be back soon."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in PASSING_ERRORS


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the errors of a full, failing or forbidden disk into a FleetError of one line; others pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = "free some space" if full else "make it writable"
        raise FleetError(f"{path}: cannot be written ({error.strerror}): {advice} and run the same command") from error


def fsync_folder(path: Path) -> None:
    """Put a folder's new and renamed entries on the disk, where its file system can be told to."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)
