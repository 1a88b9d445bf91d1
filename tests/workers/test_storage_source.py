"""Downloads through fsspec: its memory file system stands for the buckets."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace

import fsspec
import pytest

from workers import storage_source
from workers.audio import AudioLimits
from workers.download import Download
from workers.errors import TranscriptionError

LIMITS = AudioLimits(url_schemes=["memory", "s3"])
BODY = b"sound " * 1000


@pytest.fixture(autouse=True)
def _bucket() -> Iterator[None]:
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/a.wav", BODY)
    yield
    memory.rm("/bucket", recursive=True)


def fetched(url: str, limits: AudioLimits = LIMITS) -> bytes:
    file = io.BytesIO()
    storage_source.fetch(Download(url, file, limits, lambda: None))
    return file.getvalue()


def test_content_comes_whole() -> None:
    assert fetched("memory://bucket/a.wav") == BODY


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://bucket/absent.wav", "file_not_found: memory://bucket/absent.wav"),
        ("s3://bucket::memory://bucket/a.wav", "unsupported_source: .*chained"),
        ("memory://bucket/a.wav::file:///etc/hostname", "unsupported_source: .*chained"),
        ("local:///etc/hostname", "unsupported_source: .*allowed: memory, s3"),
    ],
)
def test_others_are_refused(url: str, message: str) -> None:
    with pytest.raises(TranscriptionError, match=f"^{message}"):
        fetched(url)


def test_limits_hold() -> None:
    with pytest.raises(TranscriptionError, match="too_large"):
        fetched("memory://bucket/a.wav", replace(LIMITS, max_audio_bytes=100))
    with pytest.raises(TranscriptionError, match=r"'bucket' .WHISPER_URL_HOSTS"):
        fetched("memory://bucket/a.wav", replace(LIMITS, url_hosts=["other"]))
