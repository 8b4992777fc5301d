"""Rules between the fields of a configuration that are about what is translated, and to what (see `checks`)."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Network

from krononat.locate import ANY, Complaint, Path
from krononat.models import Bypass, Config
from krononat.values import EVERY_PORT

Complaints = Iterator[Complaint]

BYPASSES_AT_MOST = 1 << 12  # every new session asks each of them

_PRIVATE = tuple(map(IPv4Network, ("10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16")))  # RFC 1918, RFC 6598


def bypasses(config: Config) -> Complaints:
    """An entry is about somebody, and about subscribers of ours."""
    for number, entry in enumerate(config.bypass):
        path: Path = ("bypass", number)
        if entry.internal is None and entry.remote is None:
            told = "names neither `internal` nor `remote`: nothing would be translated at all"
            yield Complaint(path, told, needs=((*path, "internal"), (*path, "remote")))
        for key, ports in (("internal-ports", entry.internal_ports), ("remote-ports", entry.remote_ports)):
            if entry.protocol not in ("tcp", "udp") and ports != EVERY_PORT:
                told = f'needs `protocol = "tcp"` or "udp"; this entry is for {entry.protocol}'
                yield Complaint((*path, key), told, needs=((*path, "protocol"),))
        yield from _internal(config, path, entry)
    if len(config.bypass) > BYPASSES_AT_MOST:
        yield Complaint(("bypass",), f"{len(config.bypass):,} entries; at most {BYPASSES_AT_MOST:,}")


def _internal(config: Config, path: Path, entry: Bypass) -> Complaints:
    if entry.internal is None:
        if entry.announce:
            yield Complaint((*path, "announce"), "needs `internal`: what is to be announced?", needs=((*path, "internal"),))
    elif not any(entry.internal.overlaps(group.prefix) for group in config.subscribers):
        told = f"{entry.internal} holds no subscriber; who is not translated is one all the same: add it to [[subscribers]]"
        yield Complaint((*path, "internal"), told, needs=(("subscribers", ANY, "prefix"),))


def seen_inside(config: Config) -> Complaints:
    """Private addresses that everybody outside would see."""
    for number, entry in enumerate(config.bypass):
        if entry.remote is not None and any(entry.remote.subnet_of(prefix) for prefix in _PRIVATE):
            continue
        for group in config.subscribers:
            told = group.prefix if entry.internal is None else entry.internal
            private = any(told.subnet_of(prefix) for prefix in _PRIVATE)
            if private and told.overlaps(group.prefix) and entry.remote is None:
                yield Complaint(("bypass", number), f"lets {told}, which is private, be seen by everybody; name `remote`")
                break


def closures(config: Config) -> Complaints:
    """What is closed of a pool is its own, and not all of it."""
    for number, pool in enumerate(config.pool):
        path: Path = ("pool", number)
        told = [((*path, "drain", index), IPv4Network(address)) for index, address in enumerate(pool.drain)]
        told += [((*path, "exclude", index), prefix) for index, prefix in enumerate(pool.exclude)]
        for place, closed in told:
            if not any(closed.subnet_of(prefix) for prefix in pool.prefixes):
                yield Complaint(place, f"{closed} is in none of this pool's prefixes", needs=((*path, "prefixes", ANY),))
            elif pool.icmp_address and pool.icmp_address in closed and place[2] == "drain":
                yield Complaint(place, f"{closed} is kept for ICMP errors already", needs=((*path, "icmp-address"),))
        shut = {host for _, closed in told for host in closed}
        if shut and all(host in shut or host == pool.icmp_address for prefix in pool.prefixes for host in prefix):
            yield Complaint((*path, "exclude" if pool.exclude else "drain"), "leaves nothing of this pool to be handed out")


def announced(config: Config) -> Iterator[tuple[int, IPv4Network]]:
    """(shard, prefix) of subscribers who are to be reached by their own addresses, as entries say."""
    shards = {pool.name: pool.shard for pool in config.pool}
    for entry in config.bypass:
        for group in config.subscribers:
            if entry.announce and entry.internal and entry.internal.overlaps(group.prefix):
                narrower = max(entry.internal, group.prefix, key=lambda prefix: prefix.prefixlen)
                yield shards[group.pool], narrower


def untold(config: Config) -> Complaints:
    """What others are to be told of their SYNs is an ICMP error like others."""
    icmp = config.icmp
    if icmp.errors_per_second and "external" in icmp.towards:
        return
    why = '`icmp.towards` has no "external"' if icmp.errors_per_second else "`icmp.errors-per-second` is 0"
    for table, told in (("nat", config.nat), ("firewall6", config.firewall6)):
        if told.unsolicited_syn != "silent" and "unsolicited_syn" in told.model_fields_set:
            yield Complaint((table, "unsolicited-syn"), f"tells nobody outside: {why}")


REFUSALS = (bypasses, closures)
DOUBTS = (seen_inside, untold)
