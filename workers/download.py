"""What every download keeps to, wherever it comes from: bytes, pace and time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO

from workers.audio import AudioLimits
from workers.errors import TranscriptionError
from workers.redis_url import without_secrets
from workers.source_errors import shown

Progress = Callable[[], None]

_COPY_BYTES = 2**16
#: Longest wait for a connection or for the next bytes of it.
_NETWORK_SECONDS = 20.0
#: A download slower than this for half a decode deadline has stalled: less than any codec's speech needs in real time.
_STALL_BYTES = 2**16


@dataclass(slots=True)
class Download:
    """A recording on its way from ``source`` into ``file``. ``progress`` is called as bytes arrive."""

    source: str
    file: IO[bytes]
    limits: AudioLimits
    progress: Progress
    started: float = field(default_factory=time.monotonic)

    @property
    def wait_seconds(self) -> float:
        """Longest wait for a connection or for the next bytes of it."""
        return min(_NETWORK_SECONDS, self.limits.decode_timeout_seconds / 2)

    def copy(self, read: Callable[[int], bytes]) -> int:
        """Copy until the end; bytes copied.

        Raises TranscriptionError ``too_large`` as soon as that is certain, ``fetch_timeout`` when it takes too long as
        a whole; TimeoutError on a stall.
        """
        patience_seconds = self.limits.decode_timeout_seconds / 2
        copied, mark, mark_time = 0, 0, time.monotonic()
        while chunk := read(_COPY_BYTES):
            copied += len(chunk)
            check_size(copied, self.source, self.limits)
            left = memoryview(chunk)
            while left:  # a file without a buffer may take a part
                left = left[self.file.write(left) :]
            self.check_time(copied)
            if copied - mark >= _STALL_BYTES:
                mark, mark_time = copied, time.monotonic()
                self.progress()
            elif time.monotonic() - mark_time > patience_seconds:
                raise TimeoutError(f"the download stalled after {copied} bytes")
        return copied

    def check_time(self, copied: int) -> None:
        """Raises TranscriptionError ``fetch_timeout`` when the download's time is over: some streams never end."""
        limit_seconds = self.limits.download_timeout_seconds
        if time.monotonic() - self.started > limit_seconds:
            limit = f"{limit_seconds:g} s (WHISPER_DOWNLOAD_TIMEOUT_SECONDS)"
            message = f"{shown(self.source)}: not all there after {limit}; {copied} bytes had come"
            raise TranscriptionError("fetch_timeout", message)


def check_size(size: int, source: str, limits: AudioLimits) -> None:
    """Raises TranscriptionError ``not_audio`` for an empty file, ``too_large`` for one above the limit."""
    if size == 0:
        raise TranscriptionError("not_audio", f"{shown(source)}: the file is empty (0 bytes)")
    if size > limits.max_audio_bytes:
        message = f"{shown(source)}: {size} bytes, the limit is {limits.max_audio_bytes} (WHISPER_MAX_AUDIO_BYTES)"
        raise TranscriptionError("too_large", message)


def one_line(error: Exception) -> str:
    """What ``error`` says, in one line and without what is secret in URLs."""
    text = without_secrets(" ".join(str(error).split()))[:300]
    return text or type(error).__name__
