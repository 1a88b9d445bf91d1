"""Names below ``.example`` that resolve to what a test says; all others, which other threads ask for, as ever."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest


def resolve_examples(monkeypatch: pytest.MonkeyPatch, addresses: Callable[[str], list[str]]) -> None:
    """Let the names resolve to ``addresses(name)``, asked anew each time."""
    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *more: Any, **named: Any) -> list[Any]:
        if not str(host).endswith(".example"):
            return real(host, port, *more, **named)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses(host)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
