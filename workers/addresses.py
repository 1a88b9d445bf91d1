"""Connections to public addresses only: what a name resolves to is checked, and then connected to as it was checked.

A name is resolved once a connection, so nothing that its owner changes afterwards (DNS rebinding) gets between the
check and the connection.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable

#: IPv6 that carries an IPv4 address in its last 32 bits: NAT64 (RFC 6052), and the obsolete "compatible" form.
_EMBEDDING = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("::/96"))
#: NAT64 for a network of one's own (RFC 8215).
_LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")


#: How long an address may be silent before the next one is tried.
NEXT_SECONDS = 5.0
#: A host may name more; the last of them, which is of another family where there are two, is asked in any case.
MOST_ADDRESSES = 8


class PrivateAddressError(Exception):
    """A name that leads to no public address."""


def is_public(address: str) -> bool:
    """Whether ``address`` (IPv4 or IPv6, as `socket.getaddrinfo` writes it) belongs to the internet at large.

    Private, loopback, link-local (cloud metadata), shared, reserved and multicast addresses do not, and neither does
    an IPv6 address that leads to such an IPv4 address (IANA special-purpose registries, as the ipaddress module has
    them).
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.teredo is not None or ip.is_site_local or ip in _LOCAL_NAT64:
            return False
        inner = ip.ipv4_mapped or ip.sixtofour
        if inner is None and any(ip in network for network in _EMBEDDING):
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            ip = inner
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def connect(
    host: str,
    port: int,
    timeout_seconds: float,
    *,
    allow_private: bool,
    progress: Callable[[], None] = lambda: None,
) -> socket.socket:
    """A connection to the first address of ``host`` that answers; only public ones are asked unless ``allow_private``.

    ``progress`` is called before each. Those before the last have less time: where IPv6 leads nowhere a host may have
    many that are silent. Raises PrivateAddressError when there is no public one, OSError when the name is unknown or
    nobody answers.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    allowed = [entry for entry in found if allow_private or is_public(str(entry[4][0]))]
    if found and not allowed:
        raise PrivateAddressError
    failure: OSError = OSError(f"{host} has no address")
    asked = [*allowed[: MOST_ADDRESSES - 1], allowed[-1]] if len(allowed) > MOST_ADDRESSES else allowed
    for number, (family, kind, protocol, _, address) in enumerate(asked, start=1):
        progress()
        seconds = timeout_seconds if number == len(asked) else min(timeout_seconds, NEXT_SECONDS)
        try:
            made = _connected(socket.socket(family, kind, protocol), address, seconds)
        except OSError as error:
            failure = error
        else:
            made.settimeout(timeout_seconds)
            return made
    raise failure


def _connected(made: socket.socket, address: object, timeout_seconds: float) -> socket.socket:
    try:
        made.settimeout(timeout_seconds)
        made.connect(address)  # type: ignore[arg-type]
    except BaseException:
        made.close()
        raise
    return made
