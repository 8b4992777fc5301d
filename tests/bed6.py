"""What a test bed may say of IPv6, and what that becomes in a State:

    subscribers6 2400:c0de::/44 each 56 of 100.64.0.0/20 tcp endpoint-independent
    pinhole tcp internal 2400:c0de:0:700::/56 internal-ports 80 remote 2600::/16
    rule6 inbound udp internal-ports 53 reject
    inside address6 2400:c0de:fff::1/64 gateway6 fe80::2

Of a `subscribers6` the n-th subscriber is the n-th of the IPv4 prefix that it names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING, Any

import numpy as np

from shards import neighbours
from shards.state import ACCEPT, BOTH, DROP, EXTERNAL, ICMP6, INTERNAL, REJECT, TCP, UDP, State
from tests.frames import address
from tests.frames6 import address6

if TYPE_CHECKING:
    from tests.bed import Bed, Port

PROTOCOLS = {"any": 0, "icmp": ICMP6, "tcp": TCP, "udp": UDP, "esp": 50}
ACTIONS = {"accept": ACCEPT, "drop": DROP, "reject": REJECT}
DIRECTIONS = {"outbound": 1, "inbound": 2, "both": 3}
FILTERINGS = ("endpoint-independent", "address-dependent", "address-and-port-dependent")
EVERYWHERE = IPv6Network("::/0")
HALF = (1 << 64) - 1


@dataclass(frozen=True)
class Prefix6:
    """IPv6 subscribers, and what filters what comes in to them."""

    network: IPv6Network
    each: int
    of: IPv4Network
    tcp: str = FILTERINGS[2]
    udp: str = FILTERINGS[2]
    other: str = FILTERINGS[2]
    transparent: bool = False

    def filtering(self, protocol: int) -> str:
        """Who may answer."""
        return {TCP: self.tcp, UDP: self.udp, 136: self.udp}.get(protocol, self.other)


@dataclass(frozen=True)
class Rule6:
    """A rule, or a pinhole."""

    direction: str
    protocol: str
    action: str
    internal: IPv6Network = EVERYWHERE
    remote: IPv6Network = EVERYWHERE
    internal_ports: tuple[int, int] = (0, 65535)
    remote_ports: tuple[int, int] = (0, 65535)


@dataclass
class Bed6:
    """The part of a bed that is about IPv6."""

    subscribers6: list[Prefix6] = field(default_factory=list)
    rules6: list[Rule6] = field(default_factory=list)
    pinholes: list[Rule6] = field(default_factory=list)
    transparent: set[int] = field(default_factory=set)  # IPv4 addresses of subscribers to whom all may come
    echo6: bool = True
    unsolicited6: bool = True  # whether who asks for a connection that nothing permits is told, after six seconds
    ipsec6: bool = True  # whether IPsec and HIP come in unasked
    version: int = 1

    def _say_subscribers6(self, words: list[str]) -> None:
        told = _pairs([word for word in words[1:] if word != "transparent"])
        default = told.get("filtering", FILTERINGS[2])
        self.subscribers6.append(
            Prefix6(
                IPv6Network(words[0]), int(told["each"]), IPv4Network(told["of"]), told.get("tcp", default),
                told.get("udp", default), told.get("other", default), "transparent" in words,
            )
        )  # fmt: skip

    def _say_transparent(self, words: list[str]) -> None:
        self.transparent.add(address(words[0]))

    def _say_echo6(self, words: list[str]) -> None:
        self.echo6 = words[0] == "on"

    def _say_unsolicited6(self, words: list[str]) -> None:
        """`silent` or `prohibited`."""
        self.unsolicited6 = words[0] == "prohibited"

    def _say_ipsec6(self, words: list[str]) -> None:
        """`pass` or `drop`."""
        self.ipsec6 = words[0] == "pass"

    def _say_rule6(self, words: list[str]) -> None:
        self.version += 1
        self.rules6.append(_rule(words[0], words[1], words[-1], _pairs(words[2:-1])))

    def _say_pinhole(self, words: list[str]) -> None:
        self.pinholes.append(_rule("inbound", words[0], "accept", _pairs(words[1:])))

    def prefix6_of(self, host: int) -> Prefix6 | None:
        """The subscriber prefix that holds an address."""
        fitting = [prefix for prefix in self.subscribers6 if IPv6Address(host) in prefix.network]
        return max(fitting, key=lambda prefix: prefix.network.prefixlen, default=None)

    def mate(self, host: int) -> int:
        """First IPv4 address of the subscriber with an IPv6 address."""
        prefix = self.prefix6_of(host)
        assert prefix
        each: int = next(p.each for p in self.subscribers if p.network == prefix.of)  # type: ignore[attr-defined]
        number = (host - int(prefix.network.network_address)) >> (128 - prefix.each)
        return int(prefix.of.network_address) + (number << (32 - int(each)))


def _pairs(words: list[str]) -> dict[str, str]:
    return dict(zip(words[::2], words[1::2], strict=True))


def _rule(direction: str, protocol: str, action: str, told: dict[str, str]) -> Rule6:
    internal, remote = (IPv6Network(told.get(end, "::/0")) for end in ("internal", "remote"))
    low, high = (tuple(map(int, told.get(f"{end}-ports", "0-65535").split("-"))) for end in ("internal", "remote"))
    return Rule6(direction, protocol, action, internal, remote, (low[0], low[-1]), (high[0], high[-1]))


def any_address(text: str) -> int:
    """Integer of an address of either kind."""
    return address6(text) if ":" in text else int(IPv4Address(text))


# --- as a State -----------------------------------------------------------------------------------------------------------


def fill(state: State, bed: Bed, order: list[int]) -> None:
    """Prefixes, rules, pinholes; `order`: of the IPv4 prefixes, as they stand in the state."""
    settings = state.settings[0]
    settings["prefixes6"] = len(bed.subscribers6)
    settings["pinholes"] = len(bed.pinholes)
    settings["echo6"], settings["unasked6"], settings["ipsec6"] = bed.echo6, bed.unsolicited6, bed.ipsec6
    networks = [bed.subscribers[number].network for number in order]
    for number, prefix in enumerate(sorted(bed.subscribers6, key=lambda p: -p.network.prefixlen)):
        row = state.prefixes6[number]
        row["network"], row["mask"] = int(prefix.network.network_address) >> 64, int(prefix.network.netmask) >> 64
        row["realm"], row["prefix"], row["shift"] = 1, networks.index(prefix.of), 64 - prefix.each
        for name in ("tcp", "udp", "other"):
            row[name] = FILTERINGS.index(getattr(prefix, name))
        row["transparent"] = prefix.transparent
    for host in bed.transparent:
        row = next(row for row in state.prefixes if host & int(row["mask"]) == int(row["network"]))
        account = int(row["first_account"]) + ((host - int(row["network"])) >> int(row["shift"]))
        state.accounts[account]["transparent"] = 1


def fill_rules(state: State, bed: Bed) -> None:
    """Rules and pinholes."""
    for rows, rules in ((state.rules6, bed.rules6), (state.pinholes, bed.pinholes)):
        for number, rule in enumerate(rules):
            _fill_rule(rows[number], number, rule)


def _fill_rule(row: np.void, number: int, rule: Rule6) -> None:
    for end, network in (("internal", rule.internal), ("remote", rule.remote)):
        row[f"{end}_high"], row[f"{end}_low"] = halves(int(network.network_address))
        row[f"{end}_mask_high"], row[f"{end}_mask_low"] = halves(int(network.netmask))
    row["internal_port_low"], row["internal_port_high"] = rule.internal_ports
    row["remote_port_low"], row["remote_port_high"] = rule.remote_ports
    row["directions"], row["action"] = DIRECTIONS[rule.direction], ACTIONS[rule.action]
    row["protocol"], row["number"] = PROTOCOLS[rule.protocol], number


def halves(host: int) -> tuple[int, int]:
    """Upper and lower half of an address."""
    return host >> 64, host & HALF


def host_of(row: Any) -> int:
    """Address of a neighbour's row."""
    return int(row["high"]) << 64 | int(row["middle"]) << 32 | int(row["address"])


def fill_port(state: State, number: int, side: int, port: Port, now: int) -> None:
    """The port's own address, what is on its link, and the way beyond."""
    row = state.ports[number]
    row["address6_high"], row["address6_low"] = halves(port.address6)
    row["length6"] = port.on_link6.prefixlen if port.on_link6 else 0
    inside = port.inside_gateway6 if side == BOTH else port.gateway6
    for name, gateway, there in (("internal", inside, side != EXTERNAL), ("external", port.gateway6, side != INTERNAL)):
        row[f"{name}_gateway6"] = want(state, number, gateway, now) if gateway and there else 0


def want(state: State, port: int, host: int, now: int) -> int:
    """Row of a neighbour, made if there is none."""
    high, low = (np.uint64(half) for half in halves(host))
    return int(neighbours.find6(state, port, high, low) or neighbours.want6(state, port, high, low, now))


def resolve(state: State, bed: Bed, host: int) -> None:
    """Let a neighbour be known before the packet that needs it comes."""
    for number, port in enumerate(each for _, each in bed.ports()):
        if port.on_link6 and IPv6Address(host) in port.on_link6:
            want(state, number, host, 0)
