"""Which URLs are fetched."""

from __future__ import annotations

import pytest

from workers.audio import AudioLimits
from workers.errors import TranscriptionError, TransientError
from workers.urls import check_url


@pytest.mark.parametrize(
    "url", ["http://a.example/x.wav", "HTTPS://a.example", "s3://bucket/x.wav", "s3://arn:aws:s3:eu:1:accesspoint/x/y"]
)
def test_usual_urls_are_fetched(url: str) -> None:
    check_url(url, AudioLimits())


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://a.example/x.wav", "memory://x/y", "local:///etc/passwd", "file:///etc/passwd", "github://a:b@c/d"),
        *("zip://x.wav", "ssh://host/x", "sftp://host/x", "simplecache://x", "unknown://x"),
    ],
)
def test_others_are_refused_with_those_that_are(url: str) -> None:
    with pytest.raises(TranscriptionError, match=r"^unsupported_source: .*allowed: http, https, s3.*URL_SCHEMES") as at:
        check_url(url, AudioLimits())
    assert not isinstance(at.value, TransientError)


def test_schemes_are_as_set() -> None:
    check_url("oss://bucket/x", AudioLimits(url_schemes=["oss"]))
    with pytest.raises(TranscriptionError, match="http:// URLs are not fetched here; allowed: oss"):
        check_url("http://a.example/x", AudioLimits(url_schemes=["oss"]))


@pytest.mark.parametrize("url", ["http:///x.wav", "http://[half/x.wav", "s3:///key"])
def test_url_without_a_host_is_none(url: str) -> None:
    with pytest.raises(TranscriptionError, match=r"^fetch_failed: .*no valid URL"):
        check_url(url, AudioLimits())


HOSTS = AudioLimits(url_hosts=["media.example.org", "*.Example.com", "bucket"])


@pytest.mark.parametrize(
    "url",
    [
        *("https://media.example.org/x", "https://MEDIA.example.org.:8443/x", "https://user:pw@media.example.org/x"),
        *("http://a.example.com/x", "http://b.a.example.com/x", "s3://bucket/x"),
    ],
)
def test_listed_hosts(url: str) -> None:
    check_url(url, HOSTS)


@pytest.mark.parametrize(
    "url",
    [
        *("https://example.org/x", "https://media.example.org.evil.net/x", "https://media.example.org@evil.net/x"),
        *("http://example.com/x", "http://badexample.com/x", "http://127.0.0.1/x", "s3://other/bucket"),
    ],
)
def test_hosts_that_are_not_listed(url: str) -> None:
    with pytest.raises(TranscriptionError, match=r"^not_allowed: .*WHISPER_URL_HOSTS"):
        check_url(url, HOSTS)
