"""What is given in a scenario, as the configuration of a real core; and what cannot be given to one, with the reason.

Every field of what can be given has its place here. One that has none, and is not what it is by default, is an error: whoever
adds a word to scenarios says here what it is in a configuration, or why there is no such thing.
"""

from __future__ import annotations

import json
import math
from dataclasses import MISSING, fields
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

from krononat import config
from krononat.models import Config
from shards.state import BOTH, INTERNAL
from tests.bed import Bed, Port, Prefix
from tests.bed6 import Prefix6, Rule6
from tests.bed_pools import Pool
from tests.bed_rules import PROTOCOLS, Bypass, Rule
from tests.frames import TCP, UDP, dotted, spell
from tests.limits import CLASSES
from tests.scenario import Scenario

SESSIONS = 4000  # room for so many
FRAMES = 2048

Table = dict[str, Any]


class Unwired(Exception):
    """A real core that is alone cannot be given this, as the sentence says."""


def why_not(scenario: Scenario) -> str:
    """Why a scenario cannot be played to a real core that is alone; empty where it can."""
    try:
        _refuse(scenario.bed)
    except Unwired as reason:
        return str(reason)
    told = [f"{step.verb} {step.told}" for step in scenario.steps]
    if any(words.startswith(("now shard", "now peer", "from ")) for words in told):
        return CLUSTER
    if any(words.split()[:2] in [["now", word] for word in _APPLIED] for words in told):
        return APPLY
    return BFD if any(words.startswith("now leg") and "peer lost" in words for words in told) else ""


CLUSTER = "needs other cores: the laboratories of clusters have those (tests/test_cluster_lab.py, test_shunt.py)"
BFD = "needs a neighbour that speaks BFD: tests/test_bfd_live.py and test_legs_lab.py have one"
_APPLIED = ("rule", "rule6", "bypass", "no", "drain", "undrain", "add", "remove")
APPLY = "needs `krononat config apply` while it runs: tests/test_reload.py and test_growth.py have that"
PORTS = "rules of a configuration name ports of TCP or of UDP only"
SECONDS = "timers of a configuration are whole seconds"


def of(bed: Bed, name: str, socket: Path) -> str:
    """Configuration (TOML) of a core with this bed, whose clock may be moved; `Unwired` where there can be none."""
    _refuse(bed)
    told = {
        "server": {"name": name, "movable-clock": True},
        "interfaces": _interfaces(bed),
        "io": {"spare": False, "frames": FRAMES},
        "memory": {"sessions": SESSIONS},
        "subscribers": [_subscribers(bed, prefix) for prefix in bed.subscribers],
        "pool": _pools(bed),
        "mapping": [
            {"protocol": _protocol(protocol), "external": _end(protocol, external), "internal": _end(protocol, internal)}
            for protocol, external, internal in bed.statics
        ],
        "rule": [_rule(rule) for rule in bed.rules] + [_rule(rule) for rule in bed.rules6],
        "pinhole": [_pinhole(hole) for hole in bed.pinholes],
        "bypass": [_bypass(entry) for entry in bed.bypasses],
        "control": {"socket": str(socket)},
        **_settings(bed),
    }
    text = config.canonical(Config.model_validate_json(json.dumps(told)))
    config.read(text, name)  # says what contradicts itself
    return text


# --- what there is no such thing of -----------------------------------------------------------------------------------------

# Fields that have a place below, by the class that has them.
_PLACED = {
    Bed: "inside outside stick legs lost pools subscribers exceptions devices rules statics silent failed timeouts_s "
    "hold_down_s hairpin refresh mss errors reject_code shards peers two_sides shunts loopback log extents buckets neighbours "
    "subscribers6 rules6 pinholes transparent echo6 ipsec6 unsolicited unsolicited6 port_timers refusal_codes alarms "
    "quiet protocols bypasses version drained",
    Pool: "network name block blocks ports filtering shard own ratio fixed spare",
    Port: "address on_link gateway inside_gateway vlan mtu partial address6 on_link6 gateway6 inside_gateway6",
    Prefix: "network each pool of limits",
    Rule: "direction protocol action internal remote internal_ports remote_ports",
    Bypass: "protocol internal remote internal_ports remote_ports inbound",
    Rule6: "direction protocol action internal remote internal_ports remote_ports",
    Prefix6: "network each of tcp udp other transparent",
}


def _refuse(bed: Bed) -> None:
    """What nobody has said how to configure is an error; what cannot be is `Unwired`."""
    given = [bed, bed.inside, bed.outside, *bed.legs.values(), *bed.subscribers, *bed.exceptions, *bed.devices]
    told: list[Any] = [*given, *bed.pools, *bed.rules, *bed.bypasses, *bed.rules6, *bed.pinholes, *bed.subscribers6]
    for each in told:
        for field in fields(each):
            default = field.default_factory() if field.default_factory is not MISSING else field.default
            if getattr(each, field.name) != default and field.name not in _placed(each):
                raise LookupError(f"tests/wired_config.py does not know what `{field.name}` of a {type(each).__name__} is")
    shards = bed.shards.values()
    if bed.peers or bed.two_sides or bed.loopback or any(shard.role != "active" or shard.pickup_s for shard in shards):
        raise Unwired(CLUSTER)
    if any(value != int(value) for value in (*bed.timeouts_s.values(), *(told for _, _, told in bed.port_timers))):
        raise Unwired(SECONDS)
    rules: list[Rule | Rule6 | Bypass] = [*bed.rules, *bed.rules6, *bed.pinholes, *bed.bypasses]
    ranges = [(rule.protocol, rule.internal_ports, rule.remote_ports) for rule in rules]
    if any(word not in ("tcp", "udp") and ports != [(0, 65535)] * 2 for word, *ports in ranges):
        raise Unwired(PORTS)


def _placed(given: Any) -> set[str]:
    return {name for kind, names in _PLACED.items() if isinstance(given, kind) for name in names.split()}


# --- tables -----------------------------------------------------------------------------------------------------------------


def _interfaces(bed: Bed) -> Table:
    told: dict[str, list[Table]] = {}
    near = all(prefix.network.subnet_of(bed.inside.on_link) for prefix in bed.subscribers)
    for name, (side, port) in bed.places().items():
        table = _port(name, port)
        if side == INTERNAL and not (port.gateway or near):  # nobody asks, but a configuration must say how they are reached
            table["gateway"] = dotted(int(port.on_link.broadcast_address) - 1)
        if side == BOTH:
            table |= _gateways("external-gateway", port.gateway, port.gateway6)
            table |= _gateways("internal-gateway", port.inside_gateway, port.inside_gateway6)
        else:
            table |= _gateways("gateway", port.gateway, port.gateway6)
        told.setdefault("both" if side == BOTH else "internal" if side == INTERNAL else "external", []).append(table)
    return told


def _port(name: str, port: Port) -> Table:
    told: Table = {
        "name": name, "address": f"{dotted(port.address)}/{port.on_link.prefixlen}", "mtu": port.mtu, "vlan": port.vlan,
        "checksums": "partial" if port.partial else "complete",
    }  # fmt: skip
    if port.on_link6:
        told["address6"] = f"{IPv6Address(port.address6)}/{port.on_link6.prefixlen}"
    return told


def _gateways(key: str, gateway: int, gateway6: int) -> Table:
    told = {key: dotted(gateway)} if gateway else {}
    return told | ({f"{key}6": str(IPv6Address(gateway6))} if gateway6 else {})


def _pools(bed: Bed) -> list[Table]:
    told: list[Table] = []
    for pool in bed.pools:
        table = {
            "name": pool.name, "prefixes": [str(pool.network)], "ports": f"{pool.ports[0]}-{pool.ports[1]}",
            "block-size": pool.block, "max-blocks-per-subscriber": pool.blocks, "filtering": _filtering(pool),
            "shard": pool.shard, "drain": [dotted(host) for host in sorted(bed.drained) if IPv4Address(host) in pool.network],
        }  # fmt: skip
        if pool.spare:
            table["spare-addresses"] = pool.spare
        if pool.ratio:
            table |= {"allocation": "deterministic", "subscribers-per-address": pool.ratio}
            table |= {"ports-per-subscriber": pool.fixed * pool.block, "overflow": pool.blocks > pool.fixed}
        speaker = bed.shard(pool.shard).icmp
        if speaker and all(other["shard"] != pool.shard for other in told):  # one that is none of those handed out
            table |= {"icmp-address": dotted(speaker), "prefixes": [str(pool.network), f"{dotted(speaker)}/32"]}
        told.append(table)
    return told


def _filtering(pool: Pool) -> Table:
    words = {"tcp": pool.own[0], "udp": pool.own[1], "icmp": ""}
    return {name: word or pool.filtering for name, word in words.items()}


def _subscribers(bed: Bed, prefix: Prefix) -> Table:
    own: dict[IPv4Network, Table] = {}
    for told in bed.exceptions:
        if told.network.subnet_of(prefix.network):
            own.setdefault(told.network, {})["limits"] = _limits(told)
    for device in bed.devices:
        if IPv4Address(device.of) in prefix.network:
            table = {"prefix": str(device.network), "each": device.each, "limits": _limits(device)}
            own.setdefault(prefix.unit(device.of), {}).setdefault("device", []).append(table)
    for host in bed.transparent:
        if IPv4Address(host) in prefix.network:
            own.setdefault(prefix.unit(host), {})["transparent"] = True
    table = {"prefix": str(prefix.network), "each": prefix.each, "pool": prefix.pool, "limits": _limits(prefix)}
    table |= {"subscriber": [{"prefix": str(unit), **rest} for unit, rest in own.items()]}
    return table | next((_subscribers6(six) for six in bed.subscribers6 if six.of == prefix.network), {})


def _subscribers6(six: Prefix6) -> Table:
    filtering = {"tcp": six.tcp, "udp": six.udp, "other": six.other}
    return {"prefix6": str(six.network), "each6": six.each, "filtering6": filtering, "transparent": six.transparent}


def _limits(prefix: Prefix) -> Table:
    told = prefix.limits
    table: Table = {"sessions": told.sessions, "ports": told.ports, "rate": told.rate, "burst": told.burst}
    shares = zip(CLASSES, told.sessions_of, told.ports_of, told.reserve, strict=True)
    table |= {name: {"sessions": sessions, "ports": ports, "reserve": kept} for name, sessions, ports, kept in shares}
    return table | {"sessions-per-port": told.per_port}


def _rule(rule: Rule | Rule6) -> Table:
    """With both prefixes written out, so that it is for one version only."""
    ports = rule.protocol in ("tcp", "udp")
    told: Table = {"direction": rule.direction, "protocol": rule.protocol, "action": rule.action}
    told |= {"internal": str(rule.internal), "remote": str(rule.remote)}
    return told | ({"internal-ports": _range(rule.internal_ports), "remote-ports": _range(rule.remote_ports)} if ports else {})


def _bypass(entry: Bypass) -> Table:
    """A prefix that is everywhere is left out, or no configuration would have the entry."""
    ends = {"internal": entry.internal, "remote": entry.remote}
    told: Table = {"protocol": entry.protocol, "inbound": entry.inbound}
    told |= {end: str(network) for end, network in ends.items() if network.prefixlen}
    if entry.protocol not in ("tcp", "udp"):
        return told
    return told | {"internal-ports": _range(entry.internal_ports), "remote-ports": _range(entry.remote_ports)}


def _pinhole(hole: Rule6) -> Table:
    told = {key: value for key, value in _rule(hole).items() if key not in ("direction", "action")}
    return told if hole.remote != IPv6Network("::/0") else {key: value for key, value in told.items() if key != "remote"}


_SIDES = {"inside": "internal", "outside": "external"}


def _settings(bed: Bed) -> Table:
    seconds = {key: math.floor(value) for key, value in bed.timeouts_s.items()}
    refusal, refusal6 = bed.refusal_codes[0], bed.refusal_codes[1] if bed.subscribers6 else -1
    return {
        "nat": {
            "hairpin": bed.hairpin, "hold-down-s": bed.hold_down_s, "mss-clamp": bed.mss, "inbound-refresh": bed.refresh,
            "other-protocols": [_protocol(number) for number in sorted(bed.protocols)],
            "unsolicited-syn": "unreachable" if bed.unsolicited else "silent",
        },
        "timeouts": {
            "allow-short-timers": True, "tcp-established": seconds["established"], "tcp-transitory-open": seconds["opening"],
            "tcp-transitory-closing": seconds["closing"], "udp": seconds["udp"], "icmp": seconds["icmp"],
            "generic": seconds["generic"],
            "port": [
                {"protocol": _name(PROTOCOLS, protocol), "ports": _range(ports), "seconds": math.floor(told)}
                for protocol, ports, told in bed.port_timers
            ],
        },
        "icmp": {
            "towards": [side for name, side in _SIDES.items() if name not in bed.quiet],
            "errors-per-second": bed.errors, "reject-code": bed.reject_code,
            "refusal-code": refusal, "refusal-code6": refusal6,
        },
        "alarms": dict(zip(("warning", "critical", "clear"), bed.alarms, strict=True)),
        "firewall6": {
            "echo": bed.echo6,
            "unsolicited-syn": "prohibited" if bed.unsolicited6 else "silent",
            "unasked-ipsec": "pass" if bed.ipsec6 else "drop",
        },
        "log": {"events": bed.log},
    }  # fmt: skip


def _range(ports: tuple[int, int]) -> str:
    return f"{ports[0]}-{ports[1]}"


def _name(names: dict[str, int], number: int) -> str:
    return next(name for name, value in names.items() if value == number)


def _protocol(number: int) -> str | int:
    return {value: name for name, value in PROTOCOLS.items()}.get(number, number)


def _end(protocol: int, endpoint: tuple[int, int]) -> str:
    """Only TCP and UDP have ports; what has none is told apart by another number."""
    return spell(*endpoint) if protocol in (TCP, UDP) else dotted(endpoint[0])
