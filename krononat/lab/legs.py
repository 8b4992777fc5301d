"""Addresses of every link of a cluster whose switches route: each has four, the switch the first and its neighbour the second.

By switch and domain:

    switch  domain    cores' legs: server S, core N     to access or Internet   between the switches
    a       inside    10.1.S.4N/30                      10.1.0.0/30             10.1.0.4/30
    a       outside   198.18.S.4N/30                    198.18.0.0/30           198.18.0.4/30
    b       inside    10.2.S.4N/30                      10.2.0.0/30
    b       outside   198.19.S.4N/30                    198.19.0.0/30

The last column is of both.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import NamedTuple

from routing.fabric import INSIDE, OUTSIDE, Legs

ASNS = {"a": 65000, "b": 65001}
LETTERS = tuple(ASNS)
CORE_ASN, ACCESS_ASN, INTERNET_ASN = 65010, 65100, 65200
CORES_AT_MOST = 8  # of a server
SHORT = {INSIDE: "in", OUTSIDE: "out"}

_BASES = {
    ("a", INSIDE): IPv4Network("10.1.0.0/16"),
    ("a", OUTSIDE): IPv4Network("198.18.0.0/16"),
    ("b", INSIDE): IPv4Network("10.2.0.0/16"),
    ("b", OUTSIDE): IPv4Network("198.19.0.0/16"),
}
LOOPBACKS = IPv4Network("10.254.0.0/16")  # of server S, core N: 10.254.S.N
NETWORKS = (Legs(INSIDE, LOOPBACKS), *(Legs(domain, network) for (_, domain), network in _BASES.items()))


class Link(NamedTuple):
    """A link of a switch; `port` is its device there, `device` the neighbour's."""

    switch: str
    domain: str
    node: str  # the switch's, of that domain
    port: str
    device: str
    own: IPv4Interface
    other: IPv4Interface

    @property
    def address(self) -> IPv4Address:
        """The neighbour's address."""
        return self.other.ip


def node_of(switch: str, domain: str, domains: int) -> str:
    """Namespace of a domain of a switch: ain, aout, bin, bout; `tor` where there is one domain only."""
    return f"{switch}{SHORT[domain]}" if domains == 2 else "tor"


def leg(core: str, switch: str, domain: str, domains: int = 2) -> Link:
    """The leg that a core, SERVER/CORE, has in a domain of a switch."""
    server, _, number = core.partition("/")
    place = 64 * int(server.removeprefix("s")) + int(number)
    device = f"{SHORT[domain]}{number}{'' if switch == LETTERS[0] else switch}"
    return _link(switch, domain, domains, place, f"{server}c{number}{SHORT[domain]}", device)


def loopback(core: str) -> IPv4Address:
    """The address that other cores reach a core by where it has several legs."""
    server, _, number = core.partition("/")
    return LOOPBACKS.network_address + 256 * int(server.removeprefix("s")) + int(number)


def uplink(switch: str, domain: str, domains: int = 2) -> Link:
    """Inside to the access router, outside to the Internet's; both call their device after the switch."""
    return _link(switch, domain, domains, 0, "access" if domain == INSIDE else "core", f"switch_{switch}")


def between(domain: str) -> Link:
    """From switch a to switch b."""
    return _link("a", domain, 2, 1, "other", "other")


def _link(switch: str, domain: str, domains: int, place: int, port: str, device: str) -> Link:
    first = _BASES[switch, domain].network_address + 4 * place
    own, other = (IPv4Interface(f"{first + number}/30") for number in (1, 2))
    return Link(switch, domain, node_of(switch, domain, domains), port, device, own, other)
