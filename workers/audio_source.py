"""From a path or URL to a local file that the decoders can open, or a named error.

What comes over the network goes to a temporary file without a name: it is gone with the process, however that ends.
"""

from __future__ import annotations

import errno
import http.client
import os
import re
import ssl
import stat
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any
from urllib.parse import quote, unquote, urlsplit

from workers.audio import AudioLimits
from workers.errors import TranscriptionError, TransientError

Progress = Callable[[], None]

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_COPY_BYTES = 2**16
#: Longest wait for a connection or for the next bytes of it.
_NETWORK_SECONDS = 20.0
#: A download slower than this for half a decode deadline has stalled: less than any codec's speech needs in real time.
_STALL_BYTES = 2**16
#: 4xx answers that ask for another try: request timeout, too early, too many requests.
_HTTP_RETRY = frozenset({408, 425, 429})
#: What a path can be wrong in itself, next to not being there.
_NO_SUCH_FILE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL})


def shown(source: str) -> str:
    """``source`` as messages may show it: one line, at most 200 characters, without a URL's password and signature."""
    if _SCHEME.match(source):
        scheme, rest = re.split(r"[?#]", source, maxsplit=1)[0].split("://", 1)
        host, slash, path = rest.partition("/")
        source = f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
    text = "".join(char if char.isprintable() else "\ufffd" for char in source)
    return text if len(text) <= 200 else f"{text[:100]}...{text[-97:]}"


@contextmanager
def local_file(source: str, limits: AudioLimits, progress: Progress) -> Iterator[str]:
    """A path at which ``source`` can be opened while the context lasts. ``progress`` is called as bytes arrive.

    Raises TranscriptionError ``file_not_found``, ``not_a_file``, ``no_permission``, ``not_audio`` (nothing in it),
    ``too_large``, ``unsupported_source``, ``fetch_failed``; TransientError ``fetch_failed``, ``read_failed``.
    """
    scheme = _SCHEME.match(source)
    kind = scheme.group(1).lower() if scheme else "file"
    if kind == "file":
        path = _path_of(source) if scheme else source
        with _opened(path, source) as descriptor:
            _check_size(os.fstat(descriptor).st_size, source, limits)
            yield path if _is_utf8(path) else f"/proc/self/fd/{descriptor}"  # ffmpeg takes UTF-8 names only
        return
    with _temporary_file() as file:
        if kind in ("http", "https"):
            _fetch_http(source, file, limits, progress)
        else:
            _fetch_fsspec(source, kind, file, limits, progress)
        file.flush()
        _check_size(os.fstat(file.fileno()).st_size, source, limits)
        yield f"/proc/self/fd/{file.fileno()}"


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


@contextmanager
def _opened(path: str, source: str) -> Iterator[int]:
    try:
        # Not to wait for the writer of a named pipe.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise os_error(error, source) from None
    except ValueError:  # a null byte
        raise TranscriptionError("file_not_found", f"{shown(source)}: no such file on this worker") from None
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            what = "a directory" if stat.S_ISDIR(mode) else "no regular file"
            raise TranscriptionError("not_a_file", f"{shown(source)}: is {what}")
        yield descriptor
    finally:
        os.close(descriptor)


def _temporary_file() -> IO[bytes]:
    try:
        return tempfile.TemporaryFile()
    except OSError as error:
        raise TransientError("read_failed", f"no temporary file for the download: {error.strerror or error}") from None


def _path_of(url: str) -> str:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise TranscriptionError("unsupported_source", f"{shown(url)}: a file URL names no host (file:///path)")
    # A "?" or "#" that was not escaped belongs to the name: a file has neither query nor fragment.
    return unquote(url.split("://", 1)[1][len(parts.netloc) :])


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_size(size: int, source: str, limits: AudioLimits) -> None:
    if size == 0:
        raise TranscriptionError("not_audio", f"{shown(source)}: the file is empty (0 bytes)")
    if size > limits.max_audio_bytes:
        message = f"{shown(source)}: {size} bytes, the limit is {limits.max_audio_bytes} (WHISPER_MAX_AUDIO_BYTES)"
        raise TranscriptionError("too_large", message)


def _copy(read: Callable[[int], bytes], file: IO[bytes], source: str, limits: AudioLimits, progress: Progress) -> int:
    """Copy until the end; bytes copied. Raises ``too_large`` as soon as that is certain, TimeoutError on a stall."""
    patience_seconds = limits.decode_timeout_seconds / 2
    copied, mark, mark_time = 0, 0, time.monotonic()
    while chunk := read(_COPY_BYTES):
        copied += len(chunk)
        if copied > limits.max_audio_bytes:
            _check_size(copied, source, limits)
        file.write(chunk)
        if copied - mark >= _STALL_BYTES:
            mark, mark_time = copied, time.monotonic()
            progress()
        elif time.monotonic() - mark_time > patience_seconds:
            raise TimeoutError(f"the download stalled after {copied} bytes")
    return copied


def _fetch_http(url: str, file: IO[bytes], limits: AudioLimits, progress: Progress) -> None:
    name = shown(url)
    headers = {"Accept-Encoding": "identity", "User-Agent": "whisper-fleet"}
    timeout_seconds = min(_NETWORK_SECONDS, limits.decode_timeout_seconds / 2)
    try:
        # Spaces and non-ASCII letters, which people paste, are escaped; what is escaped already stays as it is.
        request = urllib.request.Request(quote(url, safe="%/:=&?~#+!$,;'@()*[]"), headers=headers)
        with urllib.request.urlopen(request, timeout=timeout_seconds) as answer:
            progress()
            announced = int(answer.headers.get("Content-Length") or 0)
            if announced > limits.max_audio_bytes:
                _check_size(announced, url, limits)
            copied = _copy(answer.read1, file, url, limits, progress)
    except urllib.error.HTTPError as error:
        kind = TransientError if error.code >= 500 or error.code in _HTTP_RETRY else TranscriptionError
        raise kind("fetch_failed", f"{name}: HTTP {error.code} {error.reason}") from None
    except (ValueError, http.client.InvalidURL) as error:
        raise TranscriptionError("fetch_failed", f"{name}: no valid URL ({error})") from None
    except urllib.error.URLError as error:
        kind = TranscriptionError if isinstance(error.reason, ssl.SSLCertVerificationError) else TransientError
        raise kind("fetch_failed", f"{name}: {error.reason}") from None
    except (OSError, http.client.HTTPException) as error:
        raise TransientError("fetch_failed", f"{name}: {error or type(error).__name__}") from None
    if copied < announced:
        raise TransientError("fetch_failed", f"{name}: the connection ended after {copied} of {announced} bytes")


def _fetch_fsspec(url: str, scheme: str, file: IO[bytes], limits: AudioLimits, progress: Progress) -> None:
    name = shown(url)
    try:
        import fsspec  # optional: only who stores audio in a bucket needs it
    except ImportError:
        raise TranscriptionError("unsupported_source", f"{name}: {scheme}:// URLs need the fsspec package") from None
    try:
        opened: Any = fsspec.open(url, "rb")
    except (ImportError, ValueError) as error:  # the protocol's own package is missing, or there is no such protocol
        raise TranscriptionError("unsupported_source", f"{name}: {_line(error)}") from None
    try:
        with opened as remote:
            progress()
            _copy(remote.read, file, url, limits, progress)
    except TranscriptionError:
        raise
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        number = {FileNotFoundError: errno.ENOENT, PermissionError: errno.EACCES}.get(type(error), errno.EISDIR)
        raise os_error(OSError(number, str(error)), url) from None
    except Exception as error:  # noqa: BLE001 - each storage has exceptions of its own; the network is the usual cause
        raise TransientError("fetch_failed", f"{name}: {_line(error)}") from None


def _line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
