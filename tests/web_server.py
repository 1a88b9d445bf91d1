"""A web server for tests: it answers as the test says, and remembers who asked for what."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

#: Answers one request.
Route = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class WebServer:
    """``url``: where it listens. ``asked``: path and Host header of each request, in order."""

    port: int
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    #: Set at the end: answers that never end stop then.
    stopping: threading.Event = field(default_factory=threading.Event)
    scheme: str = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"


@contextmanager
def serving(
    routes: Mapping[str, Callable[[WebServer], Route]], tls: ssl.SSLContext | None = None, address: str = "127.0.0.1"
) -> Iterator[WebServer]:
    """A server while the context lasts; a path without a route of its own gets that of ``*``, or 404."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.asked.append((self.path, self.headers["Host"]))
            route = routes.get(self.path) or routes.get("*")
            if route is None:
                self.send_error(404)
                return
            try:
                route(made)(self)
            except OSError:  # the client has heard enough
                self.close_connection = True

        do_CONNECT = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer((address, 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    made = WebServer(server.server_port, scheme="http" if tls is None else "https")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield made
    finally:
        made.stopping.set()
        server.shutdown()
        server.server_close()
        thread.join()


def content(body: bytes) -> Callable[[WebServer], Route]:
    """200 with ``body``."""

    def route(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    return lambda _: route


def redirect(location: str | Callable[[WebServer], str], status: int = 302) -> Callable[[WebServer], Route]:
    """A redirect to ``location``, which may depend on the server."""

    def of(server: WebServer) -> Route:
        def route(request: BaseHTTPRequestHandler) -> None:
            request.send_response(status)
            request.send_header("Location", location if isinstance(location, str) else location(server))
            request.end_headers()

        return route

    return of


def endless(piece: bytes, pause_seconds: float) -> Callable[[WebServer], Route]:
    """200 without a length, and ``piece`` again and again until the client leaves."""

    def of(server: WebServer) -> Route:
        def route(request: BaseHTTPRequestHandler) -> None:
            request.send_response(200)
            request.end_headers()
            while not server.stopping.wait(pause_seconds):
                request.wfile.write(piece)

        return route

    return of
