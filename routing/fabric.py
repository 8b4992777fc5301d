"""The network's side of the routes: which switches there are, who talks BGP to them, and what they believe of whom.

A switch has one or two *domains* (VRFs): `inside` (subscribers) and `outside` (Internet). In both it learns destinations from
the cores: shard addresses inside, external prefixes outside. What leaves a subscriber is steered by a policy that never
changes: source prefix of shard k → shard address of k, looked up anew whenever its route changes (recursive). Beneath it is a
floor: a subscriber's packet that no policy takes is dropped, so nothing leaves untranslated while routes come and go.

`bird`, `frr`, `arista`, `cisco`, `sonic` write it down, each for its kind of switch. Everything here is pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple

Network = IPv4Network | IPv6Network

INSIDE, OUTSIDE = "inside", "outside"
DOMAINS = (INSIDE, OUTSIDE)
CORE, ACCESS, INTERNET, SWITCH = "core", "access", "internet", "switch"  # who a neighbour is
MARKED = (CORE, SWITCH)  # whose communities are heeded

GRACEFUL_SHUTDOWN = (65535, 0)  # RFC 8326 4: its routes are taken only where there is no other
TABLE, RULE = 1000, 1000  # Linux: routing table and rule preference of shard 0
FLOOR = 19000  # rule preference; above those of all shards
STRAY, STRAY_TABLE = 33000, 900  # of packets that routers inside make themselves (ICMP errors), behind the main table


class Range(NamedTuple):
    """Prefixes that may be announced: those inside `prefix`, of these lengths."""

    prefix: Network
    shortest: int
    longest: int


class Shard(NamedTuple):
    """What the policy needs of a shard."""

    number: int
    sources: tuple[Network, ...]
    address: IPv4Address
    address6: IPv6Address | None = None


class Neighbour(NamedTuple):
    """Somebody who talks BGP to a switch, and the link to him."""

    name: str  # letters and digits only; of a core "s1c0in"
    kind: str
    domain: str
    device: str  # of the switch
    own: IPv4Interface  # the switch's address there
    address: IPv4Address
    asn: int
    loopback: IPv4Address | None = None  # another address of the core, reached by each of its legs of this domain
    own6: IPv6Address | None = None
    address6: IPv6Address | None = None


class Switch(NamedTuple):
    """One switch; with one domain, both kinds of neighbours are in the same."""

    name: str  # "a"
    asn: int
    router_id: IPv4Address
    neighbours: tuple[Neighbour, ...]


class Legs(NamedTuple):
    """Where the links of a domain have their addresses."""

    domain: str
    network: Network


class Bfd(NamedTuple):
    """Asked of every neighbour (RFC 5880)."""

    interval_ms: int = 50
    multiplier: int = 3


class Fabric(NamedTuple):
    """All of it."""

    shards: tuple[Shard, ...]
    inside: tuple[Range, ...]  # shard addresses
    outside: tuple[Range, ...]  # external prefixes, and of IPv6 the subscribers' own
    floor: tuple[Network, ...]  # what subscribers and nobody else have
    legs: tuple[Legs, ...]
    switches: tuple[Switch, ...]
    core_asn: int = 65010
    domains: int = 2
    hold_s: int = 9
    bfd: Bfd | None = Bfd()
    third_party: bool = False  # one session a server, with its cores as next hops
    meds: tuple[int, ...] = (50, 100, 150, 151, 200, 250, 251, 252, 300)  # best first; communities CORE_ASN:MED mean the same

    @property
    def v6(self) -> bool:
        """Whether anything of it is IPv6."""
        return any(each.prefix.version == 6 for each in (*self.inside, *self.outside))


class Instance(NamedTuple):
    """A routing domain of a switch: a VRF, or in the laboratory a namespace with its own daemon."""

    switch: Switch
    domain: str  # "inside", "outside", or "both"
    neighbours: tuple[Neighbour, ...]

    @property
    def inside(self) -> bool:
        """Whether subscribers are here."""
        return self.domain != OUTSIDE

    @property
    def outside(self) -> bool:
        """Whether the Internet is here."""
        return self.domain != INSIDE

    def of(self, *kinds: str) -> tuple[Neighbour, ...]:
        """Its neighbours of these kinds."""
        return tuple(each for each in self.neighbours if each.kind in kinds)


class Community(NamedTuple):
    """A community and the local preference that it is given (RFC 4271 5.1.5: higher is better, 100 is usual)."""

    high: int
    low: int
    preference: int


def instances(fabric: Fabric, switch: Switch) -> tuple[Instance, ...]:
    """The domains of a switch."""
    if fabric.domains == 1:
        return (Instance(switch, "both", switch.neighbours),)
    split = {domain: tuple(each for each in switch.neighbours if each.domain == domain) for domain in DOMAINS}
    return tuple(Instance(switch, domain, split[domain]) for domain in DOMAINS)


def instance(fabric: Fabric, switch: str, domain: str) -> Instance:
    """One of them, by names; ValueError that says which there are."""
    there = {(each.name, one.domain): one for each in fabric.switches for one in instances(fabric, each)}
    if (switch, domain) not in there:
        told = ", ".join(f"{name} {of}" for name, of in there)
        raise ValueError(f"there is no domain {domain!r} of a switch {switch!r}; there are: {told}")
    return there[switch, domain]


def communities(fabric: Fabric) -> tuple[Community, ...]:
    """What announced communities mean: ranks as MEDs have them, and last of all what is asked to be taken last.

    Where a route has more than one, the last of them counts: whose rules end with the first that fits reads this backwards.
    Of cores and of other switches (`MARKED`; RFC 8326 4.1: in all EBGP sessions): communities travel on, LOCAL_PREF does not.
    A switch that heeded them of cores only would prefer the way over the other one to a core's own whose routes are marked.
    """
    ranks = [Community(fabric.core_asn, med, 1000 - med) for med in fabric.meds]
    return (*ranks, Community(*GRACEFUL_SHUTDOWN, 0))


def believed(fabric: Fabric, neighbour: Neighbour, version: int = 4) -> tuple[Range, ...]:
    """What this neighbour may announce; nothing else is taken from it."""
    of_shards = fabric.inside if neighbour.domain == INSIDE else fabric.outside
    subscribers = _whole(fabric.floor) if neighbour.domain == INSIDE else ()
    everywhere = _whole(_defaults()) if neighbour.domain == OUTSIDE else ()
    legs = _whole(each.network for each in fabric.legs if each.domain == neighbour.domain)
    told = {
        CORE: of_shards,
        ACCESS: subscribers,
        INTERNET: everywhere,
        SWITCH: (*of_shards, *subscribers, *everywhere, *legs),
    }
    return _of(told[neighbour.kind], version)


def told_to(fabric: Fabric, neighbour: Neighbour, version: int = 4) -> tuple[Range, ...]:
    """What a switch announces to this neighbour: nothing to cores, they have their gateways."""
    default = tuple(Range(each, each.prefixlen, each.prefixlen) for each in _defaults())
    told = {CORE: (), ACCESS: default, INTERNET: fabric.outside, SWITCH: believed(fabric, neighbour, version)}
    return _of(told[neighbour.kind], version)


def _of(ranges: Iterable[Range], version: int) -> tuple[Range, ...]:
    return tuple(each for each in ranges if each.prefix.version == version)


def _defaults() -> tuple[Network, ...]:
    return (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))


def _whole(networks: Iterable[Network]) -> tuple[Range, ...]:
    return tuple(Range(each, each.prefixlen, each.max_prefixlen if each.prefixlen else 0) for each in networks)


def policies(fabric: Fabric, version: int = 4) -> Iterator[tuple[Shard, Network, IPv4Address | IPv6Address]]:
    """Shard, source prefix, and the address that it is steered to."""
    for shard in fabric.shards:
        target = shard.address if version == 4 else shard.address6
        for source in shard.sources:
            if source.version == version and target is not None:
                yield shard, source, target


def rules(fabric: Fabric, one: Instance, version: int = 4) -> list[str]:
    """Linux: lines for `ip -batch` (`ip -6 -batch`): the policy, and the floor beneath it; none where no subscribers are.

    Where a lookup in a shard's table finds nothing the next rule is asked, and so at last the floor. It is mandatory: FRR
    leaves the table empty for some 70 ms while it looks for another next hop.
    """
    if not one.inside:
        return []
    lines = [_rule(shard.number, source) for shard, source, _ in policies(fabric, version)]
    lines += [f"rule add pref {FLOOR} from {each} blackhole" for each in fabric.floor if each.version == version]
    return lines + ([] if one.outside else [f"rule add pref {STRAY} lookup {STRAY_TABLE}"])


def _rule(shard: int, source: Network) -> str:
    return f"rule add pref {RULE + shard} from {source} lookup {TABLE + shard}"
