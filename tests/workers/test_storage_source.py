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


def test_what_a_storage_has_listed_before_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a storage that remembers its listings as long as the process lives, as that of hf:// does
    listed: dict[str, int] = {}
    memory = type(fsspec.filesystem("memory"))
    plain = memory._open

    def open_as_listed(self: object, path: str, *arguments: object, **named: object) -> io.BytesIO:
        if path not in listed:
            listed[path] = len(plain(self, path).getvalue())
        return io.BytesIO(plain(self, path).getvalue()[: listed[path]])

    monkeypatch.setattr(memory, "_open", open_as_listed)
    monkeypatch.setattr(memory, "invalidate_cache", lambda self, path=None: listed.clear())
    assert fetched("memory://bucket/a.wav") == BODY

    # When the file has grown
    file = plain(fsspec.filesystem("memory"), "/bucket/a.wav")
    file.seek(0, io.SEEK_END)
    file.write(BODY)

    # Then it comes as it is now
    assert fetched("memory://bucket/a.wav") == BODY + BODY


def test_a_slow_storage_gives_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a storage with a block size of its own, which it is asked to do without
    sizes: list[object] = []
    memory = type(fsspec.filesystem("memory"))
    plain = memory._open
    monkeypatch.setattr(
        memory, "_open", lambda *given, **named: (sizes.append(named.get("block_size")), plain(*given, **named))[1]
    )

    assert fetched("memory://bucket/a.wav") == BODY

    assert sizes == [storage_source.BLOCK_BYTES]
