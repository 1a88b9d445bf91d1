"""From a path or URL to a local file that the decoders can open, or a named error.

What comes over the network goes to a temporary file without a name: it is gone with the process, however that ends.
"""

from __future__ import annotations

import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, BinaryIO
from urllib.parse import unquote

from workers import http_source, storage_source
from workers.audio import AudioLimits
from workers.download import Download, Progress, check_size
from workers.errors import TranscriptionError, TransientError
from workers.mp3 import Places
from workers.roots import check_opened, check_path
from workers.source_errors import SCHEME, os_error, shown
from workers.urls import WEB_SCHEMES

#: Names that FFmpeg ("raw") or libsndfile takes for samples without a header, whatever is in the file.
TAKEN_FOR_RAW = frozenset({".raw", ".au", ".snd"})

_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,8}$")


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A checked file. ``path``: where to open it, ``descriptor``: it itself, ``suffix``: its name's, or empty.

    ``places``: of a file that tells no times, where it has been read already.
    """

    path: str
    descriptor: int
    suffix: str
    places: Places = field(default_factory=Places, compare=False)

    def open(self) -> BinaryIO:
        """The file from its start, with its suffix in its name and nothing else of it."""
        again = f"/proc/self/fd/{self.descriptor}"
        return open(f"audio{self.suffix}", "rb", buffering=0, opener=lambda _, flags: os.open(again, flags))


@contextmanager
def local_file(source: str, limits: AudioLimits, progress: Progress) -> Iterator[LocalFile]:
    """A file with the content of ``source``, while the context lasts. ``progress`` is called as bytes arrive.

    Raises TranscriptionError ``file_not_found``, ``not_a_file``, ``no_permission``, ``not_allowed``, ``not_audio``
    (nothing in it), ``too_large``, ``unsupported_source``, ``fetch_failed``, ``fetch_timeout``; TransientError
    ``fetch_failed``, ``read_failed``.
    """
    scheme = SCHEME.match(source)
    kind = scheme.group(1).lower() if scheme else "file"
    if kind == "file":
        path = _path_of(source) if scheme else source
        with _opened(path, source, limits) as descriptor:
            check_size(os.fstat(descriptor).st_size, source, limits)
            # By its name a file might be another one now, and ffmpeg and libsndfile take UTF-8 names only.
            by_name = limits.audio_roots is None and _is_utf8(path) and _suffix(path).lower() not in TAKEN_FOR_RAW
            yield LocalFile(path if by_name else f"/proc/self/fd/{descriptor}", descriptor, _suffix(path))
        return
    with _temporary_file() as file:
        download = Download(source, file, limits, progress)
        (http_source if kind in WEB_SCHEMES else storage_source).fetch(download)
        file.flush()
        check_size(os.fstat(file.fileno()).st_size, source, limits)
        path = re.split(r"[?#]", source, maxsplit=1)[0]
        yield LocalFile(f"/proc/self/fd/{file.fileno()}", file.fileno(), _suffix(path))


@contextmanager
def _opened(path: str, source: str, limits: AudioLimits) -> Iterator[int]:
    try:
        check_path(path, limits.audio_roots, source)
        # Not to wait for the writer of a named pipe.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise os_error(error, source) from None
    except ValueError:  # a null byte
        raise TranscriptionError("file_not_found", f"{shown(source)}: no such file on this worker") from None
    try:
        check_opened(descriptor, limits.audio_roots, source)
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            what = "a directory" if stat.S_ISDIR(mode) else "no regular file"
            raise TranscriptionError("not_a_file", f"{shown(source)}: is {what}")
        yield descriptor
    finally:
        os.close(descriptor)


def _temporary_file() -> IO[bytes]:
    try:
        return tempfile.TemporaryFile(buffering=0)  # on a full disk the write fails, not something after it
    except OSError as error:
        raise TransientError("read_failed", f"no temporary file for the download: {error.strerror or error}") from None


def _path_of(url: str) -> str:
    # A "?" or "#" that was not escaped belongs to the name: a file has neither query nor fragment.
    host, slash, path = url.split("://", 1)[1].partition("/")
    if host not in ("", "localhost"):
        raise TranscriptionError("unsupported_source", f"{shown(url)}: a file URL names no host (file:///path)")
    return unquote(slash + path)


def _suffix(path: str) -> str:
    found = _SUFFIX.search(path)
    return found.group() if found else ""


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
