"""Downloads over http and https: redirects, addresses, limits and proxies, from servers of this machine."""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import socket
import ssl
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import soundfile
import trustme

from example_names import resolve_examples
from web_server import Route, WebServer, content, endless, redirect, serving
from workers import addresses, http_source
from workers.addresses import connect
from workers.audio import AudioLimits, DecodePool
from workers.download import Download
from workers.errors import TranscriptionError, TransientError

BODY = b"sound " * 50_000
PUBLIC = "127.0.0.1"
OPEN = AudioLimits(allow_private_addresses=True)
GUARDED = AudioLimits()


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def one_is_public(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's first loopback address counts as public, the others do not."""
    monkeypatch.setattr("workers.addresses.is_public", lambda address: address == PUBLIC)


@pytest.fixture
def web() -> Iterator[WebServer]:
    """A server on every loopback address."""
    routes = {
        "/a.wav": content(BODY),
        "/moved": redirect("/a.wav"),
        "/moved/for/ever": redirect("/%C3%BC?x=a b", 308),
        "/%C3%BC?x=a%20b": content(BODY),
        "/circle": redirect("/circle"),
        "/secret.wav": locked(b"Basic " + base64.b64encode(b"ada:p@ss"), BODY),
        "/moved/secret": redirect("/secret.wav"),
        "/moved/absolute": redirect(lambda server: f"http://127.0.0.1:{server.port}/secret.wav"),
        "/moved/elsewhere": redirect(lambda server: f"http://127.0.0.2:{server.port}/secret.wav"),
        "/private": redirect(lambda server: f"http://127.0.0.2:{server.port}/a.wav"),
        "/file": redirect("file:///etc/hostname"),
        "/bucket": redirect("s3://bucket/a.wav"),
        "/ftp": redirect("ftp://127.0.0.1/a.wav"),
        "/nowhere": redirect(""),
        "/hop/3": redirect("/hop/2"),
        "/hop/2": redirect("/hop/1", 303),
        "/hop/1": redirect("/a.wav", 307),
        "/drip": endless(b"x" * 2**15, 0.01),
        "/long": announced(10**12),
        "/odd": announced(-5),
        "/garbage": raw(b"SSH-2.0-OpenSSH\r\n\r\n"),
        "/zipped": encoded("gzip", gzip.compress(BODY[:100]) + gzip.compress(BODY[100:])),
        "/deflated": encoded("Deflate", zlib.compress(BODY)),
        "/zipped/cut": encoded("gzip", gzip.compress(BODY)[:-20]),
        "/zipped/bad": encoded("gzip", b"\x1f\x8b\x08" + BODY),
        "/zipped/not": encoded("gzip", BODY),
        "/zipped/none": encoded("deflate", b""),
        "/base64": encoded("base64", BODY),
        "/zipped/bomb": encoded("gzip", gzip.compress(bytes(10**7))),
        "/brotli": encoded("br", BODY),
        "/pending": raw(b"HTTP/1.1 202 Accepted\r\nContent-Length: 7\r\n\r\npending"),
        "/hints": raw(
            b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"
            b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody"
        ),
        "/status": raw(b"HTTP/1.1 418 \x1b[31mred\r\n\r\n"),
    }
    with serving(routes, address="0.0.0.0") as server:
        yield server


def announced(length: int) -> Callable[[WebServer], Route]:
    def route(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(length))
        request.end_headers()
        request.wfile.write(BODY)

    return lambda _: route


def encoded(coding: str, body: bytes) -> Callable[[WebServer], Route]:
    def route(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Encoding", coding)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    return lambda _: route


def locked(wanted: bytes, body: bytes) -> Callable[[WebServer], Route]:
    """``body`` for who says the right word, 401 for others."""

    def of(server: WebServer) -> Route:
        def route(request: BaseHTTPRequestHandler) -> None:
            if request.headers["Authorization"] != wanted.decode():
                request.send_error(401)
                return
            content(body)(server)(request)

        return route

    return of


def raw(answer: bytes) -> Callable[[WebServer], Route]:
    def route(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write(answer)
        request.close_connection = True

    return lambda _: route


def fetched(url: str, limits: AudioLimits = OPEN) -> bytes:
    file = io.BytesIO()
    http_source.fetch(Download(url, file, limits, lambda: None))
    return file.getvalue()


def error_of(url: str, limits: AudioLimits = OPEN) -> TranscriptionError:
    with pytest.raises(TranscriptionError) as caught:
        fetched(url, limits)
    assert caught.value.message.isprintable()
    return caught.value


def permanent(url: str, type_: str, words: str, limits: AudioLimits = OPEN) -> None:
    error = error_of(url, limits)
    assert (error.type, isinstance(error, TransientError)) == (type_, False)
    assert words in error.message


@pytest.mark.parametrize("path", ["/a.wav", "/moved", "/moved/for/ever", "/ü?x=a b", "/hop/3"])
def test_content_comes_whole(web: WebServer, path: str) -> None:
    assert fetched(web.url + path) == BODY


def test_host_is_named_as_in_the_url(web: WebServer) -> None:
    fetched(f"http://LOCALHOST:{web.port}/a.wav")
    assert web.asked == [("/a.wav", f"localhost:{web.port}")]


def test_a_user_and_password_are_sent_to_their_host_alone(web: WebServer) -> None:
    name = f"http://ada:p%40ss@127.0.0.1:{web.port}"
    assert fetched(f"{name}/secret.wav") == BODY
    # A redirect within the host gets them too, one to another host does not
    assert fetched(f"{name}/moved/secret") == BODY
    assert fetched(f"{name}/moved/absolute") == BODY
    with pytest.raises(TranscriptionError, match="HTTP 401"):
        fetched(f"{name}/moved/elsewhere")
    with pytest.raises(TranscriptionError, match="HTTP 401"):
        fetched(f"http://127.0.0.1:{web.port}/secret.wav")


def test_silent_addresses_leave_time_for_one_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """IPv6 that leads nowhere: each of a host's addresses there is silent."""
    monkeypatch.setattr(addresses, "NEXT_SECONDS", 0.2)
    told: list[None] = []
    with contextlib.ExitStack() as stack:
        good = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        silent = []
        for _ in range(3):
            full = stack.enter_context(socket.socket())
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            for _ in range(3):  # its queue is full
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    waiting.connect(full.getsockname())
            silent.append(full.getsockname())
        named = [*silent, good.getsockname()]
        monkeypatch.setattr(
            socket, "getaddrinfo", lambda *_, **__: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", one) for one in named]
        )

        def asked() -> int:
            """How many addresses until one answers."""
            told.clear()
            made = connect("host", 80, 60.0, allow_private=True, progress=lambda: told.append(None))
            assert made.getpeername() == good.getsockname()
            # What comes over it may take its time, whichever address it was
            assert made.gettimeout() == 60.0
            made.close()
            return len(told)

        assert asked() == 4
        named.reverse()
        assert asked() == 1
        # and a host of hundreds is not asked at all of them
        named[:] = [*(silent * 100), good.getsockname()]
        assert asked() == addresses.MOST_ADDRESSES


def test_a_full_disk_is_a_reason_to_try_again(web: WebServer) -> None:
    with Path("/dev/full").open("wb", buffering=0) as full, pytest.raises(TransientError, match="No space left"):
        http_source.fetch(Download(f"http://127.0.0.1:{web.port}/a.wav", full, OPEN, lambda: None))


def test_redirects_are_counted(web: WebServer) -> None:
    assert fetched(web.url + "/hop/3", replace(OPEN, max_redirects=3)) == BODY
    permanent(web.url + "/hop/3", "fetch_failed", "2 redirects (WHISPER_MAX_REDIRECTS)", replace(OPEN, max_redirects=2))
    permanent(web.url + "/moved", "fetch_failed", "0 redirects", replace(OPEN, max_redirects=0))
    web.asked.clear()
    permanent(web.url + "/circle", "fetch_failed", "more than 5 redirects")
    assert len(web.asked) == 6


@pytest.mark.parametrize(
    ("path", "type_", "words"),
    [
        ("/file", "unsupported_source", "file:// URLs are not fetched"),
        ("/ftp", "unsupported_source", "ftp:// URLs are not fetched"),
        ("/bucket", "unsupported_source", "redirects to a s3:// URL"),
        ("/nowhere", "fetch_failed", "without a new address"),
    ],
)
def test_redirects_to_elsewhere_are_refused(web: WebServer, path: str, type_: str, words: str) -> None:
    permanent(web.url + path, type_, words)


def test_host_list_holds_for_redirects(web: WebServer) -> None:
    listed = replace(OPEN, url_hosts=["127.0.0.1"])
    assert fetched(web.url + "/moved", listed) == BODY
    permanent(web.url + "/private", "not_allowed", "'127.0.0.2' (WHISPER_URL_HOSTS)", listed)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "2130706433"])
def test_private_addresses_are_refused_unless_allowed(web: WebServer, host: str) -> None:
    permanent(f"http://{host}:{web.port}/a.wav", "not_allowed", "WHISPER_ALLOW_PRIVATE_ADDRESSES=true", GUARDED)
    assert web.asked == []


@pytest.mark.usefixtures("one_is_public")
def test_redirect_to_a_private_address_is_refused(web: WebServer) -> None:
    assert fetched(web.url + "/moved", GUARDED) == BODY
    web.asked.clear()
    permanent(web.url + "/private", "not_allowed", "not public", GUARDED)
    assert [path for path, _ in web.asked] == ["/private"]


@pytest.mark.usefixtures("one_is_public")
def test_name_that_changes_its_address_leads_nowhere_else(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a name that is public when it is checked, and private from then on
    given = iter([PUBLIC])

    resolve_examples(monkeypatch, lambda name: [next(given, "127.0.0.2")])
    # Then the checked address is the one that answers, and the next look-up is refused
    assert fetched(f"http://rebind.example:{web.port}/a.wav", GUARDED) == BODY
    permanent(f"http://rebind.example:{web.port}/a.wav", "not_allowed", "rebind.example", GUARDED)


def test_endless_streams_end(web: WebServer) -> None:
    permanent(web.url + "/drip", "fetch_timeout", "_DOWNLOAD_TIMEOUT_", replace(OPEN, download_timeout_seconds=0.3))
    permanent(web.url + "/drip", "too_large", "WHISPER_MAX_AUDIO_BYTES", replace(OPEN, max_audio_bytes=10**6))
    permanent(web.url + "/long", "too_large", "1000000000000 bytes")


def test_what_is_stored_zipped_comes_unzipped(web: WebServer) -> None:
    """As browsers show it: some storage gives it so whatever is asked for."""
    assert fetched(web.url + "/zipped") == BODY
    assert fetched(web.url + "/deflated") == BODY
    for path in ("/zipped/not", "/base64"):
        assert fetched(web.url + path) == BODY, "said in error, by whoever stored it"
    assert fetched(web.url + "/zipped/none") == b""
    for path, words in (("/zipped/cut", "ends early"), ("/zipped/bad", "damaged")):
        error = error_of(web.url + path)
        assert (error.type, isinstance(error, TransientError), words in error.message) == ("fetch_failed", True, True)
    permanent(web.url + "/zipped/bomb", "too_large", "WHISPER_MAX_AUDIO_BYTES", replace(OPEN, max_audio_bytes=10**6))
    permanent(web.url + "/brotli", "fetch_failed", "comes encoded as br")


def test_what_is_not_there_yet_is_asked_for_again(web: WebServer) -> None:
    error = error_of(web.url + "/pending")
    assert (error.type, isinstance(error, TransientError)) == ("fetch_failed", True)


def test_odd_answers(web: WebServer) -> None:
    assert fetched(web.url + "/odd") == BODY
    assert fetched(web.url + "/hints") == b"body"
    assert error_of(web.url + "/garbage").type == "fetch_failed"
    permanent(web.url + "/status", "fetch_failed", "HTTP 418 \ufffd[31mred")


@pytest.mark.parametrize(
    "url", ["http://a.example:port/x", "http://a.example:99999/x", f"http://{'x' * 70}.example/", "http:///x"]
)
def test_what_is_no_url(url: str) -> None:
    permanent(url, "fetch_failed", "no valid URL")


def test_https_needs_a_certificate_that_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    http_source._tls.cache_clear()
    with serving({"*": content(BODY)}, context) as server:
        url = f"https://localhost:{server.port}/a.wav"
        permanent(url, "fetch_failed", "CERTIFICATE_VERIFY_FAILED")
        permanent(url, "not_allowed", "not public", GUARDED)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
        http_source._tls.cache_clear()
        assert fetched(url) == BODY
        permanent(f"https://127.0.0.1:{server.port}/a.wav", "fetch_failed", "IP address mismatch")
    http_source._tls.cache_clear()


def test_proxy_is_used_only_where_addresses_need_no_check(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "http://somewhere.example/ü.wav"
    with serving({"*": content(BODY)}) as proxy:
        monkeypatch.setenv("http_proxy", f"http://user:p%40ss@127.0.0.1:{proxy.port}")
        permanent(url, "not_allowed", "NO_PROXY", GUARDED)
        assert proxy.asked == []
        assert fetched(url) == BODY
        assert proxy.asked == [("http://somewhere.example/%C3%BC.wav", "somewhere.example")]
        for host, asked in (("müller.example", "xn--mller-kva.example"), ("пример.рф", "xn--e1afmkfd.xn--p1ai")):
            assert fetched(f"http://{host}:8080/a.wav") == BODY
            assert proxy.asked.pop() == (f"http://{asked}:8080/a.wav", f"{asked}:8080")
        assert fetched("http://[2001:db8::1]:80/a.wav") == BODY
        assert proxy.asked.pop() == ("http://[2001:db8::1]:80/a.wav", "[2001:db8::1]:80")
        # Not for a host that is excepted.
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert fetched(web.url + "/a.wav") == BODY
        assert len(proxy.asked) == 1
        monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:1080")
        permanent(url, "unsupported_source", "no http:// proxy")


def test_proxy_is_asked_for_a_tunnel(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving({}) as proxy:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
        error = error_of("https://somewhere.example/a.wav")
        assert (error.type, isinstance(error, TransientError)) == ("fetch_failed", True)
        assert [path for path, _ in proxy.asked] == ["somewhere.example:443"]


def test_decode_process_fetches_under_the_same_limits(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", [0.1] * 16_000, 16_000)
    with serving({"*": content((tmp_path / "a.wav").read_bytes())}) as server:
        for limits, allowed in ((GUARDED, False), (OPEN, True)):
            pool = DecodePool(1, limits)
            try:
                if allowed:
                    with pool.open(server.url + "/a.wav") as stream:
                        assert sum(block.samples.size for block in stream) == 16_000
                else:
                    with pytest.raises(TranscriptionError, match="not_allowed"), pool.open(server.url) as stream:
                        list(stream)
            finally:
                pool.close()
