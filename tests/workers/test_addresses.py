"""Which addresses are public, and that the one which was checked is the one which is connected to."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from example_names import resolve_examples
from workers.addresses import PrivateAddressError, connect, is_public

PRIVATE_NETWORKS = [
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"),
    *("192.0.2.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
    *("::/128", "::1/128", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8", "2001:db8::/32", "64:ff9b:1::/48"),
]
#: What leads to an IPv4 address inside an IPv6 one, by how many bits it is shifted.
EMBEDDINGS = {"::ffff:0:0": 0, "64:ff9b::": 0, "2002::": 80, "::": 0}

networks = st.sampled_from([ipaddress.ip_network(network) for network in PRIVATE_NETWORKS])
private = networks.flatmap(lambda network: st.ip_addresses(network=network))
private_v4 = networks.filter(lambda network: network.version == 4).flatmap(lambda n: st.ip_addresses(network=n))


@given(private)
def test_private_addresses(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    assert not is_public(str(address))


@given(private_v4, st.sampled_from(sorted(EMBEDDINGS)))
def test_private_addresses_inside_others(address: ipaddress.IPv4Address, prefix: str) -> None:
    carrier = ipaddress.IPv6Address(int(ipaddress.IPv6Address(prefix)) | int(address) << EMBEDDINGS[prefix])
    assert not is_public(str(carrier))


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::"],
)
def test_public_addresses(address: str) -> None:
    assert is_public(address)


def test_zone_of_an_address_does_not_matter() -> None:
    assert not is_public("fe80::1%eth0")


def test_private_host_is_not_connected_to() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for host in ("127.0.0.1", "localhost", "127.1", "0x7f000001"):
            with pytest.raises(PrivateAddressError):
                connect(host, port, 5.0, allow_private=False)
        # Nobody came; and with leave, somebody does.
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()
        connect("127.0.0.1", port, 5.0, allow_private=True).close()


def test_of_several_addresses_only_public_ones_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a name with a private address, and a "public" one: this machine's, as far as the test goes
    asked = answers(monkeypatch, ["127.0.0.2", "127.0.0.3"])
    monkeypatch.setattr("workers.addresses.is_public", lambda address: address == "127.0.0.3")
    with socket.create_server(("0.0.0.0", 0)) as server:
        made = connect("two.example", server.getsockname()[1], 5.0, allow_private=False)
        assert made.getpeername()[0] == "127.0.0.3"
        made.close()
    # Then it was looked up once: another answer could not get between
    assert asked == ["two.example"]


def test_next_address_is_tried_when_one_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, ["127.0.0.2", "127.0.0.3"])
    with socket.create_server(("127.0.0.3", 0)) as server:
        port = server.getsockname()[1]
        connect("two.example", port, 5.0, allow_private=True).close()
    with pytest.raises(ConnectionRefusedError):
        connect("two.example", port, 5.0, allow_private=True)


def answers(monkeypatch: pytest.MonkeyPatch, addresses: list[str]) -> list[str]:
    """Makes every name of ``.example`` resolve to ``addresses``; returns the list of the names that are asked for."""
    asked: list[str] = []

    def answer(name: str) -> list[str]:
        asked.append(name)
        return addresses

    resolve_examples(monkeypatch, answer)
    return asked
