"""Pickled DataFrames that this user wrote, and no others: a pickle can run any program when it is read.

Each has a signature beside it, ``{name}.sig``, by a key that only this user can read.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import os
import pickle
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

from producer.cache import atomic_write
from producer.dataflow import optional
from producer.errors import FleetError, UsageError

_PROTOCOL = 5


def read(path: Path) -> Any:
    """The DataFrame in a file. Raises UsageError for one that this user's pipelines did not write."""
    optional.pandas("pickle")
    data = path.read_bytes()
    try:
        signature = signature_path(path).read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        signature = ""
    if not hmac.compare_digest(signature, _sign(data)):
        raise UsageError(
            f"{path}: not written by a pipeline of yours: a pickle can run any program, so it is not read; "
            "save it as .parquet or .jsonl"
        )
    return pickle.loads(data)


def write(frame: Any, path: Path) -> None:
    """Write a DataFrame and its signature."""
    buffer = io.BytesIO()
    frame.to_pickle(buffer, protocol=_PROTOCOL)
    data = buffer.getvalue()
    # Should this end between the two, the file is refused, and its operator makes it again.
    with atomic_write(signature_path(path)) as handle:
        handle.write(_sign(data).encode("ascii") + b"\n")
    with atomic_write(path) as handle:
        handle.write(data)


def signature_path(path: Path) -> Path:
    """Where the signature of the pickle at ``path`` is."""
    return path.with_name(f"{path.name}.sig")


def _sign(data: bytes) -> str:
    return hmac.new(_key(), data, hashlib.sha256).hexdigest()


def _key() -> bytes:
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    try:
        path = Path(base).expanduser() / "whisper-fleet" / "pickle.key"
    except RuntimeError:
        raise FleetError(f"{base}: there is no home folder: set XDG_STATE_HOME to a folder of yours") from None
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
            temporary.touch(mode=0o600)
            temporary.write_bytes(secrets.token_bytes(32))
            with suppress(FileExistsError):
                path.hardlink_to(temporary)  # as a whole or not at all
            temporary.unlink()
        return path.read_bytes()
    except OSError as error:
        raise FleetError(
            f"{path}: cannot be used ({error.strerror}): set XDG_STATE_HOME to a folder of yours"
        ) from None
