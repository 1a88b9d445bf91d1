"""A broker behind a name that moves: old connections stay open, new ones lead to the new primary."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit

from redis import Redis

from fleet import Fleet
from workers.redis_client import connect


class MovingBroker:
    """Two Valkeys of one password, and an address that leads to the first until ``move``. A context manager."""

    def __init__(self, folder: Path) -> None:
        self._first, self._second = Fleet(folder / "first"), Fleet(folder / "second")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> MovingBroker:
        with contextlib.ExitStack() as stack:
            stack.callback(self._close)
            for fleet in (self._first, self._second):
                stack.enter_context(fleet)
            self._second.redis.config_set("requirepass", str(urlsplit(self._first.url).password))
            self._target = self._first
            threading.Thread(target=self._accept, daemon=True).start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        return self._first.url.replace(f":{urlsplit(self._first.url).port}/", f":{self._listener.getsockname()[1]}/")

    @property
    def redis(self) -> Redis:
        return connect(self.url)

    def move(self) -> None:
        """The second is the primary from now on, and the first its replica, to which old connections still lead."""
        self._target = self._second
        self._first.redis.replicaof("127.0.0.1", urlsplit(self._second.url).port)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", urlsplit(self._target.url).port or 0))
                self._sockets += [near, far]
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=_pump, args=(source, target), daemon=True).start()

    def _close(self) -> None:
        self._listener.close()
        for one in self._sockets:
            one.close()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)
