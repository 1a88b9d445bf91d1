"""What a broker's URL may be, and that no message about it holds a secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.utils.url import parse_url

from workers.app import create_app
from workers.errors import SettingsError
from workers.redis_url import broker_url, check_url, client_url, tls_options, without_secrets
from workers.settings import load_settings


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Files for the certificate options; nobody reads what is in them here."""
    made = {name: tmp_path / f"{name}.pem" for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")}
    for path in made.values():
        path.touch()
    return {name: str(path) for name, path in made.items()}


def tls(**options: str) -> str:
    query = "&".join(f"{name}={quote(value)}" for name, value in options.items())
    return f"rediss://user:pw@h:6379/0?{query}"


@pytest.mark.parametrize(
    "url",
    [
        "redis://h",
        "redis://user:p%40w@h:6379/3",
        "rediss://h:6379/0",
        tls(ssl_cert_reqs="CERT_REQUIRED"),
        "unix:///run/valkey.sock?db=1",
        "redis+socket://:pw@/run/valkey.sock?virtual_host=1",
        "sentinel://:pw@a:1/0;sentinel://:pw@b:2/0?master_name=m",
    ],
)
def test_known_spellings_are_taken(url: str) -> None:
    check_url(url)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("rediscluster://h:1", "no cluster support: name a single server .* or its Sentinels"),
        ("redis+cluster://:secret@h:1", "no cluster support"),
        ("amqp://:secret@h", "must start with one of redis://"),
        ("redis://:secret@h:no-port/0", "host or port cannot be read"),
        ("redis://h:1/secret", "number of a database"),
        ("redis://:pa#secret@h:1/0", "%23"),
        ("unix:///s?db=secret", "db must be the number of a database"),
        ("redis+socket:///s?virtual_host=secret", "virtual_host must be the number of a database"),
        ("redis://:12?secret@h:1/0", "%3F"),
        ("redis://:pa;secret@h:1/0", "%3B"),
        ("redis://:secret@a:1/0;redis://:secret@b:1/0", "several servers"),
        ("redis://h:1/0?password=secret", "does not take"),
        ("redis://:secret@h:1/0?ssl_cert_reqs=required", "rediss:// and sentinel:// only"),
        ("sentinel://:secret@h:1/0?ssl_cert_reqs=maybe", "required, optional or none"),
        ("sentinel://:secret@h:1/0?master_name=m&ssl_ca_certs=/nonexistent.pem", "/nonexistent.pem: no such file"),
        ("sentinel://:secret@h:1/0;redis://:secret@b:1/0", "its own sentinel://"),
        ("rediss://:secret@h:1/0?ssl_cert_reqs=maybe", "required, optional or none"),
        ("rediss://:secret@h:1/0?ssl_check_hostname=maybe", "true or false"),
        ("rediss://:secret@h:1/0?ssl_ca_certs=/nonexistent.pem", "/nonexistent.pem: no such file"),
        ("rediss://:secret@h:1/0?ssl_keyfile=/dev/null", "no such file"),
    ],
)
def test_others_are_refused_in_one_line_without_secrets(url: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words) as refused:
        load_settings(REDIS_URL=url)

    assert str(refused.value).startswith("REDIS_URL=(hidden): ")
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


@given(password=st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=6))
def test_a_password_that_is_not_escaped_is_in_no_message(password: str) -> None:
    # The words of the message itself say nothing of a password that is one of them.
    secret = f"Zq{password}qZ"
    said = ""
    try:
        check_url(f"redis://:{secret}@h:6379/0")
    except ValueError as error:
        said = str(error)
    assert "Zq" not in said
    assert "qZ" not in said


def test_a_server_is_verified_unless_the_url_says_otherwise(files: dict[str, str]) -> None:
    assert tls_options("rediss://h") == {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
    assert tls_options(tls(ssl_cert_reqs="CERT_NONE")) == {"ssl_cert_reqs": "none", "ssl_check_hostname": False}
    assert tls_options(tls(ssl_check_hostname="False")) == {"ssl_cert_reqs": "required", "ssl_check_hostname": False}
    assert tls_options(tls(**files)) == {**files, "ssl_cert_reqs": "required", "ssl_check_hostname": True}
    assert tls_options("redis://h") == {}


def test_a_key_needs_its_certificate(files: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="needs ssl_certfile"):
        tls_options(tls(ssl_keyfile=files["ssl_keyfile"]))


@pytest.mark.parametrize("more", [{}, {"ssl_check_hostname": "false"}, {"ssl_cert_reqs": "optional"}])
def test_celery_verifies_as_we_do(files: dict[str, str], more: dict[str, str]) -> None:
    url = tls(**files, **more)
    expected: dict[str, Any] = tls_options(url)

    conf = create_app(load_settings(REDIS_URL=url)).conf

    assert conf.broker_use_ssl == conf.redis_backend_use_ssl == expected
    given = parse_url(conf.broker_url)["ssl"]
    assert {**given, "ssl_cert_reqs": given["ssl_cert_reqs"].name.removeprefix("CERT_").lower()} == expected
    assert conf.result_backend == client_url(url) == "rediss://user:pw@h:6379/0"


def test_without_tls_celery_gets_none() -> None:
    assert broker_url("redis://:pw@h:1/2") == "redis://:pw@h:1/2"
    assert not create_app(load_settings(REDIS_URL="redis://:pw@h:1/2")).conf.broker_use_ssl


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("Cannot connect to redis://user:p%40w@h:6379/0: refused", "Cannot connect to redis://h:6379/0: refused"),
        ("{'audio': 'https://s3.example/a.wav?sig=abc&x=1'}", "{'audio': 'https://s3.example/a.wav?...'}"),
        ("redis+socket://:pw@/run/v.sock and sentinel://:pw@a:1;sentinel://:pw@b:2/0",
         "redis+socket:///run/v.sock and sentinel://a:1;sentinel://b:2/0"),
        ("is it so? mail a@b.c", "is it so? mail a@b.c"),
        ("https://h/p@th/a.wav", "https://h/p@th/a.wav"),
    ],
)  # fmt: skip
def test_urls_in_a_text_lose_their_secrets(text: str, clean: str) -> None:
    assert without_secrets(text) == clean
