"""Where a row's recording is: its path in the input, from the folder or URL where relative ones start."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def located(source: str, audio_root: str) -> str:
    """The path or URL that a worker opens. A relative path is joined to ``audio_root`` (a folder or URL).

    ``name/..`` is left out of it where ``name`` is a folder on this machine, so that workers need not have it; behind a
    link, or a folder that is not here, ``..`` stays and the worker's system says where it leads.
    """
    if not source or source.startswith("/") or _URL.match(source):
        return source
    if _URL.match(audio_root):
        return f"{audio_root.rstrip('/')}/{source}"
    path = os.path.join(audio_root, source)  # noqa: PTH118 (Path would cost as much as the rest)
    return shortened(path) if "/.." in path else os.path.normpath(path)


def absolute(path: str | Path) -> Path:
    """A path as other machines, and later commands from other folders, are told of it: ``..`` is left out likewise."""
    return Path(shortened(str(Path(path).absolute())))


def shortened(path: str) -> str:
    """A whole path up to the first ``..`` that may lead elsewhere than one name back."""
    kept: list[str] = []
    parts = [part for part in path.split("/") if part not in ("", ".")]
    for at, part in enumerate(parts):
        if part != "..":
            kept.append(part)
        elif not kept or _is_folder("/" + "/".join(kept)):
            del kept[-1:]
        else:
            return "/" + "/".join(kept + parts[at:])
    return "/" + "/".join(kept)


def _is_folder(path: str) -> bool:
    """Whether this machine has a folder there that is no link."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except (OSError, ValueError):  # ValueError: no path at all, which is said elsewhere
        return False
