"""Storages that are not ours: DataFlow's FileStorage, and whatever else reads and writes DataFrames."""

from __future__ import annotations

from typing import Any

from producer.dataflow.storage import FileStorage
from producer.errors import UsageError

#: What says where a FileStorage's files are. Its kin (lazy, batched ...) keep rows elsewhere too: they are asked.
_PLACES = ("first_entry_file_name", "cache_path", "file_name_prefix", "cache_type")


def file_storage(storage: Any) -> FileStorage | None:
    """The storage as one of ours, None where its rows are only to be had by its own ``read`` and ``write``.

    DataFlow's FileStorage is taken by its files, so that no id becomes a number and no line is lost on the way. Its
    media column is "audio", unless it has an attribute ``media_key``. Raises UsageError for what is no storage.
    """
    if isinstance(storage, FileStorage):
        return storage
    if not callable(getattr(storage, "read", None)) or not callable(getattr(storage, "write", None)):
        raise UsageError(
            f"storage is a {type(storage).__name__}: it must be a FileStorage, as storage.step() returns it"
        )
    places = {name: getattr(storage, name, None) for name in _PLACES}
    step = getattr(storage, "operator_step", None)
    if (
        type(storage).__name__ != "FileStorage"
        or step is None
        or not all(isinstance(one, str) for one in places.values())
    ):
        return None
    if str(places["first_entry_file_name"]).startswith(("hf:", "ms:")) and step == 0:
        return None
    ours = FileStorage(**places, media_key=media_key(storage))  # type: ignore[arg-type]
    ours.operator_step = step
    return ours


def media_key(storage: Any) -> str:
    """The media column of a storage that may not say."""
    return getattr(storage, "media_key", None) or "audio"
