"""Rules between the fields of [bgp] and the rest of a configuration; two more lists of complaints for `checks`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import IPv4Address, ip_network
from itertools import pairwise

from krononat.locate import Complaint
from krononat.models import Config, Leg, Stick
from krononat.models_bgp import Bgp, BgpPeer
from routing import announcements

Complaints = Iterator[Complaint]

SOCKET_PATH_AT_MOST = 107  # bytes; sun_path of unix(7)
DOMAIN_OF = {"internal": "inside", "external": "outside", "both": "both"}


def refusals(config: Config) -> Complaints:
    """What makes [bgp] unusable."""
    if config.bgp:
        for look in (_peers, _meds, _community, _addresses, _aggregates, _socket):
            yield from look(config, config.bgp)


def doubts(config: Config) -> Complaints:
    """What is accepted, but likely not what was meant."""
    if config.bgp and config.bgp.shard_addresses is None:
        yield Complaint(("bgp",), "has no `shard-addresses`: nothing steers subscribers' packets to this core")
    if config.bgp and config.bgp.linger_ms > config.bgp.dead_after_ms:
        yield Complaint(("bgp", "linger-ms"), "is longer than `dead-after-ms`: a death would be told later than silence")


def leg_of(config: Config, peer: BgpPeer) -> tuple[str, Leg | Stick] | None:
    """Side and interface that a peer is on-link at; None where it is at none."""
    return next(((side, port) for side, port in config.interfaces.named() if peer.address in port.address.network), None)


def domain_of(config: Config, peer: BgpPeer) -> str:
    """Which routes a peer is told: inside, outside or both."""
    leg = leg_of(config, peer)
    return peer.domain or (DOMAIN_OF[leg[0]] if leg else "both")


def _peers(config: Config, bgp: Bgp) -> Complaints:
    seen: list[tuple[IPv4Address, IPv4Address | None]] = []
    for number, peer in enumerate(bgp.peer):
        path, leg = ("bgp", "peer", number), leg_of(config, peer)
        if leg is None:
            told = f"{peer.address} is on-link at no interface of this core"
            yield Complaint((*path, "address"), told, needs=(("interfaces",),))
        elif peer.address == leg[1].address.ip:
            yield Complaint((*path, "address"), f"{peer.address} is the core's own address")
        elif DOMAIN_OF[leg[0]] not in ("both", domain_of(config, peer)):
            yield Complaint((*path, "domain"), f"{peer.domain}, but {peer.address} is at interfaces.{leg[0]}")
        if (peer.address, peer.local) in seen:
            yield Complaint((*path, "address"), f"{peer.address} stands here twice")
        seen.append((peer.address, peer.local))
        yield from _session(config, bgp, number, peer)


def _session(config: Config, bgp: Bgp, number: int, peer: BgpPeer) -> Complaints:
    path = ("bgp", "peer", number)
    if peer.as_ == bgp.local_as:
        told = f"{peer.as_} is the core's own: sessions within one AS are not implemented in this release"
        yield Complaint((*path, "as"), told, needs=(("bgp", "local-as"),))
    own = [port.address.ip for _, port in config.interfaces.named()]
    if peer.local and bgp.profile == "per-core" and peer.local not in own:
        yield Complaint((*path, "local"), f"{peer.local} is no address of this core's interfaces", needs=(("interfaces",),))


def _meds(config: Config, bgp: Bgp) -> Complaints:
    """Equal ones would let a switch share a shard's packets between two cores."""
    names, counted = ("promoted", "primary", "leaving", "backup", "unfit", "rejoining"), {"leaving": 1, "unfit": 2}
    least = bgp.med.primary + 3
    if no_room := bgp.med.backup < least:
        told = f"{bgp.med.backup} is not above primary and the two of leaving, which lie between them: {least} at least"
        yield Complaint(("bgp", "med", "backup"), told)
    for better, name in pairwise(names):
        if no_room and "leaving" in (better, name):
            continue
        med, last = getattr(bgp.med, name), getattr(bgp.med, better) + counted.get(better, 0)
        if med <= last:
            told = f"{med} is not above {better}; the order is {' < '.join(names)}, so {last + 1} at least"
            yield Complaint(("bgp", "med", name), told)


def _community(config: Config, bgp: Bgp) -> Complaints:
    worst = max(bgp.med.rejoining, bgp.med.unfit + 2)
    if bgp.preference == "community" and max(bgp.local_as, worst) >= 1 << 16:
        told = "is told as LOCAL-AS:MED, of 16 bits each (RFC 1997): have both below 65536, or choose another preference"
        yield Complaint(("bgp", "preference"), told)


def _addresses(config: Config, bgp: Bgp) -> Complaints:
    for key, version in (("shard-addresses", 4), ("shard-addresses6", 6)):
        text = getattr(bgp, key.replace("-", "_"))
        if text is None:
            continue
        network, room = ip_network(text), announcements.shards_in(text, bgp.preference)
        if network.version != version:
            yield Complaint(("bgp", key), f"{text} is not a network of IPv{version}")
        elif room < config.shards:
            each = " (four addresses each)" if bgp.preference == "longest-prefix" else ""
            yield Complaint(("bgp", key), f"{text} has room for {room} shards{each}; there are {config.shards}")
        else:
            yield from _own_room(config, key, text)


def _own_room(config: Config, key: str, text: str) -> Complaints:
    network = ip_network(text)
    others = [(f"pool[{n}]", prefix) for n, pool in enumerate(config.pool) for prefix in pool.prefixes]
    others += [(f"subscribers[{n}]", group.prefix) for n, group in enumerate(config.subscribers)]
    others += [(f"interfaces.{side}", port.address.network) for side, port in config.interfaces.named()]
    for name, other in others:
        if other.version == network.version and network.overlaps(other):
            yield Complaint(("bgp", key), f"{text} overlaps {name} {other}: shard addresses are nobody's")


def _aggregates(config: Config, bgp: Bgp) -> Complaints:
    for number, text in enumerate(bgp.aggregates):
        if ip_network(text).prefixlen == 0:
            yield Complaint(("bgp", "aggregates", number), f"{text} is the way to everywhere; a switch must not believe it")


def _socket(config: Config, bgp: Bgp) -> Complaints:
    path = config.speaker_socket
    if not path.startswith("/"):
        yield Complaint(("bgp", "socket"), f"{path!r} is not an absolute path")
    elif len(path.encode()) > SOCKET_PATH_AT_MOST:
        yield Complaint(("bgp", "socket"), f"is longer than the {SOCKET_PATH_AT_MOST} bytes of a unix socket's path")
    elif wrong := sorted(set(re.sub(r"[A-Za-z0-9._/-]", "", path))):
        told = f"{path!r} has {' '.join(map(repr, wrong))} in it, which ExaBGP's configuration cannot name"
        yield Complaint(("bgp", "socket"), f"{told}: letters, digits, dots, dashes and underscores alone")
