"""Rules between the fields of a configuration that are about IPv6 (see `checks`)."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv6Address, IPv6Network

from krononat.locate import ANY, Complaint, Path
from krononat.models import Config, Leg, Rule, Stick, Subscribers
from krononat.values import EVERY_PORT

Complaints = Iterator[Complaint]


def subscribers6(config: Config) -> Iterator[tuple[int, Subscribers, IPv6Network]]:
    """(number, group, IPv6 prefix) of every subscriber prefix that has one."""
    for number, group in enumerate(config.subscribers):
        if group.prefix6 is not None:
            yield number, group, group.prefix6


def prefixes(config: Config) -> Complaints:
    """An IPv6 prefix has as many subscribers as its IPv4 one, since they are the same; no two overlap."""
    seen: list[tuple[int, IPv6Network]] = []
    for number, group, prefix in subscribers6(config):
        path: Path = ("subscribers", number, "prefix6")
        if group.each6 < prefix.prefixlen or prefix.prefixlen > 64:
            yield Complaint((*path[:2], "each6"), f"/{group.each6} holds more than {prefix}", needs=(path,))
        elif (count := 1 << (group.each6 - prefix.prefixlen)) != (four := 1 << max(group.each - group.prefix.prefixlen, 0)):
            told = (
                f"{prefix} has {count:,} subscribers (/{group.each6} each), {group.prefix} has {four:,}: they are the same ones"
            )
            yield Complaint(path, told, needs=((*path[:2], "prefix"), (*path[:2], "each"), (*path[:2], "each6")))
        for other, network in seen:
            if prefix.overlaps(network):
                yield Complaint(path, f"{prefix} overlaps subscribers[{other}] {network}")
        seen.append((number, prefix))


def transparent(config: Config) -> Complaints:
    """Only who has IPv6 can be transparent."""
    for number, group in enumerate(config.subscribers):
        if group.prefix6 is None and group.transparent:
            told = "means nothing without `prefix6`: IPv4 is translated, not filtered"
            yield Complaint(("subscribers", number, "transparent"), told, needs=(("subscribers", number, "prefix6"),))
        for index, subscriber in enumerate(group.subscriber):
            if group.prefix6 is None and subscriber.transparent:
                path = ("subscribers", number, "subscriber", index, "transparent")
                yield Complaint(path, "means nothing without `prefix6`", needs=(("subscribers", number, "prefix6"),))


def interfaces(config: Config) -> Complaints:
    """Where subscribers have IPv6 every interface has an address of it: errors come from there, and neighbours ask for it."""
    wanted = any(True for _ in subscribers6(config))
    for path, port in config.interfaces.placed():
        if wanted and port.address6 is None:
            yield Complaint(path, "needs `address6`: there are subscribers with IPv6", needs=((*path, "address6"),))
        for key, gateway in gateways6_of(port):
            if port.address6 is None:
                yield Complaint((*path, key), "means nothing without `address6`", needs=((*path, "address6"),))
            elif not gateway.is_link_local and gateway not in port.address6.network:
                told = f"{gateway} is neither link-local nor in the interface's network {port.address6.network}"
                yield Complaint((*path, key), told, needs=((*path, "address6"),))
            elif gateway == port.address6.ip:
                yield Complaint((*path, key), f"{gateway} is the core's own address")


def gateways6_of(port: Leg | Stick) -> Iterator[tuple[str, IPv6Address]]:
    """(key, address) of a port's gateways."""
    for key in ("gateway6", "internal_gateway6", "external_gateway6"):
        gateway = getattr(port, key, None)
        if gateway is not None:
            yield key.replace("_", "-"), gateway


def rules(config: Config) -> Complaints:
    """A rule is about one kind of addresses."""
    for number, rule in enumerate(config.rule):
        if len(versions(rule)) > 1:
            told = f"{rule.remote} and {rule.internal} are of two kinds; no packet is both"
            yield Complaint(("rule", number, "remote"), told, needs=(("rule", number, "internal"),))


def versions(rule: Rule) -> set[int]:
    """Versions of the addresses that a rule names."""
    return {prefix.version for prefix in (rule.internal, rule.remote) if prefix is not None}


def pinholes(config: Config) -> Complaints:
    """A pinhole leads to a subscriber."""
    networks = [prefix for _, _, prefix in subscribers6(config)]
    for number, hole in enumerate(config.pinhole):
        path: Path = ("pinhole", number)
        if not any(hole.internal.subnet_of(network) for network in networks):
            told = f"{hole.internal} is in no `prefix6` of [[subscribers]]"
            yield Complaint((*path, "internal"), told, needs=(("subscribers", ANY, "prefix6"),))
        for key, ports in (("internal-ports", hole.internal_ports), ("remote-ports", hole.remote_ports)):
            if hole.protocol not in ("tcp", "udp") and ports != EVERY_PORT:
                told = f'needs `protocol = "tcp"` or "udp"; this pinhole is for {hole.protocol}'
                yield Complaint((*path, key), told, needs=((*path, "protocol"),))


REFUSALS = (prefixes, transparent, interfaces, rules, pinholes)
