"""A test bed: one core with its two ports (or its one), described by short statements and turned into a `State`.

The statements are the `given` lines of scenarios; each is a noun, perhaps what it is about, and pairs of key and value:

    pool 203.0.113.0/30 block 64 filtering address-dependent udp endpoint-independent
    subscribers 100.64.0.0/16 each 32 sessions 4 rate 2 burst 5
    rule outbound tcp remote-ports 25 reject

Every station's MAC address is made of its IPv4 address (`frames.mac_of`), so nobody has to look one up.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, IPv6Network

import numpy as np

from shards import legs, lifetimes, neighbours
from shards.core_rows import NO_REPLY
from shards.state import (
    BOTH,
    EXTERNAL,
    FAILED,
    INTERNAL,
    REACHABLE,
    ROLES,
    WANTED,
    Sizes,
    State,
    new_state,
)
from tests import bed6
from tests.bed_pools import FILTERINGS, Pool, fill_pools
from tests.bed_rules import GENERIC, PROTOCOLS, BedRules, fill_policy, pairs, port_range
from tests.frames import address, endpoint, mac_of
from tests.frames6 import address6, mac_of6
from tests.limits import Limits, fill_limits, read_limits

INTERNAL_REALM, EXTERNAL_REALM = 1, 0
TIMEOUTS_S = {"established": 7440.0, "opening": 240.0, "closing": 240.0, "udp": 300.0, "icmp": 60.0, "generic": 300.0}
NEIGHBOUR_WAIT = 3000  # ticks
RULES = 32  # of each kind, at most
LOGS = ("off", "blocks", "mappings", "sessions")


def contains(network: IPv4Network, host: int) -> bool:
    """Whether an address (host integer) lies in a network."""
    return int(network.network_address) <= host <= int(network.broadcast_address)


@dataclass(frozen=True)
class Port:
    """An interface of the core."""

    address: int
    on_link: IPv4Network
    gateway: int = 0
    inside_gateway: int = 0  # of the one port of a router on a stick
    vlan: int = 0
    mtu: int = 1500
    partial: bool = False
    address6: int = 0
    on_link6: IPv6Network | None = None
    gateway6: int = 0
    inside_gateway6: int = 0


@dataclass(frozen=True)
class Shard:
    """What the core is to a shard."""

    role: str = "active"
    side: int = 0
    epoch: int = 1
    authority: int = 0  # address of the core that has it
    pickup_s: float = 0  # how long from the beginning on connections may be picked up
    icmp: int = 0  # address that errors of routers come from


@dataclass(frozen=True)
class Peer:
    """Another core."""

    address: int
    alive: bool = True
    mtu: int = 0


@dataclass(frozen=True)
class Prefix:
    """Internal addresses; each `2**(32 - each)` of them are one subscriber, or one device of subscriber `of`."""

    network: IPv4Network
    each: int = 32
    pool: str = "main"
    of: int = 0
    limits: Limits = Limits()  # noqa: RUF009

    def unit(self, host: int) -> IPv4Network:
        """The subscriber (or device) that `host` belongs to."""
        return IPv4Network((host, self.each), strict=False)


def longest(prefixes: list[Prefix], host: int) -> Prefix | None:
    """The longest of the prefixes that an address lies in."""
    fitting = [prefix for prefix in prefixes if contains(prefix.network, host)]
    return max(fitting, key=lambda prefix: prefix.network.prefixlen, default=None)


@dataclass
class Bed(BedRules):
    """What is given. `say` adds a statement."""

    inside: Port = field(default=Port(address("100.64.0.1"), IPv4Network("100.64.0.0/16")))
    outside: Port = field(default=Port(address("192.0.2.2"), IPv4Network("192.0.2.0/24"), address("192.0.2.1")))
    stick: bool = False
    legs: dict[str, Port] = field(default_factory=dict)  # further ports of a side: inside2, outside2 ...
    lost: dict[str, str] = field(default_factory=dict)  # of ports: "carrier" or "peer"
    pools: list[Pool] = field(default_factory=list)
    subscribers: list[Prefix] = field(default_factory=list)
    exceptions: list[Prefix] = field(default_factory=list)  # single subscribers with limits of their own
    devices: list[Prefix] = field(default_factory=list)
    statics: list[tuple[int, tuple[int, int], tuple[int, int]]] = field(default_factory=list)  # protocol, external, internal
    silent: set[int] = field(default_factory=set)  # neighbours that do not answer yet
    failed: set[int] = field(default_factory=set)  # neighbours that have been given up
    timeouts_s: dict[str, float] = field(default_factory=TIMEOUTS_S.copy)
    protocols: set[int] = field(default_factory=lambda: set(GENERIC.values()))  # generic ones that are translated
    port_timers: list[tuple[int, tuple[int, int], float]] = field(default_factory=list)  # protocol, destination ports, seconds
    refusal_codes: tuple[int, int] = (-1, -1)  # of ICMP and ICMPv6, for what is refused for want of something; -1: none is told
    alarms: tuple[int, int, int] = (80, 90, 5)  # percent: warning, critical, and by how much less they end
    hold_down_s: int = 120
    hairpin: bool = True
    refresh: bool = False
    mss: int = 0
    errors: int = 100  # ICMP errors of our own a second
    quiet: set[str] = field(default_factory=set)  # sides that get none
    reject_code: int = 13
    unsolicited: bool = False  # as `unsolicited6`
    shards: dict[int, Shard] = field(default_factory=dict)
    peers: dict[int, Peer] = field(default_factory=dict)  # by address
    two_sides: bool = False  # shards have a backup
    shunts: str = "outside"  # where the other cores are
    loopback: int = 0  # our address among them, if it is no port's
    log: str = "sessions"  # events that are written
    extents: int = 4  # of rows
    buckets: int = 1 << 15  # of the index
    neighbours: int = 1024
    grants: int = 32  # mappings that may be asked for

    def say(self, statement: str) -> None:
        """Take one statement; ValueError says what is not understood."""
        words = statement.split()
        speaker = getattr(self, f"_say_{words[0].replace('-', '_')}", None)
        if speaker is None:
            raise ValueError(f"nothing can be given about {words[0]!r}")
        speaker(words[1:])

    def _say_pool(self, words: list[str]) -> None:
        told = pairs(words[1:])
        low, _, high = told.get("ports", "1024-65535").partition("-")
        fixed = int(told.get("fixed", 1 if "ratio" in told else 0))
        self.pools.append(
            Pool(
                IPv4Network(words[0]), told.get("name", "main"), int(told.get("block", 512)),
                int(told.get("blocks", fixed or 8)),
                (int(low), int(high)), told.get("filtering", FILTERINGS[0]), int(told.get("shard", 0)),
                (told.get("tcp", ""), told.get("udp", "")), int(told.get("ratio", 0)), fixed, int(told.get("spare", 0)),
            )
        )  # fmt: skip

    def _say_add(self, words: list[str]) -> None:
        """`203.0.113.8/30`: the first pool has these addresses, too."""
        hosts, pool = frozenset(map(int, IPv4Network(words[0]))), self.pools[0]
        self.pools[0] = replace(pool, more=pool.more | hosts, less=pool.less - hosts)

    def _say_remove(self, words: list[str]) -> None:
        hosts, pool = frozenset(map(int, IPv4Network(words[0]))), self.pools[0]
        self.pools[0] = replace(pool, more=pool.more - hosts, less=pool.less | hosts)

    def _say_subscribers(self, words: list[str]) -> None:
        self.subscribers.append(_prefix(words))

    def _say_subscriber(self, words: list[str]) -> None:
        self.exceptions.append(_prefix(words))

    def _say_device(self, words: list[str]) -> None:
        self.devices.append(_prefix(words))

    def _say_static(self, words: list[str]) -> None:
        protocol, external, _, internal = words
        host, port = endpoint(external)
        self.statics.append((PROTOCOLS[protocol], (host, port or PROTOCOLS[protocol]), endpoint(internal)))

    def _say_inside(self, words: list[str]) -> None:
        self.inside = _port(self.inside, words)

    def _say_outside(self, words: list[str]) -> None:
        self.outside = _port(self.outside, words)

    def _say_inside2(self, words: list[str]) -> None:
        self.legs["inside2"] = _port(self.inside, words)

    def _say_outside2(self, words: list[str]) -> None:
        self.legs["outside2"] = _port(self.outside, words)

    def _say_loopback(self, words: list[str]) -> None:
        self.loopback = address(words[0])

    def _say_leg(self, words: list[str]) -> None:
        """`outside2 carrier lost`, `outside2 peer lost`, `outside2 lives`."""
        self.lost.pop(words[0], None)
        if words[-1] == "lost":
            self.lost[words[0]] = words[1]

    def _say_stick(self, words: list[str]) -> None:
        self.stick = True
        self.inside = self.outside = _port(self.outside, words)

    def _say_shard(self, words: list[str]) -> None:
        told, known = pairs(words[1:]), self.shard(int(words[0]))
        self.shards[int(words[0])] = Shard(
            told.get("role", known.role), int(told.get("side", known.side)), int(told.get("epoch", known.epoch)),
            address(told["authority"]) if "authority" in told else known.authority, float(told.get("pickup", known.pickup_s)),
            address(told["icmp"]) if "icmp" in told else known.icmp,
        )  # fmt: skip

    def _say_peer(self, words: list[str]) -> None:
        told = pairs([word for word in words[1:] if word != "dead"])
        self.peers[address(words[0])] = Peer(address(words[0]), "dead" not in words, int(told.get("mtu", 0)))

    def _say_shunts(self, words: list[str]) -> None:
        self.shunts = words[0]

    def _say_sides(self, words: list[str]) -> None:
        self.two_sides = words == ["two"]

    def _say_unresolved(self, words: list[str]) -> None:
        self.silent.add(bed6.any_address(words[0]))

    def _say_failed(self, words: list[str]) -> None:
        self.failed.add(bed6.any_address(words[0]))

    def _say_timeout(self, words: list[str]) -> None:
        """`udp 20`; `transitory 30` is both `opening` and `closing`."""
        for name in ("opening", "closing") if words[0] == "transitory" else (words[0],):
            self.timeouts_s[name] = float(words[1])

    def _say_timeout_port(self, words: list[str]) -> None:
        """`udp 53 10`: destination ports of a protocol, and their lifetime in seconds."""
        self.port_timers.append((PROTOCOLS[words[0]], port_range(words[1]), float(words[2])))

    def _say_refusal_code(self, words: list[str]) -> None:
        """`1`, or `1 six 3`."""
        self.refusal_codes = int(words[0]), int(words[-1])

    def _say_protocols(self, words: list[str]) -> None:
        """`protocols gre 97`: these generic ones; `protocols none`."""
        self.protocols = {PROTOCOLS.get(word) or int(word) for word in words if word != "none"}

    def _say_hold_down(self, words: list[str]) -> None:
        self.hold_down_s = int(words[0])

    def _say_hairpin(self, words: list[str]) -> None:
        self.hairpin = words[0] == "on"

    def _say_refresh(self, words: list[str]) -> None:
        self.refresh = words[0] == "inbound"

    def _say_mss(self, words: list[str]) -> None:
        self.mss = int(words[0])

    def _say_errors(self, words: list[str]) -> None:
        self.errors = int(words[0])

    def _say_quiet(self, words: list[str]) -> None:
        self.quiet.update(words)

    def _say_reject_code(self, words: list[str]) -> None:
        self.reject_code = int(words[0])

    def _say_unsolicited(self, words: list[str]) -> None:
        """`silent` or `unreachable`."""
        self.unsolicited = words[0] == "unreachable"

    def _say_log(self, words: list[str]) -> None:
        self.log = words[0]

    def complete(self) -> Bed:
        """Itself, with the pool and the subscribers that most scenarios have, where none were given."""
        if not self.pools:
            self._say_pool(["203.0.113.1/32"])
        if not self.subscribers:
            self._say_subscribers(["100.64.0.0/20"])
        return self

    def limits_of(self, prefix: Prefix, unit: IPv4Network) -> Limits:
        """Of a subscriber or device of a prefix."""
        return next((own.limits for own in self.exceptions if own.network == unit), prefix.limits)

    def shard(self, number: int) -> Shard:
        """What is given about a shard."""
        return self.shards.get(number, Shard())

    def places(self) -> dict[str, tuple[int, Port]]:
        """(side, port) of every row of PORT, in their order, by what scenarios call it; the one port of a stick is outside."""
        if self.stick:
            return {"outside": (BOTH, self.outside)}
        inner = {"inside": self.inside} | {name: port for name, port in self.legs.items() if name.startswith("inside")}
        outer = {"outside": self.outside} | {name: port for name, port in self.legs.items() if name.startswith("outside")}
        return {name: (INTERNAL, port) for name, port in inner.items()} | {n: (EXTERNAL, port) for n, port in outer.items()}

    def ports(self) -> list[tuple[int, Port]]:
        """(side, port) of every row of PORT."""
        return list(self.places().values())

    def at(self, place: str) -> tuple[int, Port]:
        """Row of PORT, and port, of what scenarios call `inside`, `outside2` ..."""
        places = self.places()
        name = place if place in places else "outside"
        return list(places).index(name), places[name][1]

    def side(self, side: str) -> dict[str, Port]:
        """All ports of a side."""
        wanted = (BOTH, INTERNAL if side == "inside" else EXTERNAL)
        return {name: port for name, (told, port) in self.places().items() if told in wanted}

    def is_dead(self, place: str) -> bool:
        """Whether nothing should leave by a port: no carrier, or its peer is lost while another of its side is sound."""
        others = [name for name in self.side(place.rstrip("2")) if name not in (place, *self.lost)]
        return self.lost.get(place) == "carrier" or (place in self.lost and bool(others))

    @property
    def shunt_address(self) -> int:
        """Where the other cores send packets for this one."""
        return self.loopback or self.shunt_port.address

    @property
    def shunt_port(self) -> Port:
        """The port where the other cores are."""
        return self.inside if self.shunts == "inside" else self.outside

    @property
    def private(self) -> list[tuple[int, int]]:
        """(network, mask) of every subscriber prefix."""
        return [(int(p.network.network_address), int(p.network.netmask)) for p in self.subscribers]


def _prefix(words: list[str]) -> Prefix:
    told = pairs(words[1:])
    network = IPv4Network(words[0])
    whose = int(IPv4Network(told["of"]).network_address) if "of" in told else 0
    return Prefix(network, int(told.get("each", 32)), told.get("pool", "main"), whose, read_limits(told))


def _port(port: Port, words: list[str]) -> Port:
    partial = "partial" in words
    told = pairs([word for word in words if word != "partial"])
    host, _, length = told.get("address", "/").partition("/")
    return Port(
        address(host) if host else port.address,
        IPv4Network((host, int(length)), strict=False) if host else port.on_link,
        address(told["gateway"]) if "gateway" in told else port.gateway,
        address(told["inside-gateway"]) if "inside-gateway" in told else port.inside_gateway,
        int(told.get("vlan", port.vlan)),
        int(told.get("mtu", port.mtu)),
        partial or port.partial,
        address6(told["address6"].partition("/")[0]) if "address6" in told else port.address6,
        IPv6Network(told["address6"], strict=False) if "address6" in told else port.on_link6,
        address6(told["gateway6"]) if "gateway6" in told else port.gateway6,
        address6(told["inside-gateway6"]) if "inside-gateway6" in told else port.inside_gateway6,
    )


# --- the bed as a State ---------------------------------------------------------------------------------------------------


def new_bed_state(bed: Bed, now: int) -> State:
    """A state with everything that configuration decides filled in; `shard.attach` is still to be called."""
    units = [2 ** (prefix.each - prefix.network.prefixlen) for prefix in bed.subscribers + bed.devices]
    sizes = Sizes(
        extents=1 + bed.extents, buckets=bed.buckets, externals=sum(p.network.num_addresses + p.spare for p in bed.pools),
        accounts=1 + sum(units), prefixes=len(bed.subscribers), devices=max(len(bed.devices), 1),
        limits=1 + len(bed.subscribers + bed.exceptions + bed.devices), pools=len(bed.pools), rules=RULES, bypasses=RULES,
        statics=max(len(bed.statics), 1), shards=1 + max(*(pool.shard for pool in bed.pools), *bed.shards, 0),
        ports=len(bed.ports()), peers=1 + len(bed.peers), neighbours=bed.neighbours,
        prefixes6=max(len(bed.subscribers6), 1), rules6=RULES, pinholes=max(len(bed.pinholes), 1), grants=1 + bed.grants,
    )  # fmt: skip
    state = new_state(sizes)
    fill_shards(state, bed, now)
    _fill_settings(state, bed)
    _fill_ports(state, bed, now)
    fill_pools(state, bed)
    _fill_accounts(state, bed)
    fill_policy(state, bed)
    _fill_statics(state, bed)
    bed6.fill(state, bed, [number for number, _ in sorted(enumerate(bed.subscribers), key=lambda p: -p[1].network.prefixlen)])
    return state


def _fill_settings(state: State, bed: Bed) -> None:
    row = state.settings[0]
    row["seed"] = np.array([0x243F6A8885A308D3, 0x13198A2E03707344], np.uint64)
    row["secret"] = np.array([0xA4093822299F31D0, 0x082EFA98EC4E6C89], np.uint64)
    state.protocols[list(bed.protocols)] = 1
    lifetimes.lay(
        row,
        {name: int(seconds * 1000) for name, seconds in bed.timeouts_s.items()},
        [(protocol, int(seconds * 1000)) for protocol, _, seconds in bed.port_timers],
    )
    row["port_timers"] = len(bed.port_timers)
    for number, (protocol, (low, high), _) in enumerate(bed.port_timers):
        state.port_timers[number] = (low, high, protocol, 0)
    row["refusal_code"], row["refusal_code6"] = (NO_REPLY if code < 0 else code for code in bed.refusal_codes)
    row["warning"], row["critical"], row["clear"] = bed.alarms
    row["hold_down_s"] = bed.hold_down_s
    row["neighbour_wait"] = NEIGHBOUR_WAIT
    row["icmp_rate"] = row["icmp_burst"] = bed.errors
    row["mss"], row["reject_code"], row["unasked"] = bed.mss, bed.reject_code, bed.unsolicited
    row["quiet"] = sum(1 << ("inside", "outside").index(side) for side in bed.quiet)
    row["hairpin"], row["inbound_refresh"] = bed.hairpin, bed.refresh
    row["log"] = LOGS.index(bed.log)
    row["prefixes"], row["devices"], row["pools"] = len(bed.subscribers), len(bed.devices), len(bed.pools)
    row["statics"], row["shards"], row["ports"] = len(bed.statics), len(state.shards), len(bed.ports())
    told = [side for side, _ in bed.ports()]
    for name, side in (("internal", INTERNAL), ("external", EXTERNAL)):
        rows = [number for number, other in enumerate(told) if other in (side, BOTH)]
        row[f"{name}_port"], row[f"{name}_ports"] = rows[0], len(rows)
    row["shunt_side"] = INTERNAL if bed.shunts == "inside" else EXTERNAL


def fill_shards(state: State, bed: Bed, now: int) -> None:
    """What is given about shards and other cores; `now` is when their grace begins."""
    peers = list(bed.peers)
    state.peers[0]["address"] = bed.shunt_address if peers else 0
    for number, peer in enumerate(bed.peers.values()):
        row = state.peers[1 + number]
        row["address"], row["alive"], row["mtu"] = peer.address, peer.alive, peer.mtu
    for number in range(len(state.shards)):
        shard, row = bed.shard(number), state.shards[number]
        row["id"], row["epoch"], row["side"], row["role"] = number, shard.epoch, shard.side, ROLES.index(shard.role)
        row["creates"] = shard.role == "active"
        row["icmp_address"] = shard.icmp
        row["authority"] = 1 + peers.index(shard.authority) if shard.authority else 0
        row["pickup"], row["grace_until"] = shard.pickup_s > 0, int(now + 1000 * shard.pickup_s) if shard.pickup_s else 0


def _fill_ports(state: State, bed: Bed, now: int) -> None:
    for number, (side, port) in enumerate(bed.ports()):
        row = state.ports[number]
        row["mac"] = np.frombuffer(mac_of(port.address), np.uint8)
        row["mtu"], row["address"], row["vlan"], row["side"] = port.mtu, port.address, port.vlan, side
        row["network"], row["mask"] = int(port.on_link.network_address), int(port.on_link.netmask)
        row["internal_realm"], row["external_realm"] = INTERNAL_REALM, EXTERNAL_REALM
        row["partial"] = port.partial
        row["external_gateway"] = want(state, number, port.gateway, now) if port.gateway and side != INTERNAL else 0
        inside_gateway = port.gateway if side == INTERNAL else port.inside_gateway
        row["internal_gateway"] = want(state, number, inside_gateway, now) if inside_gateway and side != EXTERNAL else 0
        bed6.fill_port(state, number, side, port, now)


def fill_legs(state: State, bed: Bed, now: int) -> None:
    """What is given about the ports that are lost."""
    for number, place in enumerate(bed.places()):
        row, lost = state.ports[number], bed.lost.get(place, "")
        row["carrier_lost"], row["peer_lost"] = lost == "carrier", lost == "peer"
    legs.settle(state, now)


def ordinal_of(bed: Bed, prefix: Prefix) -> int:
    """How many subscribers of its pool were given before those of a prefix."""
    before = bed.subscribers[: bed.subscribers.index(prefix)]
    return sum(2 ** (other.each - other.network.prefixlen) for other in before if other.pool == prefix.pool)


def _fill_accounts(state: State, bed: Bed) -> None:
    pools = [pool.name for pool in bed.pools]
    accounts: dict[int, int] = {}  # of the first address of each subscriber prefix
    first, limit = 1, 1
    for rows, prefixes in ((state.prefixes, bed.subscribers), (state.devices, bed.devices)):
        for number, prefix in enumerate(sorted(prefixes, key=lambda p: -p.network.prefixlen)):
            units = 2 ** (prefix.each - prefix.network.prefixlen)
            row = rows[number]
            row["network"], row["mask"] = int(prefix.network.network_address), int(prefix.network.netmask)
            row["realm"], row["first_account"], row["shift"] = INTERNAL_REALM, first, 32 - prefix.each
            if prefix.of:  # a device has what its subscriber has
                row["parent"] = _account_of(state, bed, prefix.of)
                row["shard"] = next(p["shard"] for p in state.prefixes if prefix.of & int(p["mask"]) == int(p["network"]))
            else:
                row["pool"], row["ordinal"] = pools.index(prefix.pool), ordinal_of(bed, prefix)
                row["shard"] = bed.pools[pools.index(prefix.pool)].shard
            fill_limits(state.limits[limit], prefix.limits)
            state.accounts["limits"][first : first + units] = limit
            accounts[int(prefix.network.network_address)] = first
            first, limit = first + units, limit + 1
    for exception in bed.exceptions:
        fill_limits(state.limits[limit], exception.limits)
        state.accounts["limits"][_account_of(state, bed, int(exception.network.network_address))] = limit
        limit += 1


def _account_of(state: State, bed: Bed, host: int) -> int:
    for row in state.prefixes[: len(bed.subscribers)]:
        if host & int(row["mask"]) == int(row["network"]):
            return int(row["first_account"]) + ((host - int(row["network"])) >> int(row["shift"]))
    raise ValueError("a device or subscriber outside of every subscriber prefix")


def _fill_statics(state: State, bed: Bed) -> None:
    for number, (protocol, external, internal) in enumerate(bed.statics):
        static = state.statics[number]
        static["protocol"] = protocol
        static["external_address"], static["external_port"] = external
        static["internal_address"], static["internal_port"] = internal


# --- neighbours: the test plays the supervisor ----------------------------------------------------------------------------


def want(state: State, port: int, host: int, now: int) -> int:
    """Row of a neighbour, made if there is none."""
    return int(neighbours.find(state, port, host) or neighbours.want(state, port, host, now))


def answer(state: State, bed: Bed, now: int = 0) -> None:
    """Resolve every wanted neighbour but the silent ones, or give it up, as the supervisor would."""
    for number in np.flatnonzero(state.neighbours["own_state"] == WANTED):
        row = state.neighbours[number]
        host = bed6.host_of(row) if row["six"] else int(row["address"])
        if host not in bed.silent:
            if host not in bed.failed:
                row["own_mac"] = np.frombuffer(mac_of6(host) if row["six"] else mac_of(host), np.uint8)
            row["own_state"] = FAILED if host in bed.failed else REACHABLE
            state.core[0]["neighbours_version"] += 1
    legs.settle(state, now)
