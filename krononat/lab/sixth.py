"""IPv6 in the laboratory whose switches route: what has which addresses. Everything follows from what IPv4 has.

A subscriber's /64 is of his shard's /52, which its core announces outside as it is; inside each shard has an address that its
subscribers' packets are steered to. Every link has a /64 of its own, the switch the first address of it and its neighbour the
second; BGP's sessions stay those over IPv4 and carry both. `None` where a laboratory has no IPv6.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, IPv6Interface, IPv6Network

from krononat.lab import cluster, legs
from krononat.lab.cluster import Wanted
from krononat.lab.legs import Link
from krononat.lab.topology import End
from routing import announcements
from routing.fabric import DOMAINS, INSIDE, Legs, Range

SUBSCRIBERS = IPv6Network("2001:db8:1000::/48")
ADDRESSES = IPv6Network("2001:db8:ffff::/118")  # of shards
EACH = 64  # of a subscriber
_LINKS = {INSIDE: IPv6Network("2001:db8:a000::/36"), "outside": IPv6Network("2001:db8:b000::/36")}
_BITS = 128 - 64

H1 = IPv6Address("2001:db8:198::10")
_ENDS = (("core", "h1", f"{H1 - 15}/64"), ("h1", "eth0", f"{H1}/64"))  # node, interface, address


def subscribers_of(shard: int) -> IPv6Network:
    """Internal prefix of a shard: as many /64 as it has IPv4 addresses."""
    return IPv6Network((int(SUBSCRIBERS.network_address) + (shard << (_BITS + 12)), 52))


def of_client(address: IPv4Address) -> IPv6Address:
    """A subscriber's address, of the /64 that goes with his IPv4 address."""
    place = int(address) - int(cluster.INSIDE.network_address)
    return IPv6Address(int(SUBSCRIBERS.network_address) + (place << _BITS) + 0x11)


def shard_address(wanted: Wanted, shard: int) -> IPv6Address:
    """What a shard's subscribers' packets are steered to."""
    return IPv6Address(announcements.shard_address(str(ADDRESSES), shard, wanted.preference))  # type: ignore[arg-type]


def ends_of(link: Link) -> tuple[IPv6Interface, IPv6Interface]:
    """Both ends of a link, the switch's first: the numbers of its IPv4 network as those of a /64."""
    place = int(link.own.network.network_address) & 0xFFFF
    switch = 1 if link.switch == legs.LETTERS[0] else 2
    base = int(_LINKS[link.domain].network_address) + (switch << (_BITS + 20)) + (place << _BITS)
    first, second = (1, 2) if link.own.ip < link.other.ip else (2, 1)
    return IPv6Interface(f"{IPv6Address(base + first)}/64"), IPv6Interface(f"{IPv6Address(base + second)}/64")


def addresses(wanted: Wanted, links: tuple[Link, ...]) -> tuple[tuple[str, str, str], ...]:
    """(node, interface, address) of all but the cores: they set up their own."""
    return tuple(_addresses(wanted, links)) if wanted.six else ()


def _addresses(wanted: Wanted, links: tuple[Link, ...]) -> Iterator[tuple[str, str, str]]:
    yield from _ENDS
    for name, device in (("c1", "c1"), ("c2", "c2")):
        own = of_client(CLIENTS[name])
        yield name, "eth0", f"{own}/64"
        yield "access", device, f"{own - 0x10}/64"
    for link in links:
        own6, other6 = ends_of(link)
        yield link.node, link.port, str(own6)
        if far := _far(wanted, link):
            yield far.node, far.interface, str(other6)


CLIENTS = {"c1": IPv4Address("100.64.0.11"), "c2": IPv4Address("100.64.16.11")}


def _far(wanted: Wanted, link: Link) -> End | None:
    """The other end, where that is no core's."""
    if link.port in ("access", "core"):
        return End(link.port, link.device, None, False, True)
    if link.port == "other":
        return End(legs.node_of("b", link.domain, wanted.domains), link.device, None, False, True)
    return None


def routes(wanted: Wanted) -> tuple[tuple[str, str, str], ...]:
    """Ways of those who speak no BGP."""
    if not wanted.six:
        return ()
    clients = ((name, "default", str(of_client(address) - 0x10)) for name, address in CLIENTS.items())
    return (*clients, ("h1", "default", str(H1 - 15)))


# --- as `routing` and configurations have it ---------------------------------------------------------------------------------


def inside(wanted: Wanted) -> tuple[Range, ...]:
    """What cores may announce inside."""
    return (Range(ADDRESSES, ADDRESSES.prefixlen, 128),) if wanted.six else ()


def outside(wanted: Wanted) -> tuple[Range, ...]:
    """And outside: subscribers' own."""
    return (Range(SUBSCRIBERS, SUBSCRIBERS.prefixlen, 64),) if wanted.six else ()


def networks(wanted: Wanted) -> tuple[Legs, ...]:
    """Where links have their addresses."""
    return tuple(Legs(domain, _LINKS[domain]) for domain in DOMAINS) if wanted.six else ()


def of_interface(wanted: Wanted, link: Link) -> str:
    """Lines of a core's interface."""
    own6, other6 = ends_of(link)
    return f'address6 = "{other6}"\ngateway6 = "{own6.ip}"\n' if wanted.six else ""


def of_bgp(wanted: Wanted) -> str:
    """Lines of a core's [bgp]."""
    return f'shard-addresses6 = "{ADDRESSES}"\n' if wanted.six else ""


def of_subscribers(wanted: Wanted, shard: int) -> str:
    """Lines of a shard's [[subscribers]]."""
    return f'prefix6 = "{subscribers_of(shard)}"\neach6 = {EACH}\n' if wanted.six else ""
