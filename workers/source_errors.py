"""How a recording's path or URL appears in messages, and which failure an operating system's error is."""

from __future__ import annotations

import errno
import re

from workers.errors import TranscriptionError, TransientError

#: A URL's scheme. What does not start like this is a path.
SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
#: What somebody meant for a URL, with a blank or a quote before it, which makes it a path in the producer's folder.
_NEARLY_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/.*\?")
#: What a path can be wrong in itself, next to not being there.
_NO_SUCH_FILE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL})


def shown(source: str) -> str:
    """``source`` as messages may show it: one line, at most 200 characters, without a URL's password and signature."""
    if SCHEME.match(source):
        scheme, rest = re.split(r"[?#]", source, maxsplit=1)[0].split("://", 1)
        host, slash, path = rest.partition("/")
        source = f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
    elif _NEARLY_URL.search(source):
        source = re.split(r"[?#]", source, maxsplit=1)[0]
    text = printable(source)
    return text if len(text) <= 200 else f"{text[:100]}...{text[-97:]}"


def printable(text: str) -> str:
    """``text`` in one line that no terminal takes for a command."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


def os_error(error: OSError, source: str) -> TranscriptionError:
    """The record's error for an operating system's error; what is not the file's fault is transient."""
    name = shown(source)
    if error.errno in _NO_SUCH_FILE:
        return TranscriptionError("file_not_found", f"{name}: no such file on this worker")
    if error.errno == errno.EISDIR:
        return TranscriptionError("not_a_file", f"{name}: is a directory")
    if error.errno in (errno.EACCES, errno.EPERM):
        return TranscriptionError("no_permission", f"{name}: the worker may not read it")
    return TransientError("read_failed", f"{name}: {error.strerror or error}")
