"""Composition: what a configuration becomes in the memory of a core.

`compose` says how much memory that takes, `fill` writes it: settings in ticks, prefixes with their accounts, pools, rules in
the order in which they are looked at, ports, gateways. Nothing here touches the system, so `trace` does the same offline.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from krononat import appliance6, bfd, checks_bfd, deterministic
from krononat.checks import RULES_AT_MOST
from krononat.client import BAD_CONFIG, Trouble
from krononat.cluster import Cluster, room_for, shunt_side
from krononat.models import LOG_LEVELS, Bypass, Config, Device, Leg, Pool, Rule, Stick, Subscriber, Subscribers
from krononat.models_limits import NO_LIMITS, Limits, Timeouts
from krononat.pools import blocks_in, externals_in, externals_of, first_block, spare_in, subscribers_in
from shards import lifetimes, protocols, sides
from shards.core_rows import NO_REPLY
from shards.state import (
    ABSENT,
    ACCEPT,
    ACTIVE,
    ADDRESS_AND_PORT_DEPENDENT,
    ADDRESS_DEPENDENT,
    BOTH,
    DRAINED,
    DROP,
    ENDPOINT_INDEPENDENT,
    EXCLUDED,
    EXTENT_LINES,
    EXTERNAL,
    INBOUND,
    INTERNAL,
    JOINING,
    NO_SIDE,
    OUTBOUND,
    REJECT,
    Sizes,
    State,
    admitted,
    new_state,
    pack_filtering,
)

INTERNET, INSIDE = 0, 1  # realms

# Index entries for each session, when every session has a mapping of its own: both tuples and the internal endpoint; pools that
# filter by address have a permission, too.
_ENTRIES, _PERMISSIONS = 3, 1
_LOAD = 0.85  # of the index, at most
_SLOTS = 8  # of a bucket

_RULES_AT_LEAST = 64  # that there is room for

_NEIGHBOURS_AT_LEAST, _NEIGHBOURS_AT_MOST = 256, 1 << 16
_NEIGHBOUR_WAIT = 3000  # ticks: as long as the kernel tries (three probes, a second apart: arp(7))
_ASKED_FROM = {"internal": OUTBOUND, "external": INBOUND}  # direction of what is answered towards a side
_ICMP_BURST = 50  # as Linux's icmp_msgs_burst

SIDES = {"internal": INTERNAL, "external": EXTERNAL, "both": BOTH}
ACTIONS = {"accept": ACCEPT, "drop": DROP, "reject": REJECT}
DIRECTIONS = {"outbound": 1 << OUTBOUND, "inbound": 1 << INBOUND, "both": 1 << OUTBOUND | 1 << INBOUND}
FILTERINGS = {
    "endpoint-independent": ENDPOINT_INDEPENDENT,
    "address-dependent": ADDRESS_DEPENDENT,
    "address-and-port-dependent": ADDRESS_AND_PORT_DEPENDENT,
}

KEY_FILE = Path("/etc/krononat/cluster.key")
_KEY_BYTES = 16


class Link(NamedTuple):
    """What is found, not configured, about an interface."""

    mac: bytes
    mtu: int
    partial: bool  # local senders may leave checksums partial


class ScopedRule(NamedTuple):
    """A rule and the prefix it is for (None: everyone)."""

    rule: Rule
    scope: IPv4Network | None


# --- how much -------------------------------------------------------------------------------------------------------------


def compose(config: Config, cluster: Cluster | None = None) -> Sizes:
    """How many rows of each the configuration needs."""
    sessions = config.memory.sessions
    filtered = any(set(pool.filtering.words) != {"endpoint-independent"} for pool in config.pool) or appliance6.has_permissions(
        config
    )
    halves = (2 if filtered else 1) * sessions + len(list(config.mappings()))
    entries = (_ENTRIES + (_PERMISSIONS if filtered else 0)) * sessions
    return Sizes(
        extents=1 + -(-_lines(config) // EXTENT_LINES) + -(-halves // (2 * EXTENT_LINES)) + _begun(config, filtered, cluster),
        buckets=_power_of_two(int(entries / (_LOAD * _SLOTS)) + 1),
        externals=sum(map(externals_in, config.pool)) + sum(spare_in(config.pool)),
        accounts=1 + sum(map(subscribers_in, config.subscribers)) + sum(map(_devices_in, _devices(config))),
        prefixes=len(config.subscribers),
        devices=max(len(list(_devices(config))), 1),
        limits=len(_limits_rows(config)),
        pools=len(config.pool),
        rules=rooms(counts(config)["rules"]),
        statics=max(len(list(config.mappings())), 1),
        ports=len(list(config.interfaces.named())),
        shards=config.shards,
        peers=room_for(config, cluster.map) if cluster else 1,
        neighbours=_neighbours(config),
        bfd=max(len(checks_bfd.sessions(config)), 1),
        prefixes6=max(sum(group.prefix6 is not None for group in config.subscribers), 1),
        rules6=rooms(counts(config)["rules6"]),
        pinholes=rooms(len(config.pinhole)),
        bypasses=rooms(len(config.bypass)),
        grants=1 + (config.pcp.mappings if config.pcp.enabled else 0),
    )


def rooms(count: int) -> int:
    """Rows of a table that may be changed while it is looked at: two halves, each with room for twice what there is."""
    return 2 * min(max(2 * count, _RULES_AT_LEAST), RULES_AT_MOST - 1)


def _lines(config: Config) -> int:
    """Lines of all sessions; those of IPv6 take two, but need no mapping, whose half-lines are as many for two of them."""
    six = any(group.prefix6 is not None for group in config.subscribers)
    return config.memory.sessions * (2 if six else 1)


def _begun(config: Config, filtered: bool, cluster: Cluster | None) -> int:
    """Extents that are begun and not full: of each class that a shard can have, but one of sessions and one of mappings."""
    six = any(group.prefix6 is not None for group in config.subscribers)
    classes = (3 if six else 2) * (2 if cluster else 1) + filtered
    return config.shards * classes - 2


def _power_of_two(least: int) -> int:
    return 1 << max(least - 1, 1).bit_length()


def _neighbours(config: Config) -> int:
    """Twice as many rows as there can be stations on-link, within reason."""
    stations = sum(port.address.network.num_addresses for _, port in config.interfaces.named())
    return min(max(_power_of_two(2 * stations), _NEIGHBOURS_AT_LEAST), _NEIGHBOURS_AT_MOST)


def _devices(config: Config) -> Iterator[Device]:
    for group in config.subscribers:
        for subscriber in group.subscriber:
            yield from subscriber.device


def _each(device: Device) -> int:
    return device.prefix.prefixlen if device.each is None else device.each


def _devices_in(device: Device) -> int:
    return 1 << (_each(device) - device.prefix.prefixlen)


# --- what -----------------------------------------------------------------------------------------------------------------


def fill(
    state: State, config: Config, links: Sequence[Link], random: bytes, secret: bytes, cluster: Cluster | None = None
) -> None:
    """Write the configuration into a zeroed state of `compose`'s sizes.

    `links`: one for each configured interface, in their order. `random`: 16 bytes for the seed of the index.
    `secret`: 16 bytes, the key of port derivation.
    """
    _fill_settings(state, config, random, secret)
    _fill_pools(state, config.pool)
    _fill_places(state, config)
    _fill_accounts(state, config)
    for name, value in fill_rules(state, config, 0, 1).items():
        state.settings[0][name] = value
    appliance6.fill(state, config)
    _fill_statics(state, config)
    _fill_shards(state, config)
    if cluster:
        _fill_cluster(state, config, cluster)
    for number, ((side, port), link) in enumerate(zip(config.interfaces.named(), links, strict=True)):
        _fill_port(state, number, SIDES[side], port, link)
        _fill_gateways(state, number, port)
        appliance6.fill_port(state, number, port)
        appliance6.fill_gateways(state, number, port)
    bfd.fill(state, config, random)


def offline(config: Config, random: bytes = bytes(16), secret: bytes = bytes(16)) -> State:
    """A state in private memory, with made-up interfaces: for `trace` and tests."""
    state = new_state(compose(config))
    links = [
        Link(bytes((2, 0, 0, 0, 0, number + 1)), port.mtu or 1500, port.checksums == "partial")
        for number, (_, port) in enumerate(config.interfaces.named())
    ]
    fill(state, config, links, random, secret)
    return state


def _fill_settings(state: State, config: Config, random: bytes, secret: bytes) -> None:
    row = state.settings[0]
    row["seed"] = np.frombuffer(random, "<u8", 2)
    row["secret"] = np.frombuffer(secret, "<u8", 2)
    for name, value in behaviour(config).items():
        row[name] = value
    row["neighbour_wait"] = _NEIGHBOUR_WAIT
    row["room"] = config.memory.sessions
    for protocol in config.nat.other_protocols:
        state.protocols[protocols.number(protocol)] = 1
    _fill_port_timers(state, config.timeouts)
    row["prefixes"] = len(config.subscribers)
    row["devices"] = len(list(_devices(config)))
    row["pools"] = len(config.pool)
    row["ports"] = len(state.ports)
    row["statics"] = len(list(config.mappings()))
    row["shards"] = config.shards
    sides = [SIDES[side] for side, _ in config.interfaces.named()]
    for name, side in (("internal", INTERNAL), ("external", EXTERNAL)):
        rows = [number for number, told in enumerate(sides) if told in (side, BOTH)]
        row[f"{name}_port"], row[f"{name}_ports"] = rows[0], len(rows)


def behaviour(config: Config) -> dict[str, int | list[int]]:
    """What of SETTINGS may change while packets pass."""
    icmp, nat, alarms = config.icmp, config.nat, config.alarms
    return {
        "lifetimes": _lifetimes(config.timeouts),
        "hold_down_s": nat.hold_down_s,
        "icmp_rate": icmp.errors_per_second,
        "icmp_burst": min(icmp.errors_per_second, _ICMP_BURST),
        "reject_code": icmp.reject_code,
        "refusal_code": _code(icmp.refusal_code),
        "refusal_code6": _code(icmp.refusal_code6),
        "quiet": sum(1 << _ASKED_FROM[side] for side in _ASKED_FROM if side not in icmp.towards),
        "warning": alarms.warning,
        "critical": alarms.critical,
        "clear": alarms.clear,
        "mss": nat.mss_clamp,
        "hairpin": int(nat.hairpin),
        "inbound_refresh": int(nat.inbound_refresh),
        "log": LOG_LEVELS.index(config.log.events),
        "log_fixed": int(config.log.deterministic),
        "echo6": int(config.firewall6.echo),
        "unasked": int(nat.unsolicited_syn != "silent"),
        "unasked6": int(config.firewall6.unsolicited_syn != "silent"),
        "ipsec6": int(config.firewall6.unasked_ipsec == "pass"),
    }


def _code(told: int) -> int:
    return NO_REPLY if told < 0 else told


def _lifetimes(told: Timeouts) -> list[int]:
    """SETTINGS["lifetimes"]."""
    seconds = (told.tcp_established, told.opening, told.closing, told.udp, told.icmp, told.generic)
    ticks = {name: 1000 * lifetime for name, lifetime in zip(lifetimes.LIFETIMES, seconds, strict=True)}
    laid = {"lifetimes": [0] * (lifetimes.TIMERS << lifetimes.STATE_BITS)}
    lifetimes.lay(laid, ticks, [(protocols.number(timer.protocol), 1000 * timer.seconds) for timer in told.port])
    return laid["lifetimes"]


def _fill_port_timers(state: State, told: Timeouts) -> None:
    """For which ports there are lifetimes of their own. Sessions name these rows by their numbers, so they stay as they are."""
    state.settings[0]["port_timers"] = len(told.port)
    for number, timer in enumerate(told.port):
        state.port_timers[number] = (timer.ports.low, timer.ports.high, protocols.number(timer.protocol), 0)


def _fill_shards(state: State, config: Config) -> None:
    """A core that is alone has every shard."""
    for number in range(config.shards):
        shard = state.shards[number]
        shard["id"], shard["epoch"], shard["side"], shard["role"], shard["creates"] = number, 1, 0, ACTIVE, 1
    for pool in config.pool:
        if pool.icmp_address:
            state.shards[pool.shard]["icmp_address"] = int(pool.icmp_address)


def _fill_cluster(state: State, config: Config, cluster: Cluster) -> None:
    """What the map says; a core that should have a shard first asks the others whether one of them has it meanwhile."""
    state.peers[0]["address"] = int(cluster.core.shunt)
    state.settings[0]["shunt_side"] = SIDES[shunt_side(config, cluster.core.shunt) or "external"]
    for core in cluster.map.others(cluster.me):
        state.peers[cluster.rows[core.name]]["address"] = int(core.shunt)
    for told in cluster.map.shard:
        shard = state.shards[told.id]
        shard["epoch"], shard["creates"] = told.epoch, 0
        shard["role"] = JOINING if cluster.me in (told.primary, told.backup) else ABSENT
        shard["side"] = {told.primary: 0, told.backup: 1}.get(cluster.me, NO_SIDE)
        shard["authority"] = cluster.rows[told.primary]
        if told.backup or told.reserve:
            for number in (number for number, pool in enumerate(config.pool) if pool.shard == told.id):
                sides.lay(state, number)


def _fill_pools(state: State, pools: Sequence[Pool]) -> None:
    """External addresses stand in ascending order within their pool, and room for more behind them (see `membership`)."""
    first = 0
    for number, (pool, spare) in enumerate(zip(pools, spare_in(pools), strict=True)):
        row, count = state.pools[number], externals_in(pool)
        row["first_external"], row["externals"], row["rooms"] = first, count, count + spare
        row["block_size"] = pool.block_size
        row["first_block"] = row["loose_block"] = first_block(pool)
        row["end_block"] = int(row["first_block"]) + blocks_in(pool)
        row["blocks_free"] = count * blocks_in(pool)
        row["blocks_each"] = pool.max_blocks_per_subscriber
        row["filtering"] = pack_filtering(*(FILTERINGS[word] for word in pool.filtering.words))
        row["shard"] = pool.shard
        state.externals["address"][first : first + count] = externals_of(pool)
        state.externals["pool"][first : first + count + spare] = number
        state.externals["blocks_free"][first : first + count] = blocks_in(pool)
        first += count + spare
    for address, closed in closures(pools).items():
        state.externals["closed"][state.externals["address"] == address] = closed


def _fill_places(state: State, config: Config) -> None:
    """What is somebody's by configuration, of deterministic pools (`krononat.deterministic` says the same in words)."""
    for number, pool in enumerate(config.pool):
        row = state.pools[number]
        if not deterministic.is_deterministic(pool):
            continue
        told = deterministic.plan(config, pool)
        row["ratio"], row["fixed_each"] = told.ratio, told.blocks
        row["blocks_each"] = pool.max_blocks_per_subscriber if told.overflow else told.blocks
        row["loose_block"] = row["first_block"] + told.ratio * told.blocks if told.overflow else row["end_block"]
        first, count = int(row["first_external"]), int(row["externals"])
        hosts = list(map(int, deterministic.addresses_of(pool)))
        state.externals["nth"][first : first + len(hosts)] = first + np.searchsorted(
            state.externals["address"][first : first + count], hosts
        )


def closures(pools: Sequence[Pool]) -> dict[int, int]:
    """Addresses that nobody is paired with anew, and why: EXCLUDED or DRAINED."""
    drained = {int(address): DRAINED for pool in pools for address in pool.drain}
    return drained | {int(host): EXCLUDED for pool in pools for prefix in pool.exclude for host in prefix}


# --- subscribers ----------------------------------------------------------------------------------------------------------


def _fill_accounts(state: State, config: Config) -> None:
    """Number the accounts from 1: subscribers by prefix, then devices; prefixes stand longest first."""
    names = [pool.name for pool in config.pool]
    limits = _limits_rows(config)
    for row, told in zip(state.limits, limits, strict=True):
        _fill_limits(row, told)
    first, device_number = 1, 0
    device_account = 1 + sum(map(subscribers_in, config.subscribers))
    for number, group in enumerate(sorted(config.subscribers, key=lambda group: -group.prefix.prefixlen)):
        pool = names.index(group.pool)
        _fill_prefix(state.prefixes[number], group.prefix, group.each, first, 0, pool)
        users = deterministic.groups_of(config, config.pool[pool])
        state.prefixes[number]["ordinal"] = next(ordinal for ordinal, user in users if user is group)
        state.prefixes[number]["shard"] = config.pool[pool].shard
        _limit(state, first, subscribers_in(group), limits[_known(group.limits.within(config.limits))])
        for subscriber in group.subscriber:
            account = first + _ordinal(group, subscriber)
            _limit(state, account, 1, limits[_subscriber_limits(config, group, subscriber)])
            for device in sorted(subscriber.device, key=lambda device: -device.prefix.prefixlen):
                _fill_prefix(state.devices[device_number], device.prefix, _each(device), device_account, account, pool)
                state.devices[device_number]["shard"] = config.pool[pool].shard
                _limit(state, device_account, _devices_in(device), limits[_known(device.limits)])
                device_number, device_account = device_number + 1, device_account + _devices_in(device)
        first += subscribers_in(group)
    devices = state.devices[:device_number]
    devices[:] = devices[np.argsort(devices["mask"], kind="stable")[::-1]]


def _fill_limits(row: Any, told: Limits) -> None:
    """`told`: without gaps."""
    row["sessions"], row["mappings"], row["rate"] = told.sessions, told.ports, told.rate
    row["burst"], row["sessions_each"] = told.bucket, told.sessions_per_port
    shares = told.shares().values()  # in the order of accounts.CLASSES
    row["sessions_of"], row["mappings_of"] = [share.sessions for share in shares], [share.ports for share in shares]
    row["reserve"] = [share.reserve for share in shares]
    row["reserved"] = any(share.reserve for share in shares)


def _fill_prefix(row: np.void, prefix: IPv4Network, each: int, first: int, parent: int, pool: int) -> None:
    row["network"], row["mask"] = int(prefix.network_address), int(prefix.netmask)
    row["realm"] = INSIDE
    row["first_account"], row["parent"] = first, parent
    row["pool"] = pool
    row["shift"] = 32 - each


def _limit(state: State, first: int, count: int, limits: int) -> None:
    """Untouched accounts cost no memory, so those without limits are not written to."""
    if limits:
        state.accounts["limits"][first : first + count] = limits


def _ordinal(group: Subscribers, subscriber: Subscriber) -> int:
    return (int(subscriber.prefix.network_address) - int(group.prefix.network_address)) >> (32 - group.each)


def _known(limits: Limits) -> Limits:
    """Limits without gaps. What a device leaves out is limited by its subscriber, who is charged for it anyway."""
    return limits.within(NO_LIMITS)


def _subscriber_limits(config: Config, group: Subscribers, subscriber: Subscriber) -> Limits:
    return _known(subscriber.limits.within(group.limits.within(config.limits)))


def _limits_rows(config: Config) -> dict[Limits, int]:
    """Row of each different set of limits; the first is none at all."""
    rows = [_known(Limits())]
    for group in config.subscribers:
        rows.append(_known(group.limits.within(config.limits)))
        rows += [_subscriber_limits(config, group, subscriber) for subscriber in group.subscriber]
    rows += [_known(device.limits) for device in _devices(config)]
    return {row: number for number, row in enumerate(dict.fromkeys(rows))}


# --- rules and static mappings --------------------------------------------------------------------------------------------


def rules(config: Config) -> Iterator[ScopedRule]:
    """Every rule in the order in which it is looked at: those of devices, of subscribers, of everyone."""
    subscribers = [subscriber for group in config.subscribers for subscriber in group.subscriber]
    for subscriber in subscribers:
        for device in subscriber.device:
            yield from (ScopedRule(rule, device.prefix) for rule in device.rules)
    for subscriber in subscribers:
        yield from (ScopedRule(rule, subscriber.prefix) for rule in subscriber.rules)
    yield from (ScopedRule(rule, None) for rule in config.rule)


def _rules4(config: Config) -> Iterator[tuple[int, ScopedRule]]:
    """(place among all rules, rule) of those that IPv4 packets meet: they name no IPv6 address."""
    for number, told in enumerate(rules(config)):
        if all(prefix is None or prefix.version == 4 for prefix in (told.rule.internal, told.rule.remote)):
            yield number, told


_ANYWHERE = IPv4Network("0.0.0.0/0")
AnyNetwork = IPv4Network | IPv6Network


def fill_rules(state: State, config: Config, half: int, version: int) -> dict[str, int]:
    """Write what decides on new sessions into a half (0 or 1) of its tables; the SETTINGS with which it comes into force."""
    tables = {name: getattr(state, name) for name in ("rules", "bypasses", "rules6", "pinholes")}
    begin = {name: half * (len(table) // 2) for name, table in tables.items()}
    for row, (number, (rule, scope)) in zip(state.rules[begin["rules"] :], _rules4(config), strict=False):
        _fill_rule(row, number, rule, rule.internal or scope or _ANYWHERE)
        row["directions"], row["action"] = DIRECTIONS[rule.direction], ACTIONS[rule.action]
    for number, (row, entry) in enumerate(zip(state.bypasses[begin["bypasses"] :], config.bypass, strict=False)):
        _fill_rule(row, number, entry, entry.internal or _ANYWHERE)
        row["directions"] = DIRECTIONS["both" if entry.inbound else "outbound"]
    six = list(appliance6.rules6(config, list(rules(config))))
    appliance6.fill_rules(state, config, six, begin["rules6"], begin["pinholes"])
    places = {f"{name}_at": row for name, row in begin.items()}
    return counts(config) | places | {"rules_version": version, "admitted": admitted(version)}


def counts(config: Config) -> dict[str, int]:
    """How much of each of these tables is used."""
    six = len(list(appliance6.rules6(config, list(rules(config)))))
    return {
        "rules": len(list(_rules4(config))), "bypasses": len(config.bypass), "rules6": six, "pinholes": len(config.pinhole)
    }  # fmt: skip


def _fill_rule(row: np.void, number: int, rule: Rule | Bypass, internal: AnyNetwork) -> None:
    remote = rule.remote or _ANYWHERE
    row["number"], row["hits"] = number, 0
    row["internal_network"], row["internal_mask"] = int(internal.network_address), int(internal.netmask)
    row["remote_network"], row["remote_mask"] = int(remote.network_address), int(remote.netmask)
    row["internal_port_low"], row["internal_port_high"] = rule.internal_ports
    row["remote_port_low"], row["remote_port_high"] = rule.remote_ports
    row["protocol"] = 0 if rule.protocol == "any" else protocols.number(rule.protocol)


def _fill_statics(state: State, config: Config) -> None:
    for row, mapping in zip(state.statics, config.mappings(), strict=False):
        number = protocols.number(mapping.protocol)
        row["protocol"] = number
        row["internal_address"], row["internal_port"] = int(mapping.internal.address), mapping.internal.port
        row["external_address"] = int(mapping.external.address)
        row["external_port"] = mapping.external.port or number  # the place of a generic protocol (see shards.generic)


# --- ports and gateways ---------------------------------------------------------------------------------------------------


def _fill_port(state: State, number: int, side: int, port: Leg | Stick, link: Link) -> None:
    row = state.ports[number]
    row["mac"] = np.frombuffer(link.mac, np.uint8)
    row["mtu"] = link.mtu
    row["address"] = int(port.address.ip)
    row["network"], row["mask"] = int(port.address.network.network_address), int(port.address.netmask)
    row["internal_realm"], row["external_realm"] = INSIDE, INTERNET
    row["vlan"] = port.vlan
    row["side"] = side
    row["partial"] = link.partial


def _fill_gateways(state: State, number: int, port: Leg | Stick) -> None:
    row = state.ports[number]
    for side, gateway in gateways(port, int(row["side"])):
        row["internal_gateway" if side == INTERNAL else "external_gateway"] = _neighbour(state, number, gateway)


def gateways(port: Leg | Stick, side: int) -> Iterator[tuple[int, IPv4Address]]:
    """(INTERNAL or EXTERNAL, address) of the gateways of a port."""
    if isinstance(port, Leg):
        told = [(side, port.gateway)]
    else:
        told = [(INTERNAL, port.internal_gateway), (EXTERNAL, port.external_gateway)]
    yield from ((side, gateway) for side, gateway in told if gateway is not None)


def _neighbour(state: State, port: int, address: IPv4Address) -> int:
    # Late, because whether this module is compiled or plain is decided by whoever imports it first (see shards.jit).
    from shards import neighbours

    row = neighbours.want(state, port, int(address), 0)
    if row == 0:
        raise Trouble("no room for a gateway", f"the neighbours around {address} are taken", status=BAD_CONFIG)
    state.neighbours[row]["kept"] = 1
    return row


# --- the key --------------------------------------------------------------------------------------------------------------


def read_key(path: Path = KEY_FILE) -> bytes | None:
    """The cluster's secret key, or None where there is no such file; Trouble where it is no secret or too short."""
    try:
        mode, key = path.stat().st_mode, path.read_bytes()
    except FileNotFoundError:
        return None
    if stat.S_IMODE(mode) & 0o007:
        raise Trouble("the cluster key is no secret", f"{path} is open to everyone", f"chmod 600 {path}", BAD_CONFIG)
    if len(key) < _KEY_BYTES:
        told = f"{path} holds {len(key)} bytes, at least {_KEY_BYTES} are needed"
        raise Trouble("the cluster key is too short", told, f"head -c 32 /dev/urandom > {path}", BAD_CONFIG)
    return hashlib.sha256(key).digest()[:_KEY_BYTES]
