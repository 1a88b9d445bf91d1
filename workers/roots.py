"""Which files a worker may read: those below its roots, wherever links and ``..`` lead."""

from __future__ import annotations

import os
from collections.abc import Sequence

from workers.errors import TranscriptionError
from workers.source_errors import shown


def check_path(path: str, roots: Sequence[str] | None, source: str) -> None:
    """Refuse ``path`` before it is opened: whoever asks learns nothing of what is outside. None allows every path.

    Raises TranscriptionError ``not_allowed``; ValueError for a null byte, OSError for a path that cannot be resolved.
    """
    if roots is not None and not _below(os.path.realpath(path), roots):
        raise _refused(source)


def check_opened(descriptor: int, roots: Sequence[str] | None, source: str) -> None:
    """Refuse what was opened after all, through a link put there since `check_path`. Raises as that one does."""
    if roots is not None and not _below(os.readlink(f"/proc/self/fd/{descriptor}"), roots):  # noqa: PTH115
        raise _refused(source)


def _below(real_path: str, roots: Sequence[str]) -> bool:
    return any(real_path.startswith(os.path.join(os.path.realpath(root), "")) for root in roots)  # noqa: PTH118


def _refused(source: str) -> TranscriptionError:
    message = f"{shown(source)}: outside the folders that this worker may read (WHISPER_AUDIO_ROOTS)"
    return TranscriptionError("not_allowed", message)
