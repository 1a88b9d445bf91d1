"""Downloads through fsspec: its memory file system stands for the buckets."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import fsspec
import fsspec.implementations.memory
import pytest

from workers import storage_source
from workers.audio import AudioLimits
from workers.download import Download
from workers.errors import TranscriptionError, TransientError

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
    listed: dict[str, int] = {}  # by name, of all in the folder: what drops one path alone leaves them
    memory = type(fsspec.filesystem("memory"))
    plain = memory._open

    def open_as_listed(self: object, path: str, *arguments: object, **named: object) -> io.BytesIO:
        if path not in listed:
            listed[path] = len(plain(self, path).getvalue())
        return io.BytesIO(plain(self, path).getvalue()[: listed[path]])

    monkeypatch.setattr(memory, "_open", open_as_listed)
    monkeypatch.setattr(memory, "invalidate_cache", lambda self, path=None: path or listed.clear())
    assert fetched("memory://bucket/a.wav") == BODY

    # When the file has grown
    file = plain(fsspec.filesystem("memory"), "/bucket/a.wav")
    file.seek(0, io.SEEK_END)
    file.write(BODY)

    # Then it comes as it is now
    assert fetched("memory://bucket/a.wav") == BODY + BODY


class Bucket(fsspec.implementations.memory.MemoryFileSystem):  # type: ignore[misc]
    """The memory file system in the place of a storage's own."""

    sizes: ClassVar[list[object]] = []
    refusal: ClassVar[Exception | None] = None

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return f"/{path.partition('://')[2] or path.lstrip('/')}"

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **options: object) -> io.BytesIO:
        if self.refusal is not None:
            raise self.refusal
        self.sizes.append(block_size)
        return super()._open(path, mode, **options)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> type[Bucket]:
    for scheme in ("s3", "hf", "gs"):
        monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, scheme, Bucket)
    monkeypatch.setattr(Bucket, "sizes", [])
    return Bucket


@pytest.mark.parametrize(("scheme", "size"), [("s3", storage_source.BLOCK_BYTES), ("hf", 0), ("gs", None)])
def test_each_storage_is_asked_for_as_much_as_suits_it(bucket: type[Bucket], scheme: str, size: int | None) -> None:
    assert fetched(f"{scheme}://bucket/a.wav", replace(LIMITS, url_schemes=[scheme])) == BODY
    assert bucket.sizes == [size]


class HubError(Exception):
    def __init__(self, status: int) -> None:
        super().__init__("Entry Not Found")
        self.response = SimpleNamespace(status_code=status)


@pytest.mark.parametrize(
    ("error", "type"),
    [
        (HubError(404), "file_not_found"),
        (HubError(403), "no_permission"),
        (HubError(401), "no_permission"),
        (HubError(503), "fetch_failed"),
        (type("EntryNotFoundError", (FileNotFoundError,), {})("no such entry"), "file_not_found"),
    ],
)
def test_what_the_hub_says_of_a_file_is_understood(
    bucket: type[Bucket], monkeypatch: pytest.MonkeyPatch, error: Exception, type: str
) -> None:
    monkeypatch.setattr(bucket, "refusal", error)
    with pytest.raises(TranscriptionError, match=f"^{type}: hf://bucket/a.wav"):
        fetched("hf://bucket/a.wav", replace(LIMITS, url_schemes=["hf"]))


def test_what_goes_wrong_at_signing_in_may_go_well_later(bucket: type[Bucket], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "refusal", HubError(404))
    with pytest.raises(TransientError, match=r"^fetch_failed: s3://bucket/a\.wav"):
        fetched("s3://bucket/a.wav")
