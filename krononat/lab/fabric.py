"""The laboratory `cluster` with switches that route by themselves: every core talks BGP and BFD to them, nobody else steers.

    c1 ──┐                                                                            ┌── h1
    c2 ──┤ access ──┬── ain ── s1.in0  s1.in1  s2.in0 …   s1.out0  s1.out1 … ── aout ─┬─ core
    users┘          └── bin ── s1.in0b s1.in1b …          s1.out0b …        ── bout ──┘      └── hosts
                        │ other                                                  │ other
                        └ ain — bin                                              └ aout — bout
                          sN.fabric0 ── fabric: bridge 192.168.77.0/24, replication only

Each switch (a, and b in another AS) has two domains with nothing in common, as VRFs have: two namespaces with a daemon each.
With one domain there is one namespace, `tor`, and only rules keep subscribers' packets from the Internet. The routers of access
and Internet learn from both switches and share their packets among them. Addresses of links: `legs`.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path

from krononat.lab import cluster, legs, sixth
from krononat.lab.cluster import INSIDE as SUBSCRIBERS
from krononat.lab.cluster import OUTSIDE as EXTERNAL
from krononat.lab.cluster import Wanted
from krononat.lab.legs import Link
from krononat.lab.topology import End, Topology, links, routes
from routing import announcements
from routing.fabric import (
    ACCESS,
    CORE,
    DOMAINS,
    INSIDE,
    INTERNET,
    OUTSIDE,
    SWITCH,
    Bfd,
    Fabric,
    Neighbour,
    Network,
    Range,
    Shard,
    Switch,
    instances,
)

SHARD_ADDRESSES = IPv4Network("10.255.0.0/22")

_AROUND = """
# end         address            checksums   end          address             checksums
c1.eth0       100.64.0.11/24     complete    access.c1    100.64.0.1/24       partial
c2.eth0       100.64.16.11/24    partial     access.c2    100.64.16.1/24      partial
users.eth0    10.9.0.2/30        complete    access.users 10.9.0.1/30         partial
core.h1       198.51.100.1/25    partial     h1.eth0      198.51.100.10/25    partial
core.hosts    10.9.1.1/30        partial     hosts.eth0   10.9.1.2/30         complete
"""

_ROUTES = """
# node    to                  via
c1        default             100.64.0.1
c2        default             100.64.16.1
h1        default             198.51.100.1
users     default             10.9.0.1
hosts     default             10.9.1.1
core      198.51.100.128/25   10.9.1.2
"""

# Many frames: all servers share a CPU or two here, and while a core waits for its turn, what an everyday program's window
# holds (4 MiB, tcp_wmem) comes at once and must not push out a datagram of others.
_CONFIG = """\
[server]
name = "{server}"
core = {number}
cpu = {cpu}
{interfaces}
[io]
spare = {spare}
frames = 32768

[memory]
sessions = {sessions}

[bgp]
local-as = {asn}
preference = "{preference}"
hold-time-s = {hold_s}
dead-after-ms = {dead_after}
shard-addresses = "{shard_addresses}"
socket = "{folder}/{server}.bgp"
{six}{aggregates}"""

_INTERFACE = """
{table}
name = "{device}"
address = "{address}"
gateway = "{gateway}"
"""

_LOOPBACK = """
[interfaces.loopback]
address = "{address}/{length}"
"""

_BFD = """
[bfd]
interval-ms = {ms}
multiplier = {times}
"""

_PEER = """
[[bgp.peer]]
address = "{address}"
as = {asn}
domain = "{domain}"
"""


def switches(wanted: Wanted) -> tuple[str, ...]:
    """Names of the switches."""
    return legs.LETTERS[: wanted.tors]


def core_legs(wanted: Wanted, core: str) -> tuple[Link, ...]:
    """The legs of a core: inside to every switch, then outside."""
    return tuple(legs.leg(core, switch, domain, wanted.domains) for domain in DOMAINS for switch in switches(wanted))


def shunts(wanted: Wanted) -> dict[str, IPv4Address]:
    """The address of every core that the others send packets to."""
    return {
        core: legs.loopback(core) if wanted.tors > 1 else legs.leg(core, "a", OUTSIDE).address for core in cluster.cores(wanted)
    }


def check(wanted: Wanted) -> None:
    """ValueError for what cannot be built."""
    cluster.check(wanted)
    if not 1 <= wanted.cores <= legs.CORES_AT_MOST:
        raise ValueError(f"1 to {legs.CORES_AT_MOST} cores a server")
    if wanted.tors == 2 and wanted.domains == 1:
        raise ValueError("two switches have two domains; have one switch, or two domains")


# --- what is connected to what ---------------------------------------------------------------------------------------------


def topology(wanted: Wanted, folder: Path) -> Topology:
    """The whole of it; in the folder are the files that `cluster.furnish` writes. ValueError for what cannot be built."""
    check(wanted)
    cores = cluster.cores(wanted)
    drawn = [*_uplinks(wanted), *(pair for core in cores for pair in _legs(wanted, core))]
    drawn += [_replicating(n) for n in range(1, wanted.servers + 1)]
    to_users = tuple(("access", str(cluster.subscribers_of(shard)), "10.9.0.2") for shard in range(wanted.shards))
    return Topology(
        "cluster",
        links(_AROUND) + tuple(drawn),
        routes(_ROUTES) + to_users,
        cluster.bridges(wanted),
        (*ROUTERS, *nodes(wanted)),
        {cluster.label(wanted, core): config(wanted, core, folder) for core in sorted(cores)},
        six=sixth.addresses(wanted, _links(wanted)),
        routes6=sixth.routes(wanted),
    )


def _links(wanted: Wanted) -> tuple[Link, ...]:
    """Every link of a switch."""
    ups = [legs.uplink(switch, domain, wanted.domains) for switch in switches(wanted) for domain in DOMAINS]
    others = [legs.between(domain) for domain in DOMAINS if wanted.tors == 2]
    return (*ups, *others, *(link for core in cluster.cores(wanted) for link in core_legs(wanted, core)))


def nodes(wanted: Wanted) -> tuple[str, ...]:
    """Namespaces of the switches: of each domain one."""
    return tuple(
        dict.fromkeys(legs.node_of(switch, domain, wanted.domains) for switch in switches(wanted) for domain in DOMAINS)
    )


ROUTERS = ("access", "core")  # namespaces of those beside them: of subscribers, and of the Internet


def _uplinks(wanted: Wanted) -> Iterator[tuple[End, End]]:
    for switch in switches(wanted):
        for domain, router in zip((INSIDE, OUTSIDE), ROUTERS, strict=True):
            yield _drawn(legs.uplink(switch, domain, wanted.domains), router)
    for domain in DOMAINS if wanted.tors == 2 else ():
        yield _drawn(legs.between(domain), legs.node_of("b", domain, wanted.domains))


def _legs(wanted: Wanted, core: str) -> Iterator[tuple[End, End]]:
    for link in core_legs(wanted, core):
        switch, own = _drawn(link, cluster.node_of(core))
        yield cluster.wide(switch), cluster.wide(own._replace(address=None))


def _replicating(n: int) -> tuple[End, End]:
    address = f"{cluster.FABRIC.network_address + n}/24"
    ends = End("fabric", f"s{n}", None, True, True), End(f"s{n}", "fabric0", address, False, True)
    return cluster.wide(ends[0]), cluster.wide(ends[1])


def _drawn(link: Link, node: str) -> tuple[End, End]:
    return End(link.node, link.port, str(link.own), False, True), End(node, link.device, str(link.other), False, True)


# --- what a core is told ---------------------------------------------------------------------------------------------------


def config(wanted: Wanted, core: str, folder: Path) -> str:
    """Configuration of a core, without its [control]."""
    server, _, number = core.partition("/")
    head = _CONFIG.format(
        server=server,
        number=number,
        cpu=cluster.cpu_of(wanted, core),
        interfaces="".join(_interface(wanted, link) for link in core_legs(wanted, core)) + _loopback(wanted, core),
        spare=str(wanted.spare).lower(),
        sessions=wanted.sessions,
        asn=legs.CORE_ASN,
        preference=wanted.preference,
        hold_s=wanted.hold_s,
        dead_after=wanted.dead_after_ms,
        shard_addresses=SHARD_ADDRESSES,
        folder=folder,
        aggregates=_aggregates(wanted, core),
        six=sixth.of_bgp(wanted),
    )
    peers = (
        _PEER.format(address=link.own.ip, asn=legs.ASNS[link.switch], domain=link.domain) for link in core_legs(wanted, core)
    )
    bfd = _BFD.format(ms=wanted.bfd_ms, times=wanted.bfd_times) if wanted.bfd_ms else ""
    return head + "".join(peers) + bfd + cluster.common(wanted, core, folder, lambda shard: sixth.of_subscribers(wanted, shard))


def _aggregates(wanted: Wanted, core: str) -> str:
    """What a reserve announces all the time: wide prefixes that all of its shards' are in."""
    if core not in cluster.segments(wanted):
        return ""
    first, count = cluster.segments(wanted)[core]
    external = cluster.external_of(first).supernet(count.bit_length() - 1)
    each = announcements.SHARD_BITS if wanted.preference == "longest-prefix" else 0
    inside = IPv4Network((shard_address(wanted, first), 33 - count.bit_length() - each))
    return f'aggregates = ["{external}", "{inside}"]\n'


def _loopback(wanted: Wanted, core: str) -> str:
    return _LOOPBACK.format(address=legs.loopback(core), length=legs.LOOPBACKS.prefixlen) if wanted.tors > 1 else ""


def _interface(wanted: Wanted, link: Link) -> str:
    name = {INSIDE: "interfaces.internal", OUTSIDE: "interfaces.external"}[link.domain]
    table = f"[[{name}]]" if wanted.tors > 1 else f"[{name}]"
    told = _INTERFACE.format(table=table, device=link.device, address=link.other, gateway=link.own.ip)
    return told + sixth.of_interface(wanted, link)


# --- what the switches are told --------------------------------------------------------------------------------------------


def shard_address(wanted: Wanted, shard: int) -> IPv4Address:
    """What a shard's subscribers' packets are steered to."""
    return IPv4Address(announcements.shard_address(str(SHARD_ADDRESSES), shard, wanted.preference))  # type: ignore[arg-type]


def value(wanted: Wanted) -> Fabric:
    """The switches as `routing` has them."""
    return Fabric(
        shards=tuple(
            Shard(shard, _sources(wanted, shard), shard_address(wanted, shard), _address6(wanted, shard))
            for shard in range(wanted.shards)
        ),
        inside=(Range(SHARD_ADDRESSES, SHARD_ADDRESSES.prefixlen, 32), *sixth.inside(wanted)),
        outside=(Range(EXTERNAL, EXTERNAL.prefixlen, 32), *sixth.outside(wanted)),
        floor=(SUBSCRIBERS, *((sixth.SUBSCRIBERS,) if wanted.six else ())),
        legs=(*legs.NETWORKS, *sixth.networks(wanted)),
        switches=tuple(_switch(wanted, name) for name in switches(wanted)),
        core_asn=legs.CORE_ASN,
        domains=wanted.domains,
        hold_s=wanted.hold_s,
        bfd=Bfd(wanted.bfd_ms, wanted.bfd_times) if wanted.bfd_ms else None,
    )


def _sources(wanted: Wanted, shard: int) -> tuple[Network, ...]:
    return (cluster.subscribers_of(shard), *((sixth.subscribers_of(shard),) if wanted.six else ()))


def _address6(wanted: Wanted, shard: int) -> IPv6Address | None:
    return sixth.shard_address(wanted, shard) if wanted.six else None


def _switch(wanted: Wanted, name: str) -> Switch:
    neighbours = [
        _core_at(wanted, core, link)
        for core in sorted(cluster.cores(wanted))
        for link in core_legs(wanted, core)
        if link.switch == name
    ]
    neighbours.append(neighbour("access", ACCESS, legs.uplink(name, INSIDE, wanted.domains), legs.ACCESS_ASN))
    neighbours.append(neighbour("core", INTERNET, legs.uplink(name, OUTSIDE, wanted.domains), legs.INTERNET_ASN))
    neighbours += [_other(name, domain) for domain in DOMAINS if wanted.tors == 2]
    if not wanted.six:
        neighbours = [each._replace(own6=None, address6=None) for each in neighbours]
    return Switch(name, legs.ASNS[name], legs.uplink(name, INSIDE).own.ip, tuple(neighbours))


def _core_at(wanted: Wanted, core: str, link: Link) -> Neighbour:
    found = neighbour(f"{core.replace('/', 'c')}{legs.SHORT[link.domain]}", CORE, link, legs.CORE_ASN)
    return found._replace(loopback=legs.loopback(core)) if wanted.tors > 1 and link.domain == INSIDE else found


def neighbour(name: str, kind: str, link: Link, asn: int) -> Neighbour:
    """Who is at the far end of a link of a switch."""
    own6, address6 = (end.ip for end in sixth.ends_of(link))
    return Neighbour(name, kind, link.domain, link.port, link.own, link.address, asn, own6=own6, address6=address6)


def _other(name: str, domain: str) -> Neighbour:
    link = legs.between(domain)
    if name == "b":
        link = link._replace(own=link.other, other=link.own)
    return neighbour(f"other{legs.SHORT[domain]}", SWITCH, link, legs.ASNS["b" if name == "a" else "a"])


def node_fabrics(wanted: Wanted) -> dict[str, tuple[Fabric, str, str]]:
    """Of every namespace of a switch: fabric, switch, domain; for `routing.fabric.instance`."""
    told = value(wanted)
    return {
        legs.node_of(switch.name, OUTSIDE if one.domain == OUTSIDE else INSIDE, wanted.domains): (told, switch.name, one.domain)
        for switch in told.switches
        for one in instances(told, switch)
    }
