"""One way to reach Redis, whichever of Celery's spellings the URL has, and what is wrong when it cannot be reached."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator
from typing import Any

from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, OutOfMemoryError, ReadOnlyError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError

from workers.errors import SettingsError
from workers.redis_rights import missing_rights
from workers.redis_sentinel import by_sentinel, no_master, shortened
from workers.redis_url import NO_CLUSTER, client_url, shown_url, tls_options, without_secrets

__all__ = [
    "check_server",
    "connect",
    "connect_briefly",
    "passes",
    "reason",
    "refused_right",
    "shown_url",
]

#: Longer than any blocking read here (2 s), short enough to notice a dead connection.
SOCKET_TIMEOUT_SECONDS = 30.0
#: Longest wait for a connection.
CONNECT_SECONDS = 5.0
#: Longest wait for the answer to a first question.
FIRST_ANSWER_SECONDS = 10.0


def connect(url: str) -> Redis:
    """A client for ``url`` (``redis://``, ``rediss://``, ``unix://``, ``redis+socket://`` or ``sentinel://``).

    Answers are bytes. Broken connections are retried three times before an error surfaces, and so are those that still
    lead to a primary of yesterday, which takes no writes: each try connects anew.
    """
    return _client(url, SOCKET_TIMEOUT_SECONDS, (RedisConnectionError, RedisTimeoutError, ReadOnlyError))


def connect_briefly(url: str, timeout_seconds: float) -> Redis:
    """As `connect`, where somebody waits: at most ``timeout_seconds`` to connect and for each answer, no retry."""
    return _client(url, timeout_seconds, (RedisConnectionError, RedisTimeoutError), retries=0)


def _client(url: str, timeout_seconds: float, retried: tuple[type[RedisError], ...], retries: int = 3) -> Redis:
    options: dict[str, Any] = {
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": min(CONNECT_SECONDS, timeout_seconds),
        "socket_keepalive": True,
        "retry": Retry(ExponentialBackoff(cap=1.0, base=0.05), retries, supported_errors=retried),
        "retry_on_error": list(retried),
    }
    if url.startswith("sentinel://"):
        return by_sentinel(url, options)
    options.update(tls_options(url))
    url = client_url(url)
    if url.startswith("unix://"):
        options.pop("socket_keepalive")
    return Redis.from_url(url, **options)


def check_server(url: str, *, control: bool = True) -> None:
    """Ask the server once, so that what no waiting mends is said at the start. ``control``: see `missing_rights`.

    Raises SettingsError (one line) for a certificate, password or right that is not good enough, and for a Redis
    Cluster; RedisError as it came for everything that may pass, such as an outage.
    """
    facts: dict[str, Any] = {}
    # A server that does not speak TLS never answers one who does: that is not tried again and again.
    with _client(url, FIRST_ANSWER_SECONDS, (RedisConnectionError,)) as redis:
        try:
            with contextlib.suppress(NoPermissionError):  # which is named below
                redis.ping()
                facts = redis.info("cluster")
            missing = [] if facts.get("cluster_enabled") else missing_rights(redis, control=control)
        except MasterNotFoundError:
            why = no_master(url)
            if why.lasting:
                raise SettingsError(f"REDIS_URL {shown_url(url)}: {why}") from None
            raise why from None
        except RedisError as error:
            if _is_lasting(error):
                raise SettingsError(f"REDIS_URL {shown_url(url)}: {reason(error)}") from None
            raise
    if facts.get("cluster_enabled"):
        raise SettingsError(f"REDIS_URL {shown_url(url)}: this server is part of a Redis Cluster. {NO_CLUSTER}")
    if missing:
        raise SettingsError(f"REDIS_URL {shown_url(url)}: {_not_allowed('it lacks ' + ' '.join(missing))}")


def reason(error: BaseException) -> str:
    """Why Redis does not answer: one line for people, without secrets."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not accepted ({cause.verify_message.rstrip('.')}){_cure(cause.verify_code)}"
        if isinstance(cause, MasterNotFoundError):
            return shortened(cause)
    text = without_secrets(" ".join(str(error).split())) or type(error).__name__
    if isinstance(error, AuthenticationError):
        if "HELLO" in text or "required" in text:
            return "wants a password, as in redis://user:password@host:6379/0"
        return f"refuses this user or password ({text})"
    if isinstance(error, NoPermissionError):
        return _not_allowed(text)
    if _names_no_database(text):
        return f"has no such database ({text}): the number at the end of the URL is too large"
    if _wants_certificate(text):
        return "wants a client's certificate: add ssl_certfile and ssl_keyfile to the URL"
    if "EOF occurred in violation of protocol" in text:  # some servers say no more than that
        return f"ends the connection ({text}): a server that wants clients' certificates needs ssl_certfile in the URL"
    return text


def passes(error: BaseException) -> bool:
    """Whether Redis was full, away, not ready or no primary: what waiting mends."""
    kinds = (OutOfMemoryError, RedisConnectionError, RedisTimeoutError, ReadOnlyError)
    return refused_right(error) is None and any(isinstance(cause, kinds) for cause in _causes(error))


def refused_right(error: BaseException) -> NoPermissionError | None:
    """Redis's word, where ``error`` comes of one, that this user may not do that. No waiting mends it."""
    return next((cause for cause in _causes(error) if isinstance(cause, NoPermissionError)), None)


def _not_allowed(why: str) -> str:
    return f"this user may not do what the fleet needs ({why}): see its ACL in the README"


def _cure(verify_code: int) -> str:
    """What to do about a certificate that OpenSSL refuses with this X509_V_ERR code."""
    if verify_code in (62, 64):  # hostname, address mismatch
        return ": use the name that is in it"
    if verify_code in (18, 19, 20, 21):  # self-signed, issuer unknown
        return ": name the authority that signed it, as in rediss://...?ssl_ca_certs=/path/ca.pem"
    return ""


def _is_lasting(error: BaseException) -> bool:
    if isinstance(error, AuthenticationError | NoPermissionError):
        return True
    return (
        _wants_certificate(str(error))
        or _names_no_database(str(error))
        or any(isinstance(one, ssl.SSLCertVerificationError) for one in _causes(error))
    )


def _wants_certificate(text: str) -> bool:
    return "CERTIFICATE_REQUIRED" in text.upper().replace(" ", "_")


def _names_no_database(text: str) -> bool:
    return "DB index is out of range" in text or "invalid DB index" in text


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        yield from (one for one in error.args if isinstance(one, BaseException))
        error = error.__cause__ or error.__context__
