"""Downloads over http and https.

Every hop of a redirect is checked like the first URL (`workers.urls`), and connects to an address that was checked
(`workers.addresses`).

Behind a proxy of the environment (``HTTP_PROXY``, ``HTTPS_PROXY``, ``NO_PROXY``) names are resolved elsewhere, so their
addresses cannot be checked: a proxy is used only where private addresses are allowed anyway.
"""

from __future__ import annotations

import base64
import http.client
import re
import socket
import ssl
import urllib.request
import zlib
from collections.abc import Callable
from contextlib import closing
from functools import cache
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

from workers.addresses import PrivateAddressError, connect
from workers.audio import AudioLimits
from workers.download import Download, check_size, one_line
from workers.errors import TranscriptionError, TransientError
from workers.source_errors import printable, shown
from workers.urls import check_url

_PORTS = {"http": 80, "https": 443}
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
#: Answers that ask for another try: accepted but not there yet, request timeout, too early, too many requests.
_RETRY = frozenset({202, 408, 425, 429})
#: Stays as it is in a path or query; spaces and non-ASCII letters, which people paste, are escaped.
_SAFE = "%/:=&?~#+!$,;'@()*[]"
#: Content codings that nobody undoes here, and those that zlib does. People write other words there, which are none.
_OTHERS = frozenset({"br", "zstd", "compress", "x-compress"})
_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32
_BEGIN_BYTES = 2**16
_ZIPPED = frozenset({"gzip", "x-gzip", "deflate"})
_HEADERS = {"Accept-Encoding": "identity", "Connection": "close", "User-Agent": "whisper-fleet"}


def fetch(download: Download) -> None:
    """Fetch an http or https URL.

    Raises TranscriptionError ``fetch_failed`` (the address is wrong), ``fetch_timeout``, ``not_allowed``,
    ``unsupported_source`` (a redirect leads elsewhere), ``too_large``; TransientError ``fetch_failed`` (the network
    is).
    """
    name = shown(download.source)
    try:
        _fetch(download)
    except PrivateAddressError:
        message = f"{name}: leads to an address that is not public; WHISPER_ALLOW_PRIVATE_ADDRESSES=true allows those"
        raise TranscriptionError("not_allowed", message) from None
    except ssl.SSLCertVerificationError as error:
        raise TranscriptionError("fetch_failed", f"{name}: {one_line(error)}") from None
    except (ValueError, http.client.InvalidURL) as error:
        raise TranscriptionError("fetch_failed", f"{name}: no valid URL ({one_line(error)})") from None
    except (OSError, http.client.HTTPException) as error:
        raise TransientError("fetch_failed", f"{name}: {one_line(error)}") from None


def _fetch(download: Download) -> None:
    url, limit = download.source, download.limits.max_redirects
    known: dict[tuple[str, str | None, int | None], str] = {}
    for _ in range(limit + 1):
        parts = check_url(url, download.limits)
        place = (parts.scheme, parts.hostname, parts.port)
        if parts.username is not None:
            known[place] = _basic(parts)
        if parts.scheme not in _PORTS:  # a bucket that is allowed, but not by way of a redirect
            message = f"{shown(download.source)}: redirects to a {parts.scheme}:// URL"
            raise TranscriptionError("unsupported_source", message)
        with closing(_connection(parts, download)) as connection:
            # To where a URL named them, also when it redirects to itself without; to nobody else.
            with _ask(connection, parts, known.get(place)) as answer:
                if answer.status not in _REDIRECTS:
                    _save(answer, download)
                    return
                location = answer.getheader("Location")
            if not location:
                message = f"{shown(download.source)}: HTTP {answer.status} without a new address"
                raise TranscriptionError("fetch_failed", message)
            url = urljoin(url, location.encode("latin-1").decode("utf-8", "replace"))
        download.progress()
        download.check_time(0)
    message = f"{shown(download.source)}: more than {limit} redirects (WHISPER_MAX_REDIRECTS)"
    raise TranscriptionError("fetch_failed", message)


class _Response(http.client.HTTPResponse):
    """Passes over all that comes before the final answer (RFC 9110, 15.2), not only 100 as Python 3.11 does."""

    def _read_status(self) -> tuple[str, int, str]:
        version, status, reason = super()._read_status()  # type: ignore[misc]
        if http.HTTPStatus.OK > status != http.HTTPStatus.SWITCHING_PROTOCOLS:
            status = int(http.HTTPStatus.CONTINUE)
        return version, status, reason


def _ask(
    connection: http.client.HTTPConnection, parts: SplitResult, authorization: str | None
) -> http.client.HTTPResponse:
    path = quote(parts.path or "/", safe=_SAFE) + (f"?{quote(parts.query, safe=_SAFE)}" if parts.query else "")
    headers = dict(_HEADERS)
    if authorization is not None:
        headers["Authorization"] = authorization
    proxy = _proxy(parts)
    if proxy is not None and parts.scheme == "http":
        host, colon, port = parts.netloc.rpartition("@")[2].partition(":")
        # An IPv6 address, which has colons in brackets, stays as it is.
        path = f"http://{host.encode('idna').decode()}{colon}{port}{path}"
        headers.update(_authorization(proxy))
    connection.response_class = _Response
    connection.request("GET", path, headers=headers)
    return connection.getresponse()


def _save(answer: http.client.HTTPResponse, download: Download) -> None:
    name = shown(download.source)
    if not 200 <= answer.status < 300 or answer.status in _RETRY:
        kind = TransientError if answer.status >= 500 or answer.status in _RETRY else TranscriptionError
        raise kind("fetch_failed", f"{name}: HTTP {answer.status} {printable(answer.reason)[:100]}")
    if answer.status == http.HTTPStatus.PARTIAL_CONTENT and _is_part(answer.getheader("Content-Range", "")):
        raise TransientError("fetch_failed", f"{name}: a part came, and all was asked for (HTTP 206)")
    download.progress()
    announced = answer.length or 0
    if announced:
        check_size(announced, download.source, download.limits)
    encoding = answer.getheader("Content-Encoding", "").strip().lower()
    if encoding in _OTHERS:
        raise TranscriptionError("fetch_failed", f"{name}: comes encoded as {encoding}, which is not supported")
    copied = download.copy(_unzipped(answer.read1) if encoding in _ZIPPED else answer.read1)
    if announced:
        copied = announced - (answer.length or 0)
    if copied < announced:
        raise TransientError("fetch_failed", f"{name}: the connection ended after {copied} of {announced} bytes")


def _is_part(content_range: str) -> bool:
    """Whether what comes is known not to be all there is (RFC 9110, 14.4)."""
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", content_range.strip(), re.IGNORECASE)
    return found is not None and (int(found[1]) > 0 or found[3] not in ("*", str(int(found[2]) + 1)))


def _unzipped(read: Callable[[int], bytes]) -> Callable[[int], bytes]:
    """What ``read`` gives, unzipped, at most as many bytes at once as are asked for. Raises OSError for damage.

    Some storage says so of what is not: then it is left as it is.
    """
    begin = b""
    while len(begin) < 2 and (more := read(_BEGIN_BYTES)):
        begin += more
    ahead = [begin]

    def as_it_is(most: int) -> bytes:
        return ahead.pop() if ahead else read(most)

    is_zlib = begin[:1] == b"\x78" and int.from_bytes(begin[:2], "big") % 31 == 0  # RFC 1950, 2.2
    if not is_zlib and not begin.startswith(b"\x1f\x8b"):
        return as_it_is
    unzip = zlib.decompressobj(_GZIP_OR_ZLIB)

    def some(most: int) -> bytes:
        nonlocal unzip
        while True:
            zipped = (unzip.unused_data if unzip.eof else unzip.unconsumed_tail) or as_it_is(most)
            if unzip.eof and zipped:  # gzip files may lie one behind the other
                unzip = zlib.decompressobj(_GZIP_OR_ZLIB)
            if not zipped:
                if unzip.eof:
                    return b""
                raise OSError("its gzip encoding ends early")
            try:
                plain = unzip.decompress(zipped, most)
            except zlib.error as error:
                raise OSError(f"its gzip encoding is damaged ({error})") from None
            if plain:
                return plain

    return some


def _connection(parts: SplitResult, download: Download) -> http.client.HTTPConnection:
    """A connection to the URL's host, open; through the environment's proxy where there is one."""
    host, port = str(parts.hostname), parts.port or _PORTS[parts.scheme]
    proxy = _proxy(parts)
    if proxy is not None:
        return _proxied(host, port, parts, proxy, download)
    limits, seconds = download.limits, download.wait_seconds
    made: http.client.HTTPConnection
    plain = connect(host, port, seconds, allow_private=limits.allow_private_addresses, progress=download.progress)
    if parts.scheme == "http":
        made, made_socket = http.client.HTTPConnection(host, port, timeout=seconds), plain
    else:
        made = http.client.HTTPSConnection(host, port, timeout=seconds, context=_tls())
        made_socket = _encrypted(plain, host)
    made.sock = made_socket
    made.auto_open = 0  # it must not connect again, to an address that nobody checked
    return made


def _encrypted(plain: socket.socket, host: str) -> ssl.SSLSocket:
    try:
        return _tls().wrap_socket(plain, server_hostname=host)
    except BaseException:
        plain.close()
        raise


@cache
def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _proxy(parts: SplitResult) -> SplitResult | None:
    """The proxy that the environment names for a URL."""
    proxies = urllib.request.getproxies()
    found = proxies.get(parts.scheme) or proxies.get("all")
    if not found or urllib.request.proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    return urlsplit(found if "://" in found else f"http://{found}")


def _proxied(
    host: str, port: int, parts: SplitResult, proxy: SplitResult, download: Download
) -> http.client.HTTPConnection:
    _check_proxy(proxy, download.source, download.limits)
    at, at_port = str(proxy.hostname), proxy.port or 80
    if parts.scheme == "http":
        return http.client.HTTPConnection(at, at_port, timeout=download.wait_seconds)
    made = http.client.HTTPSConnection(at, at_port, timeout=download.wait_seconds, context=_tls())
    made.set_tunnel(host, port, headers=_authorization(proxy))
    return made


def _check_proxy(proxy: SplitResult, source: str, limits: AudioLimits) -> None:
    name = shown(source)
    if not limits.allow_private_addresses:
        message = (
            f"{name}: the environment names a proxy, behind which addresses cannot be checked; except the host "
            "(NO_PROXY) or allow every address (WHISPER_ALLOW_PRIVATE_ADDRESSES=true)"
        )
        raise TranscriptionError("not_allowed", message)
    if proxy.scheme != "http" or not proxy.hostname:
        message = f"{name}: the environment's proxy is no http:// proxy, others are not supported"
        raise TranscriptionError("unsupported_source", message)


def _authorization(proxy: SplitResult) -> dict[str, str]:
    if not proxy.username:
        return {}
    return {"Proxy-Authorization": _basic(proxy)}


def _basic(parts: SplitResult) -> str:
    """The user and password that a URL names, as a header says them."""
    user = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return "Basic " + base64.b64encode(user.encode()).decode()
