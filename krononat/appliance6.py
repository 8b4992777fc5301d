"""What a configuration says of IPv6, written into the memory of a core (see `appliance`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Any, NamedTuple

import numpy as np

from krononat.checks6 import subscribers6
from krononat.client import BAD_CONFIG, Trouble
from krononat.models import Config, Leg, Pinhole, Rule, Stick
from shards import protocols
from shards.state import (
    ACCEPT,
    ADDRESS_AND_PORT_DEPENDENT,
    ADDRESS_DEPENDENT,
    DROP,
    ENDPOINT_INDEPENDENT,
    EXTERNAL,
    ICMP6,
    INBOUND,
    INTERNAL,
    OUTBOUND,
    REJECT,
    State,
)

_ANYWHERE = IPv6Network("::/0")
_HALF = (1 << 64) - 1

_ACTIONS = {"accept": ACCEPT, "drop": DROP, "reject": REJECT}
_DIRECTIONS = {"outbound": 1 << OUTBOUND, "inbound": 1 << INBOUND, "both": 1 << OUTBOUND | 1 << INBOUND}
_FILTERINGS = {
    "endpoint-independent": ENDPOINT_INDEPENDENT,
    "address-dependent": ADDRESS_DEPENDENT,
    "address-and-port-dependent": ADDRESS_AND_PORT_DEPENDENT,
}


class Rule6(NamedTuple):
    """A rule that IPv6 packets meet, its place among all rules, and whom it is for."""

    rule: Rule
    number: int
    scope: IPv6Network | None


def rules6(config: Config, ordered: Sequence[tuple[Rule, IPv4Network | None]]) -> Iterator[Rule6]:
    """Of all rules, in their order, those that name no IPv4 address; a subscriber's with his IPv6 prefix. Devices have none."""
    for number, (rule, scope) in enumerate(ordered):
        if any(prefix is not None and prefix.version == 4 for prefix in (rule.internal, rule.remote)):
            continue
        if scope is None:
            yield Rule6(rule, number, None)
        elif (own := prefix6_of(config, scope)) is not None:
            yield Rule6(rule, number, own)


def prefix6_of(config: Config, subscriber: IPv4Network) -> IPv6Network | None:
    """IPv6 prefix of the subscriber with this IPv4 prefix; None for devices, and for those who have none."""
    for _, group, prefix in subscribers6(config):
        if subscriber.subnet_of(group.prefix) and subscriber.prefixlen == group.each:
            ordinal = (int(subscriber.network_address) - int(group.prefix.network_address)) >> (32 - group.each)
            return IPv6Network((int(prefix.network_address) + (ordinal << (128 - group.each6)), group.each6))
    return None


def has_permissions(config: Config) -> bool:
    """Whether some sessions of IPv6 let in more than their remote."""
    strict = "address-and-port-dependent"
    told = [group.filtering6 for _, group, _ in subscribers6(config)]
    return any(strict != kind for each in told for kind in (each.tcp, each.udp, each.other))


def fill(state: State, config: Config) -> None:
    """Prefixes and who is transparent. The IPv4 prefixes stand there already, longest first."""
    settings = state.settings[0]
    groups = sorted(subscribers6(config), key=lambda told: -told[2].prefixlen)
    settings["prefixes6"] = len(groups)
    mates = sorted(config.subscribers, key=lambda group: -group.prefix.prefixlen)
    for row, (_, group, prefix) in zip(state.prefixes6, groups, strict=False):
        mate = next(number for number, other in enumerate(mates) if other.prefix == group.prefix)
        row["network"], row["mask"] = int(prefix.network_address) >> 64, int(prefix.netmask) >> 64
        row["realm"], row["prefix"], row["shift"] = state.prefixes[mate]["realm"], mate, 64 - group.each6
        for name in ("tcp", "udp", "other"):
            row[name] = _FILTERINGS[getattr(group.filtering6, name)]
        row["transparent"] = group.transparent
        first = int(state.prefixes[mate]["first_account"])
        for subscriber in group.subscriber:
            if subscriber.transparent:
                ordinal = (int(subscriber.prefix.network_address) - int(group.prefix.network_address)) >> (32 - group.each)
                state.accounts[first + ordinal]["transparent"] = 1


def fill_rules(state: State, config: Config, rules: Sequence[Rule6], at: int, pinholes_at: int) -> None:
    """Rules from row `at` on, and pinholes; see `appliance.fill_rules`."""
    for row, told in zip(state.rules6[at:], rules, strict=False):
        _fill_rule(row, told.rule, told.number, told.scope)
        row["directions"], row["action"] = _DIRECTIONS[told.rule.direction], _ACTIONS[told.rule.action]
    for number, (row, hole) in enumerate(zip(state.pinholes[pinholes_at:], config.pinhole, strict=False)):
        _fill_rule(row, hole, number, None)
        row["directions"], row["action"] = 1 << INBOUND, ACCEPT


def _fill_rule(row: np.void, told: Rule | Pinhole, number: int, scope: IPv6Network | None) -> None:
    row["hits"] = 0
    for end, network in (("internal", told.internal or scope or _ANYWHERE), ("remote", told.remote or _ANYWHERE)):
        row[f"{end}_high"], row[f"{end}_low"] = halves(network.network_address)
        row[f"{end}_mask_high"], row[f"{end}_mask_low"] = halves(network.netmask)
    row["internal_port_low"], row["internal_port_high"] = told.internal_ports
    row["remote_port_low"], row["remote_port_high"] = told.remote_ports
    row["protocol"], row["number"] = _number_of(told.protocol), number


def _number_of(protocol: str) -> int:
    """What a rule's protocol is in IPv6; 0 for any."""
    return {"any": 0, "icmp": ICMP6}[protocol] if protocol in ("any", "icmp") else protocols.number(protocol)


def halves(address: Any) -> tuple[int, int]:
    """Upper and lower half of an IPv6 address."""
    return int(address) >> 64, int(address) & _HALF


def fill_port(state: State, number: int, port: Leg | Stick) -> None:
    """A port's own address and what is on its link."""
    own: IPv6Interface | None = port.address6
    if own is not None:
        row = state.ports[number]
        row["address6_high"], row["address6_low"] = halves(own.ip)
        row["length6"] = own.network.prefixlen


def gateways6(port: Leg | Stick, side: int) -> Iterator[tuple[int, IPv6Address]]:
    """(INTERNAL or EXTERNAL, address) of the IPv6 gateways of a port."""
    if isinstance(port, Leg):
        told = [(side, port.gateway6)]
    else:
        told = [(INTERNAL, port.internal_gateway6), (EXTERNAL, port.external_gateway6)]
    yield from ((side, gateway) for side, gateway in told if gateway is not None)


def fill_gateways(state: State, number: int, port: Leg | Stick) -> None:
    """Rows of the gateways, which are asked for at once and stay."""
    # Late, because whether this module is compiled or plain is decided by whoever imports it first (see shards.jit).
    from shards import neighbours

    row = state.ports[number]
    for side, gateway in gateways6(port, int(row["side"])):
        high, low = (np.uint64(half) for half in halves(gateway))
        at = neighbours.want6(state, number, high, low, 0)
        if at == 0:
            raise Trouble("no room for a gateway", f"the neighbours around {gateway} are taken", status=BAD_CONFIG)
        state.neighbours[at]["kept"] = 1
        row["internal_gateway6" if side == INTERNAL else "external_gateway6"] = at
