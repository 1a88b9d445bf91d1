"""Where vLLM makes its sockets while it loads, and what is left of them."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from workers.socket_names import VARIABLE, short_lived_sockets


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Not pytest's own: its path is too long for a socket."""
    monkeypatch.delenv(VARIABLE, raising=False)
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def test_connected_sockets_outlive_their_names(temporary: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as client:
        with short_lived_sockets():
            address = f"{os.environ[VARIABLE]}/{uuid4()}"
            listening.bind(address)
            listening.listen()
            client.connect(address)
            server, _ = listening.accept()
        assert list(temporary.iterdir()) == []
        assert VARIABLE not in os.environ
        with server:
            client.sendall(b"still here")
            assert server.recv(16) == b"still here"


def test_names_go_also_when_loading_fails(temporary: Path) -> None:
    def load() -> None:
        with short_lived_sockets():
            Path(os.environ[VARIABLE], str(uuid4())).touch()
            raise RuntimeError("no such model")

    with pytest.raises(RuntimeError, match="no such model"):
        load()
    assert list(temporary.iterdir()) == []
    assert VARIABLE not in os.environ


def test_the_users_own_folder_stays_as_it_is(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "/run/mine")
    with short_lived_sockets():
        assert os.environ[VARIABLE] == "/run/mine"
    assert os.environ[VARIABLE] == "/run/mine"


@pytest.mark.parametrize("length", [30, 100])
def test_a_path_that_no_socket_may_have_is_not_taken(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """As batch systems and CI give: no engine could load."""
    deep = temporary / ("x" * length)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with short_lived_sockets(), socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{os.environ[VARIABLE]}/{uuid4()}")
        made = Path(os.environ[VARIABLE])
        assert made.is_relative_to(deep) == (length == 30)
    assert not made.exists()
    assert list(deep.iterdir()) == []


def test_where_nobody_may_write_to_tmp_vllms_own_paths_are_taken(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = temporary / ("x" * 45)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    monkeypatch.setattr(os, "access", lambda *_: False)
    with short_lived_sockets():
        assert VARIABLE not in os.environ
    assert list(deep.iterdir()) == []
