"""The part of a bed that is about what may begin, and how: rules, bypasses, external addresses that are drained."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Network
from typing import TYPE_CHECKING, Any

import numpy as np

from shards.state import ACCEPT, DROP, REJECT, State, admitted
from tests import bed6
from tests.frames import ICMP, TCP, UDP, address

if TYPE_CHECKING:
    from tests.bed import Bed

GENERIC = {"ipip": 4, "6in4": 41, "gre": 47, "esp": 50, "sctp": 132}
PROTOCOLS = {"any": 0, "icmp": ICMP, "tcp": TCP, "udp": UDP} | GENERIC
ACTIONS = {"accept": ACCEPT, "drop": DROP, "reject": REJECT}
DIRECTIONS = {"outbound": 1, "inbound": 2, "both": 3}
EVERYWHERE = IPv4Network("0.0.0.0/0")


@dataclass(frozen=True)
class Rule:
    """A firewall rule."""

    direction: str
    protocol: str
    action: str
    internal: IPv4Network = EVERYWHERE
    remote: IPv4Network = EVERYWHERE
    internal_ports: tuple[int, int] = (0, 65535)
    remote_ports: tuple[int, int] = (0, 65535)


@dataclass(frozen=True)
class Bypass:
    """What is not translated; `inbound`: it may begin from outside."""

    protocol: str = "any"
    internal: IPv4Network = EVERYWHERE
    remote: IPv4Network = EVERYWHERE
    internal_ports: tuple[int, int] = (0, 65535)
    remote_ports: tuple[int, int] = (0, 65535)
    inbound: bool = False


@dataclass
class BedRules(bed6.Bed6):
    """What is given of it; `version` counts what was said of rules and bypasses."""

    rules: list[Rule] = field(default_factory=list)
    bypasses: list[Bypass] = field(default_factory=list)
    drained: set[int] = field(default_factory=set)  # external addresses that nobody is paired with anew

    def _say_rule(self, words: list[str]) -> None:
        self.version += 1
        told = pairs(words[2:-1])
        internal, remote = (IPv4Network(told.get(end, EVERYWHERE)) for end in ("internal", "remote"))
        self.rules.append(
            Rule(
                words[0], words[1], words[-1], internal, remote, port_range(told.get("internal-ports", "0-65535")),
                port_range(told.get("remote-ports", "0-65535")),
            )
        )  # fmt: skip

    def _say_bypass(self, words: list[str]) -> None:
        self.version += 1
        told = pairs([word for word in words[1:] if word != "inbound"])
        internal, remote = (IPv4Network(told.get(end, EVERYWHERE)) for end in ("internal", "remote"))
        ports = [port_range(told.get(f"{end}-ports", "0-65535")) for end in ("internal", "remote")]
        self.bypasses.append(Bypass(words[0], internal, remote, ports[0], ports[1], "inbound" in words))

    def _say_no(self, words: list[str]) -> None:
        """`no rule`, `no bypass`, `no rule6`: forget all of them."""
        self.version += 1
        told: list[Any] = {"rule": self.rules, "bypass": self.bypasses, "rule6": self.rules6}[words[0]]  # type: ignore[assignment]
        told.clear()

    def _say_drain(self, words: list[str]) -> None:
        self.drained.add(address(words[0]))

    def _say_undrain(self, words: list[str]) -> None:
        self.drained.discard(address(words[0]))


def pairs(words: list[str]) -> dict[str, str]:
    """Words that are keys and values by turns."""
    return dict(zip(words[::2], words[1::2], strict=True))


def port_range(text: str) -> tuple[int, int]:
    """Both ends of `80`, or of `80-90`."""
    low, _, high = text.partition("-")
    return int(low), int(high or low)


def fill_policy(state: State, bed: Bed) -> None:
    """What is given about rules and bypasses, and which version of them that is."""
    settings = state.settings[0]
    settings["rules"], settings["bypasses"], settings["rules6"] = len(bed.rules), len(bed.bypasses), len(bed.rules6)
    settings["rules_version"], settings["admitted"] = bed.version, admitted(bed.version)
    for number, rule in enumerate(bed.rules):
        row = state.rules[number]
        _fill_rule(row, number, rule)
        row["directions"], row["action"] = DIRECTIONS[rule.direction], ACTIONS[rule.action]
    for number, entry in enumerate(bed.bypasses):
        _fill_rule(state.bypasses[number], number, entry)
        state.bypasses[number]["directions"] = DIRECTIONS["both" if entry.inbound else "outbound"]
    state.externals["closed"] = np.isin(state.externals["address"], list(bed.drained))
    bed6.fill_rules(state, bed)


def _fill_rule(row: np.void, number: int, rule: Rule | Bypass) -> None:
    row["internal_network"], row["internal_mask"] = int(rule.internal.network_address), int(rule.internal.netmask)
    row["remote_network"], row["remote_mask"] = int(rule.remote.network_address), int(rule.remote.netmask)
    row["internal_port_low"], row["internal_port_high"] = rule.internal_ports
    row["remote_port_low"], row["remote_port_high"] = rule.remote_ports
    row["protocol"], row["number"] = PROTOCOLS[rule.protocol], number
