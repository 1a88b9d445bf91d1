"""Downloads from object storage, through fsspec and the storage's own package.

The worker's own credentials open it, and its own configuration says which server answers: the address checks are for
http and https.
"""

from __future__ import annotations

import errno

from workers.download import Download, one_line
from workers.errors import TranscriptionError, TransientError
from workers.source_errors import os_error, shown
from workers.urls import check_url

HUB = "hf"
#: What is read at once, and so the longest way between two signs of life: by themselves these would take 50 MiB.
BLOCK_BYTES = 2**22
#: By scheme, in fsspec's words. 0: as one stream, for which hf:// does not list the whole folder of each file.
BLOCKS = {**dict.fromkeys(("s3", "s3a", "az", "abfs", "abfss"), BLOCK_BYTES), "hf": 0}
#: What is no fault of the network.
KINDS = {FileNotFoundError: errno.ENOENT, PermissionError: errno.EACCES, IsADirectoryError: errno.EISDIR}
#: What a storage that is asked by HTTP answers instead of a file.
STATUSES = {401: errno.EACCES, 403: errno.EACCES, 404: errno.ENOENT}


def fetch(download: Download) -> None:
    """Fetch a URL of an allowed scheme.

    Raises TranscriptionError ``unsupported_source``, ``not_allowed``, ``file_not_found``, ``no_permission``,
    ``too_large``, ``fetch_timeout``; TransientError ``fetch_failed``.
    """
    url, name = download.source, shown(download.source)
    scheme = check_url(url, download.limits).scheme
    if "::" in url:  # fsspec's way to name one file system inside another, the local one too
        raise TranscriptionError("unsupported_source", f"{name}: chained URLs (::) are not fetched")
    try:
        import fsspec.core  # optional: only who stores audio in a bucket needs it
    except ImportError:
        raise TranscriptionError("unsupported_source", f"{name}: {scheme}:// URLs need the fsspec package") from None
    try:
        try:
            store, path = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:  # the protocol's package is missing, or there is no such protocol
            raise TranscriptionError("unsupported_source", f"{name}: {one_line(error)}") from None
        # Some keep what they have listed as long as the process lives: a file may be new, or have grown since.
        store.invalidate_cache(path if scheme == HUB else None)  # there alone the rest is of use: it knows repositories
        with store.open(path, "rb", block_size=BLOCKS.get(scheme)) as remote:
            download.progress()
            download.copy(remote.read)
    except TranscriptionError:
        raise
    except Exception as error:  # noqa: BLE001 - each storage has exceptions of its own
        if number := _number(error, scheme):
            raise os_error(OSError(number, one_line(error)), url) from None
        # The network is the usual cause.
        raise TransientError("fetch_failed", f"{name}: {one_line(error)}") from None


def _number(error: Exception, scheme: str) -> int | None:
    """What the storage says of the file itself, in the system's numbers."""
    for kind, number in KINDS.items():
        if isinstance(error, kind):
            return number
    response = getattr(error, "response", None) if scheme == HUB else None
    return STATUSES.get(getattr(response, "status_code", 0))
