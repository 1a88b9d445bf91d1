"""The way to Redis by its Sentinels, and why they name no master, in a line: redis-py's has each client in whole."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel

from workers.redis_url import (
    SENTINEL_SECONDS,
    celery_url,
    sentinel_master,
    sentinel_options,
    tls_options,
    without_secrets,
)

#: Causes that are told, of as many Sentinels.
MOST_CAUSES = 2


class NoMasterError(MasterNotFoundError):
    """No Sentinel names the master; the text says why. ``lasting``: one that answers wants another password."""

    def __init__(self, why: str, *, lasting: bool) -> None:
        super().__init__(why)
        self.lasting = lasting


def by_sentinel(url: str, options: dict[str, Any]) -> Redis:
    """A client of the master of ``sentinel://:password@host:port/db;sentinel://...?master_name=mymaster``.

    User and password before a host are the master's; ``options`` are for the connections to it.
    """
    parts = [urlsplit(one) for one in celery_url(url).split(";")]
    user = next((unquote(part.username) for part in parts if part.username), None)
    password = next((unquote(part.password) for part in parts if part.password), None)
    database = next((part.path.strip("/") for part in parts if part.path.strip("/")), "0")
    if tls := tls_options(url):
        tls["ssl"] = True
    asked = _asked_once(url)
    asked["socket_timeout"] = asked["socket_connect_timeout"] = min(SENTINEL_SECONDS, options["socket_timeout"])
    sentinel: Any = Sentinel(list(_hosts(url)), sentinel_kwargs=asked)  # type: ignore[no-untyped-call]
    client = sentinel.master_for(
        sentinel_master(url), redis_class=Redis, db=int(database), username=user, password=password, **options, **tls
    )
    return cast("Redis", client)


def no_master(url: str) -> NoMasterError:
    """Why the Sentinels of ``url`` name no master: each is asked once more."""
    name, causes, lasting = sentinel_master(url), [], False
    for host, port in _hosts(url):
        with Redis(host=host, port=port, **_asked_once(url)) as sentinel:
            try:
                sentinel.ping()
            except RedisError as error:
                lasting = lasting or isinstance(error, AuthenticationError)
                causes.append(f"{host}:{port}: {_cause(error)}")
    if not causes:
        return NoMasterError(unknown_master(name), lasting=False)
    said = "; ".join(causes[:MOST_CAUSES] + ["..."] * (len(causes) > MOST_CAUSES))
    return NoMasterError(f"no Sentinel names the master {name!r} ({said})", lasting=lasting)


def shortened(error: MasterNotFoundError) -> str:
    """What redis-py or kombu says of all Sentinels, without their clients."""
    if isinstance(error, NoMasterError):
        return str(error)
    name = next(iter(re.findall("No master found for '([^']*)'", str(error))), "?")
    if " : " not in str(error):
        return unknown_master(name)
    hosts = ", ".join(dict.fromkeys(":".join(found) for found in re.findall(r"\bhost=([^,)]*),port=(\d+)", str(error))))
    return f"no Sentinel names the master {name!r} (does not answer: {hosts[:100]})"


def unknown_master(name: str) -> str:
    """What Sentinels that answer mean by no master."""
    return f"its Sentinels know no master {name!r} that is up: ?master_name= names another"


def _cause(error: RedisError) -> str:
    text = without_secrets(re.sub(r"^Error -?\d+ connecting to \S+ ", "", " ".join(str(error).split())))
    if isinstance(error, AuthenticationError):
        if "HELLO" in text or "required" in text:
            return "wants a password, as in ?sentinel_password=..."
        return "refuses this sentinel_username or sentinel_password"
    return text[:80].rstrip(".") or type(error).__name__


def _hosts(url: str) -> Iterator[tuple[str, int]]:
    for one in celery_url(url).split(";"):
        part = urlsplit(one)
        yield part.hostname or "localhost", part.port or 26379


def _asked_once(url: str) -> dict[str, Any]:
    """Whoever wants the master asks again, and all Sentinels: no need to ask one of them ten times."""
    return {**sentinel_options(url), "retry": Retry(NoBackoff(), 0)}
