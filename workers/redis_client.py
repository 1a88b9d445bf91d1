"""One way to reach Redis, whichever of Celery's spellings the URL has."""

from __future__ import annotations

from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry
from redis.sentinel import Sentinel

#: Longer than any blocking read here (2 s), short enough to notice a dead connection.
SOCKET_TIMEOUT_SECONDS = 30.0


def connect(url: str) -> Redis:
    """A client for ``url`` (``redis://``, ``rediss://``, ``unix://``, ``redis+socket://`` or ``sentinel://``).

    Answers are bytes. Broken connections are retried three times before an error surfaces.
    """
    options = {
        "socket_timeout": SOCKET_TIMEOUT_SECONDS,
        "socket_connect_timeout": 5.0,
        "socket_keepalive": True,
        "retry": Retry(ExponentialBackoff(cap=1.0, base=0.05), 3),
        "retry_on_error": [RedisConnectionError, RedisTimeoutError],
    }
    if url.startswith("sentinel://"):
        return _by_sentinel(url, options)
    url = client_url(url)
    if url.startswith("unix://"):
        options.pop("socket_keepalive")
    return Redis.from_url(url, **options)


def client_url(url: str) -> str:
    """``url`` as redis-py spells it."""
    if not url.startswith("redis+socket://"):
        return url
    parts = urlsplit(url)
    database = parse_qs(parts.query).get("virtual_host", ["0"])[0]
    auth = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
    return f"unix://{auth}{parts.path}?db={database}"


def celery_url(url: str) -> str:
    """``url`` as Celery spells it; the name of a Sentinel's master is no part of it (see `sentinel_master`)."""
    if url.startswith("sentinel://"):
        return url.partition("?")[0]
    if not url.startswith("unix://"):
        return url
    parts = urlsplit(url)
    database = parse_qs(parts.query).get("db", ["0"])[0]
    auth = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
    return f"redis+socket://{auth}{parts.path}?virtual_host={database}"


def sentinel_master(url: str) -> str:
    """The master that a ``sentinel://`` URL asks for: ``...?master_name=mymaster``, which is the default too."""
    return parse_qs(url.partition("?")[2]).get("master_name", ["mymaster"])[0]


def shown_url(url: str) -> str:
    """``url`` without its password, for messages and logs."""
    shown = []
    for one in url.split(";"):
        parts = urlsplit(one)
        host = parts.netloc.rpartition("@")[2]
        shown.append(f"{parts.scheme}://{host}{parts.path}")
    return ";".join(shown)


def _by_sentinel(url: str, options: dict[str, object]) -> Redis:
    """``sentinel://:password@host:port/db;sentinel://...?master_name=mymaster`` through redis-py's Sentinel."""
    parts = [urlsplit(one) for one in celery_url(url).split(";")]
    hosts = [(part.hostname or "localhost", part.port or 26379) for part in parts]
    password = next((unquote(part.password) for part in parts if part.password), None)
    database = next((part.path.strip("/") for part in parts if part.path.strip("/")), "0")
    sentinel: Any = Sentinel(hosts, socket_timeout=5.0)  # type: ignore[no-untyped-call]
    name = sentinel_master(url)
    return cast("Redis", sentinel.master_for(name, redis_class=Redis, db=int(database), password=password, **options))
