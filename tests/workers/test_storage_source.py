"""Downloads through fsspec: its memory file system stands for the buckets."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import fsspec
import fsspec.implementations.memory
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


@pytest.mark.parametrize(("scheme", "size"), [("s3", storage_source.BLOCK_BYTES), ("hf", 0), ("gs", None)])
def test_each_storage_is_asked_for_as_much_as_suits_it(
    monkeypatch: pytest.MonkeyPatch, scheme: str, size: int | None
) -> None:
    # Given the memory file system in the place of the storage's own
    sizes: list[object] = []

    class Bucket(type(fsspec.filesystem("memory"))):  # type: ignore[misc]
        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return f"/{path.partition('://')[2] or path.lstrip('/')}"

        def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **options: object) -> io.BytesIO:
            sizes.append(block_size)
            return super()._open(path, mode, **options)

    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, scheme, Bucket)

    assert fetched(f"{scheme}://bucket/a.wav", replace(LIMITS, url_schemes=[scheme])) == BODY

    assert sizes == [size]


@pytest.mark.parametrize(("status", "type"), [(404, "file_not_found"), (403, "no_permission"), (401, "no_permission")])
def test_what_a_storage_says_by_http_is_understood(monkeypatch: pytest.MonkeyPatch, status: int, type: str) -> None:
    class HubError(Exception):
        response = SimpleNamespace(status_code=status)

    def refuse(*_: object, **__: object) -> None:
        raise HubError("Entry Not Found")

    monkeypatch.setattr(fsspec.implementations.memory.MemoryFileSystem, "_open", refuse)
    with pytest.raises(TranscriptionError, match=f"^{type}: memory://bucket/a.wav"):
        fetched("memory://bucket/a.wav")
