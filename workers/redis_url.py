"""The broker's URL: which spellings there are, how redis-py and Celery want them, and how people may see them.

Certificates are named in the URL's query, as Celery spells it
(``rediss://user:password@host:6379/0?ssl_ca_certs=/etc/fleet/ca.pem``). Unlike Celery's own default, a server's
certificate is always verified unless the URL says ``ssl_cert_reqs=none``. ``sentinel://`` with any of these
options is TLS, to the Sentinels and to the servers that they name; ``sentinel_username`` and ``sentinel_password`` are
for Sentinels that want them, as redis-py's ``sentinel_kwargs`` has them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import SplitResult, parse_qs, urlencode, urlsplit

Chosen = TypeVar("Chosen")

SCHEMES = ("redis://", "rediss://", "unix://", "redis+socket://", "sentinel://")
_CLUSTER_SCHEMES = (
    "rediscluster",
    "redisscluster",
    "redis+cluster",
    "rediss+cluster",
    "redis-cluster",
    "valkeycluster",
)
NO_CLUSTER = (
    "Celery on Redis has no cluster support: name a single server (redis://, rediss://) or its Sentinels (sentinel://)"
)

_TLS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_TLS_OPTIONS = (*_TLS_FILES, "ssl_cert_reqs", "ssl_check_hostname")
_OPTIONS: dict[str, tuple[str, ...]] = {
    "redis": (),
    "rediss": _TLS_OPTIONS,
    "unix": ("db",),
    "redis+socket": ("virtual_host",),
    "sentinel": ("master_name", "sentinel_username", "sentinel_password", *_TLS_OPTIONS),
}
#: Celery's and redis-py's words for how a server's certificate is verified.
_CERT_REQS = {
    **{word: word for word in ("required", "optional", "none")},
    **{f"CERT_{word.upper()}": word for word in ("required", "optional", "none")},
}
#: Longest wait for a Sentinel's answer.
SENTINEL_SECONDS = 5.0
_BOOLEANS = {"true": True, "false": False}

_ESCAPED = "in a password, write / as %2F, ? as %3F, # as %23, @ as %40, : as %3A, ; as %3B"

# What comes before the host of a URL, and what comes after a question mark in one.
_USER_INFO = re.compile(r"(?<=://)[^\s/?#'\"]*@")
_QUERY = re.compile(r"(\b[A-Za-z][A-Za-z0-9+.-]*://[^\s?'\"<>]*)\?[^\s'\"<>]*")


def check_url(url: str) -> None:
    """Raise ValueError, in words that hold no secret, for a URL that the fleet cannot use. Asks no server."""
    scheme = url.partition("://")[0].lower()
    if scheme in _CLUSTER_SCHEMES:
        raise ValueError(NO_CLUSTER)
    if not url.startswith(SCHEMES):
        raise ValueError(f"must start with one of {', '.join(SCHEMES)}")
    options, addresses = parse_qs(url.partition("?")[2], keep_blank_values=True), url.partition("?")[0].split(";")
    for address in addresses:
        _check_address(_split(address), scheme)
    if len(addresses) > 1 and scheme != "sentinel":
        raise ValueError(f"names several servers, which is for sentinel:// only; {_ESCAPED}")
    known = _OPTIONS[scheme]
    for name in options:
        if name in _TLS_OPTIONS and name not in known:
            raise ValueError(f"{name} goes with rediss:// and sentinel:// only: {scheme}:// is not encrypted")
        if name not in known:  # not shown: it may be the end of a password
            words = f"only {', '.join(known)}" if known else "none"
            raise ValueError(f"has an option that {scheme}:// does not take (it takes {words}); {_ESCAPED}")
    for name in ("db", "virtual_host"):  # both name a database
        if name in options and not options[name][-1].isdigit():
            raise ValueError(f"{name} must be the number of a database, as in {name}=0; {_ESCAPED}")
    tls_options(url)


def _split(address: str) -> SplitResult:
    try:
        parts = urlsplit(address)
        _ = parts.port  # raises for one that is no number, with a piece of the password if that holds a slash
    except ValueError:
        raise ValueError(f"its host or port cannot be read; {_ESCAPED}") from None
    return parts


def _check_address(parts: SplitResult, scheme: str) -> None:
    if parts.scheme != scheme:
        raise ValueError(f"every server of a list needs its own {scheme}://")
    if parts.fragment:
        raise ValueError(f"holds a #; {_ESCAPED}")
    database = parts.path.strip("/")
    if scheme in ("redis", "rediss", "sentinel") and database and not database.isdigit():
        raise ValueError(f"must end with the number of a database, as in redis://host:6379/0; {_ESCAPED}")


def tls_options(url: str) -> dict[str, Any]:
    """How to verify the server and show who we are, by redis-py's names; empty for a URL without TLS.

    Raises ValueError for an option that cannot be meant or a file that is not there.
    """
    given = {name: values[-1] for name, values in parse_qs(url.partition("?")[2], keep_blank_values=True).items()}
    if not url.startswith("rediss://") and not (url.startswith("sentinel://") and given.keys() & set(_TLS_OPTIONS)):
        return {}
    for name in _TLS_FILES:
        if name in given and not Path(given[name]).is_file():
            raise ValueError(f"{name}={given[name]}: no such file on this machine")
    if "ssl_keyfile" in given and "ssl_certfile" not in given:
        raise ValueError("ssl_keyfile needs ssl_certfile beside it")
    reqs = _chosen("ssl_cert_reqs", given.get("ssl_cert_reqs", "required"), _CERT_REQS, "required, optional or none")
    hostname = _chosen("ssl_check_hostname", given.get("ssl_check_hostname", "true"), _BOOLEANS, "true or false")
    return {
        **{name: given[name] for name in _TLS_FILES if name in given},
        "ssl_cert_reqs": reqs,
        "ssl_check_hostname": reqs != "none" and hostname,
    }


def _chosen(name: str, value: str, choices: dict[str, Chosen], words: str) -> Chosen:
    for written in (value, value.lower()):
        if written in choices:
            return choices[written]
    raise ValueError(f"{name}={value}: must be {words}")


def client_url(url: str) -> str:
    """``url`` as redis-py spells it, without TLS options (see `tls_options`)."""
    if url.startswith("rediss://"):
        return url.partition("?")[0]
    if not url.startswith("redis+socket://"):
        return url
    parts = urlsplit(url)
    database = parse_qs(parts.query).get("virtual_host", ["0"])[0]
    return f"unix://{_user_info(parts)}{parts.path}?db={database}"


def celery_url(url: str) -> str:
    """``url`` as Celery spells it; a Sentinel's master and TLS options are no part of it."""
    if url.startswith(("sentinel://", "rediss://")):
        return url.partition("?")[0]
    if not url.startswith("unix://"):
        return url
    parts = urlsplit(url)
    database = parse_qs(parts.query).get("db", ["0"])[0]
    return f"redis+socket://{_user_info(parts)}{parts.path}?virtual_host={database}"


def broker_url(url: str) -> str:
    """`celery_url` for the broker; ``rediss://`` with the options that keep kombu from warning of no verification."""
    if url.startswith("sentinel://"):
        return celery_url(url)
    words = {
        name: str(value).lower() if value is True or value is False else value
        for name, value in tls_options(url).items()
    }
    return celery_url(url) + (f"?{urlencode(words)}" if words else "")


def _user_info(parts: SplitResult) -> str:
    return f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""


def sentinel_master(url: str) -> str:
    """The master that a ``sentinel://`` URL asks for: ``...?master_name=mymaster``, which is the default too."""
    return parse_qs(url.partition("?")[2]).get("master_name", ["mymaster"])[0]


def sentinel_options(url: str) -> dict[str, Any]:
    """How the Sentinels themselves are spoken to, by redis-py's names: TLS, user and password as ``url`` says."""
    given = parse_qs(url.partition("?")[2])
    users = {name: given[f"sentinel_{name}"][-1] for name in ("username", "password") if f"sentinel_{name}" in given}
    tls = tls_options(url)
    return {"socket_timeout": SENTINEL_SECONDS, **users, **({"ssl": True, **tls} if tls else {})}


def shown_url(url: str) -> str:
    """``url`` without user, password and options, for messages and logs."""
    shown = []
    for one in url.split(";"):
        parts = urlsplit(one)
        host = parts.netloc.rpartition("@")[2]
        shown.append(f"{parts.scheme}://{host}{parts.path}")
    return ";".join(shown)


def without_secrets(text: str) -> str:
    """``text`` with user, password and query of every URL in it left out: broker's and signed audio URLs alike."""
    return _QUERY.sub(r"\1?...", _USER_INFO.sub("", text))
