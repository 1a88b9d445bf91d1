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

#: What is read at once, and so the longest way between two signs of life: s3fs would take 50 MiB.
BLOCK_BYTES = 2**22


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
        # Some keep what they have listed as long as the process lives: a file that is new, or has grown since.
        store.invalidate_cache()
        with store.open(path, "rb", block_size=BLOCK_BYTES) as remote:
            download.progress()
            download.copy(remote.read)
    except TranscriptionError:
        raise
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        number = {FileNotFoundError: errno.ENOENT, PermissionError: errno.EACCES}.get(type(error), errno.EISDIR)
        raise os_error(OSError(number, str(error)), url) from None
    except Exception as error:  # noqa: BLE001 - each storage has exceptions of its own; the network is the usual cause
        raise TransientError("fetch_failed", f"{name}: {one_line(error)}") from None
