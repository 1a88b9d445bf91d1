"""Which URLs a worker fetches: schemes and hosts. Asked for a record's URL, and again for every redirect."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import SplitResult, urlsplit

from workers.audio import AudioLimits
from workers.errors import TranscriptionError
from workers.source_errors import SCHEME, shown

#: What `workers.http_source` fetches.
WEB_SCHEMES = ("http", "https")


def is_web(source: str) -> bool:
    """Whether ``source`` is an http or https URL: each fetch may give something else (advertisements), or fail."""
    scheme = SCHEME.match(source)
    return scheme is not None and scheme.group(1).lower() in WEB_SCHEMES


def check_url(url: str, limits: AudioLimits) -> SplitResult:
    """The parts of ``url``, which may be fetched as far as its scheme and host tell (addresses: `workers.addresses`).

    Raises TranscriptionError ``unsupported_source`` (the scheme), ``not_allowed`` (the host), ``fetch_failed`` (it is
    no URL).
    """
    try:
        parts = urlsplit(url)
        # A bucket is no host: its name may hold colons.
        host = (parts.hostname or "") if parts.scheme in WEB_SCHEMES else parts.netloc.rpartition("@")[2]
    except ValueError as error:
        raise TranscriptionError("fetch_failed", f"{shown(url)}: no valid URL ({error})") from None
    if parts.scheme not in limits.url_schemes:
        allowed = ", ".join(limits.url_schemes) or "none"
        message = f"{shown(url)}: {parts.scheme}:// URLs are not fetched here; allowed: {allowed} (WHISPER_URL_SCHEMES)"
        raise TranscriptionError("unsupported_source", message)
    if not host:
        raise TranscriptionError("fetch_failed", f"{shown(url)}: no valid URL (it names no host)")
    if limits.url_hosts is not None and not _is_listed(host, limits.url_hosts):
        message = f"{shown(url)}: this worker does not fetch from {host!r} (WHISPER_URL_HOSTS)"
        raise TranscriptionError("not_allowed", message)
    return parts


def _is_listed(host: str, hosts: Sequence[str]) -> bool:
    """``*.example.org`` stands for every name below ``example.org``, not for itself."""
    host = host.lower().rstrip(".")
    wanted = [entry.lower().rstrip(".") for entry in hosts]
    return any(host == one or (one.startswith("*.") and host.endswith(one[1:])) for one in wanted)
