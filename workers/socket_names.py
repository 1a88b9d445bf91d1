"""vLLM's processes meet at sockets with names in the temporary folder, and leave those files there when they end.

Once all of them are connected nobody needs a name any more, so they lie in a folder that is gone before the first
record comes: a worker that is killed leaves none either.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Where vLLM makes them (vLLM `envs.py`); a user who has set it has his reasons.
VARIABLE = "VLLM_RPC_BASE_PATH"
#: What a socket's path may have (Linux, `unix(7)`: 108 with its end), and what vLLM's part of it has: "/" and a UUID.
MOST_BYTES, NAME_BYTES = 107, 37
PREFIX = "wf-"

#: The folder of the engine that is being loaded.
_folder: str | None = None


@contextmanager
def short_lived_sockets() -> Iterator[None]:
    """Engines that are loaded inside leave no sockets behind. In /tmp where the temporary folder's path is too long.

    Where nobody may write to that, vLLM's own paths, which are shorter, are left to it.
    """
    usual = Path(tempfile.gettempdir(), f"{PREFIX}{'X' * 8}")
    fits = len(os.fsencode(usual)) + NAME_BYTES <= MOST_BYTES
    if VARIABLE in os.environ or not (fits or os.access("/tmp", os.W_OK)):
        yield
        return
    global _folder
    parent = None if fits else "/tmp"
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=parent, ignore_cleanup_errors=True) as folder:
        os.environ[VARIABLE] = _folder = folder
        try:
            yield
        finally:
            _folder = None
            os.environ.pop(VARIABLE, None)


def remove_sockets() -> None:
    """For a process that ends while an engine loads: the loading thread will not tidy up."""
    if _folder is not None:
        shutil.rmtree(_folder, ignore_errors=True)
