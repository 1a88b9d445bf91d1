"""The caller's side of a Whisper fleet: `Client` for other applications, and what the command line is made of.

Importing this package loads nothing; its names load what they need.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from producer.async_client import AsyncClient, AsyncHandle
    from producer.client import Client
    from producer.errors import (
        CallCancelledError,
        CallTimeoutError,
        ClientClosedError,
        FleetError,
        FleetUnavailableError,
        JobCancelledError,
        UsageError,
    )
    from producer.handle import Handle
    from workers.errors import TranscriptionError
    from workers.messages import ChannelTranscripts, Failure, Segment, Transcript

__all__ = [
    "AsyncClient",
    "AsyncHandle",
    "CallCancelledError",
    "CallTimeoutError",
    "ChannelTranscripts",
    "Client",
    "ClientClosedError",
    "Failure",
    "FleetError",
    "FleetUnavailableError",
    "Handle",
    "JobCancelledError",
    "Segment",
    "Transcript",
    "TranscriptionError",
    "UsageError",
]

_MODULES = {
    "producer.async_client": ("AsyncClient", "AsyncHandle"),
    "producer.client": ("Client",),
    "producer.handle": ("Handle",),
    "workers.errors": ("TranscriptionError",),
    "workers.messages": ("ChannelTranscripts", "Failure", "Segment", "Transcript"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES.get(name, "producer.errors")), name)
    return value
