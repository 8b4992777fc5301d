"""The NAT in plain dictionaries: the oracle that the pipeline is held against (RFC 4787, 5382, 5508, 6146, 6888, 7857).

Obvious rather than fast. It says what becomes of a frame: the verdict, the translated packet, where it goes, and what ICMP
error its sender is owed. The one thing that it does not compute is which external port a new mapping gets: it asks `choose`,
checks that the answer is legal (the pool's, paired, in a block of the subscriber's, neither owned nor held down) and adopts it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from tests import frames, shunts
from tests.admission import FIN, RST, SYN, admit
from tests.bed import NEIGHBOUR_WAIT, Bed, Pool, Port, Prefix, block_range, contains
from tests.frames import ICMP, REPLIES, TCP, UDP, Malformed, Packet, build, build_frame, mac_of
from tests.frames6 import Packet6, is_six_frame
from tests.model6 import Model6, Session6
from tests.translation import (
    TCP_TABLE,
    Endpoint,
    Refused,
    can_have_passed,
    embedded,
    first_state,
    identifier,
    may_open,
    remote_port_of,
    with_destination,
    with_source,
)

Choose = Callable[[int, Endpoint], Endpoint]  # (protocol, internal endpoint) -> external endpoint

UNREACHABLE, HOST_UNREACHABLE, FRAG_NEEDED, TIME_EXCEEDED = 0x0300, 0x0301, 0x0304, 0x0B00  # ICMP type << 8 | code


class Waits(Exception):
    """A next hop has not answered yet."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.verdict)
        self.outcome = outcome


class Shunted(Exception):
    """The packet is for the core with the authority over its shard; it is on the way there, or waits for it."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.verdict)
        self.outcome = outcome


class Illegal(AssertionError):
    """The external endpoint that was chosen for a mapping must not be used for it."""


class Outcome(NamedTuple):
    """What becomes of one frame."""

    verdict: str
    packet: Packet | Packet6 | None = None  # as it leaves, or waits to leave
    side: str = ""  # by which port
    hop: int = 0  # address of the next hop
    reply: tuple[int, int] | None = None  # ICMP error to the sender: type << 8 | code, last four header bytes
    shunt: shunts.Wrapping | None = None  # what is told to the core that it is passed to
    patience: int = NEIGHBOUR_WAIT  # ticks that it may wait


@dataclass
class Mapping:
    """Internal endpoint <-> external endpoint."""

    protocol: int
    internal: Endpoint
    external: Endpoint
    static: bool = False
    sessions: set[Endpoint] = field(default_factory=set)  # remotes


@dataclass
class Session:
    """A mapping's traffic with one remote."""

    mapping: Mapping
    remote: Endpoint
    state: str
    expiry: int

    @property
    def protocol(self) -> int:
        """Its mapping's."""
        return self.mapping.protocol


@dataclass
class Subscriber:
    """The external address a subscriber is paired with, and his blocks there."""

    external: int = 0
    blocks: set[int] = field(default_factory=set)


class Model:
    """One core. `receive` is all that happens to it, beside the passing of time."""

    def __init__(self, bed: Bed, now: int) -> None:
        self.bed = bed
        self.mappings: dict[tuple[int, Endpoint], Mapping] = {}  # by protocol and internal endpoint
        self.owners: dict[tuple[int, Endpoint], Mapping] = {}  # by protocol and external endpoint
        self.sessions: dict[tuple[int, Endpoint, Endpoint], Session] = {}  # protocol, internal, remote
        self.subscribers: dict[IPv4Network, Subscriber] = {}
        self.freed: dict[tuple[int, Endpoint], int] = {}  # when a port was freed
        self.tokens: dict[Prefix | IPv4Network | str, tuple[float, int]] = {}
        self.soonest = now  # nothing ends before
        self.pool_of = {int(host): pool for pool in bed.pools for host in pool.network}
        for protocol, external, internal in bed.statics:
            self._add(Mapping(protocol, internal, external, static=True))
        self.now = now
        self.begun = now
        self.six = Model6(self)
        self.came: shunts.Wrapping | None = None  # of the packet in hand: who has passed it to us

    # --- a frame ----------------------------------------------------------------------------------------------------------

    def receive(self, side: str, frame: bytes, now: int, choose: Choose) -> Outcome:
        """What becomes of a frame that arrives `inside` or `outside` at tick `now`."""
        self.pass_time(now)
        self.came = None
        if self.bed.subscribers6 and is_six_frame(frame):
            return self._receive6(side, frame)
        try:
            packet = admit(self.bed.inside if side == "inside" else self.bed.outside, frame)
            if self._is_shunted(packet):
                self.came, packet = self._unwrap(packet)
                side = self.came.side
        except Malformed as wrong:
            return Outcome(wrong.verdict)
        if self.bed.stick:
            side = "inside" if self._prefix_of(packet.source) else "outside"
        try:
            turned = self.came is not None and self.came.turned
            return self._outbound(packet, choose) if side == "inside" else self._inbound(packet, turned=turned)
        except Refused as refused:
            owed = refused.reply if not packet.is_error and self._may_tell(refused.reply, side) else None
            return Outcome(refused.verdict, reply=owed)
        except (Waits, Shunted) as going:
            return going.outcome

    def _receive6(self, side: str, frame: bytes) -> Outcome:
        try:
            packet = self.six.admit(self.bed.inside if side == "inside" else self.bed.outside, frame)
        except Malformed as wrong:
            return Outcome(wrong.verdict)
        if self.bed.stick:
            side = "inside" if self.bed.prefix6_of(packet.source) else "outside"
        try:
            return self.six.receive(packet, side, 40 + int.from_bytes(frames.split_frame(frame)[4][4:6], "big"))
        except Refused as refused:
            owed = refused.reply if not packet.is_error and self._may_tell(refused.reply, side, six=True) else None
            return Outcome(refused.verdict, reply=owed)
        except (Waits, Shunted) as going:
            return going.outcome

    def wait(self, outcome: Outcome) -> None:
        """The packet waits as it came."""
        raise Waits(outcome)

    def outcome(self, verdict: str, packet: Packet6, side: str, hop: int) -> Outcome:
        """Of a packet of IPv6."""
        return Outcome(verdict, packet, side, hop)

    # --- from core to core ------------------------------------------------------------------------------------------------

    def _is_shunted(self, packet: Packet) -> bool:
        ours = (self.bed.shunt_port.address, shunts.PORT)
        return bool(self.bed.peers) and packet.protocol == UDP and (packet.destination, packet.destination_port) == ours

    def _unwrap(self, packet: Packet) -> tuple[shunts.Wrapping, Packet]:
        """The packet inside, as if it had come by our own port of that side (no local sender's)."""
        if packet.source not in self.bed.peers:
            raise Malformed("shunt_foreign")
        told, inner = shunts.unwrap(packet)
        port = replace(self.bed.inside if told.side == "inside" else self.bed.outside, partial=False)
        return told, admit(port, build_frame(mac_of(port.address), bytes(6), inner, port.vlan))

    def _need_authority(self, number: int, packet: Packet, side: str, turned: bool = False) -> None:
        """Only the core with the authority over a shard goes on. Another passes the packet there, unless it came so itself."""
        shard = self.bed.shard(number)
        second_half = turned and not (self.came and self.came.turned)  # of a hairpin whose first half was for us
        meant = not self.came or second_half or (self.came.shard == number and self.came.epoch <= shard.epoch)
        if shard.role == "active" and meant:
            return
        if self.came:
            raise Refused("shunt_refused")
        waits = Outcome("held", packet, patience=1000)
        peer = self.bed.peers.get(shard.authority)
        if peer is None or not peer.alive:
            raise Shunted(waits)
        if turned and packet.ttl <= 1:
            raise Refused("ttl_exceeded", (TIME_EXCEEDED, 0))
        way, port = self.bed.shunts, self.bed.shunt_port
        hop = self.hop(way, peer.address)
        if hop in self.bed.failed:
            raise Refused("no_authority")
        if hop in self.bed.silent:
            raise Shunted(waits)
        if len(build(packet)) + shunts.BYTES > min(port.mtu, peer.mtu or 65535):
            raise Refused("shunt_too_big")
        packet = replace(packet, residue=0 if packet.residue == -1 else packet.residue)
        told = shunts.Wrapping(port.address, peer.address, side, number, shard.epoch, turned)
        raise Shunted(Outcome("shunted", packet, way, hop, shunt=told))

    # --- a packet ---------------------------------------------------------------------------------------------------------

    def _outbound(self, packet: Packet, choose: Choose) -> Outcome:
        if not self._prefix_of(packet.source) and not packet.is_error:
            raise Refused("spoofed_source")
        if _names_no_host(self.bed.inside, packet.source) and not packet.is_error:
            raise Refused("spoofed_source")
        if self._prefix_of(packet.destination):
            raise Refused("inside_destination")
        if _names_no_host(self.bed.outside, packet.destination) and not packet.is_error:
            raise Refused("martian_destination")
        turns = packet.destination in self.pool_of
        if packet.is_error:
            return self._error_outbound(packet, turns)
        if turns and not self.bed.hairpin:
            raise Refused("hairpin_refused")
        session = self._session_out(packet, choose, turns)
        translated = with_source(packet, session.mapping.external)
        if turns:
            outcome = self._turn(translated)
        else:
            outcome = self._send(translated, "outside", "forwarded_out")
        if outcome.verdict != "held":
            self.advance(session, "out", packet.flags)
        return outcome

    def _turn(self, translated: Packet) -> Outcome:
        try:
            return self._inbound(translated, turned=True)
        except Shunted as shunted:
            return shunted.outcome

    def _inbound(self, packet: Packet, turned: bool = False) -> Outcome:
        verdict = "hairpinned" if turned and not (self.came and self.came.turned) else "forwarded_in"
        if packet.destination not in self.pool_of:
            raise Refused("inside_destination" if self._prefix_of(packet.destination) else "not_our_destination")
        if not turned and (self._prefix_of(packet.source) or packet.source in self.pool_of):
            raise Refused("spoofed_source")
        if packet.is_error:
            return self._send(self._error_in(packet, turned), "inside", verdict)
        mapping = self.owners.get((packet.protocol, (packet.destination, packet.destination_port or identifier(packet))))
        remote = (packet.source, remote_port_of(packet, packet.source_port))
        session = self._met(self.sessions.get((packet.protocol, mapping.internal, remote))) if mapping else None
        if session is None:
            self._need_authority(self.pool_of[packet.destination].shard, packet, "outside", turned)
        if mapping is None:
            raise Refused("no_mapping")
        if session is None:
            self._obey_rules("inbound", packet, mapping.internal, remote)
            self._filter(mapping, remote)
        outcome = self._send(with_destination(packet, mapping.internal), "inside", verdict)
        if session and outcome.verdict != "held":
            self.advance(session, "in", packet.flags)
        return outcome

    def _send(self, packet: Packet, side: str, verdict: str) -> Outcome:
        port = self.bed.inside if side == "inside" else self.bed.outside
        if packet.ttl <= 1:
            raise Refused("ttl_exceeded", (TIME_EXCEEDED, 0))
        hop = self.hop(side, packet.destination)
        packet = replace(packet, ttl=packet.ttl - 1, residue=0 if packet.residue == -1 else packet.residue)
        if self.bed.mss and packet.protocol == TCP and packet.flags & SYN:
            packet = packet.clamped(self.bed.mss)
        if hop in self.bed.failed:
            raise Refused("neighbour_unresolved", (HOST_UNREACHABLE, 0))
        if hop in self.bed.silent:
            return Outcome("held", packet, side, hop)
        if len(build(packet)) > port.mtu:
            if packet.fragment & 0x4000:
                raise Refused("too_big", (FRAG_NEEDED, port.mtu))
            raise Refused("needs_fragmenting")
        return Outcome(verdict, packet, side, hop)

    def give_up(self, held: Outcome) -> Outcome:
        """A packet has waited for its neighbour long enough."""
        assert held.packet
        if held.patience < NEIGHBOUR_WAIT:
            return Outcome("no_authority")
        owed = (HOST_UNREACHABLE, 0)
        source = held.packet.source
        if isinstance(held.packet, Packet6):
            return self._give_up6(held.packet)
        side = "inside" if self._prefix_of(source) or source in self.pool_of else "outside"
        return Outcome("neighbour_unresolved", reply=owed if not held.packet.is_error and self._may_tell(owed, side) else None)

    def _give_up6(self, packet: Packet6) -> Outcome:
        owed = (0x0103, 0)
        side = "inside" if self.bed.prefix6_of(packet.source) else "outside"
        told = not packet.is_error and self._may_tell(owed, side, six=True)
        return Outcome("neighbour_unresolved", reply=owed if told else None)

    def _may_tell(self, reply: tuple[int, int] | None, side: str, six: bool = False) -> bool:
        """The rate of ICMP errors of our own (RFC 1812 4.3.2.8), to each side."""
        if six and self.bed.outside.on_link6 is None:
            return False
        turned = self.came is not None and self.came.turned  # nobody here knows its sender
        side = "inside" if turned else side
        return reply is not None and self._spend(f"errors to {side}", self.bed.errors, self.bed.errors) and not turned

    # --- mappings and sessions --------------------------------------------------------------------------------------------

    def _session_out(self, packet: Packet, choose: Choose, turns: bool) -> Session:
        internal = (packet.source, packet.source_port or identifier(packet))
        remote = (packet.destination, remote_port_of(packet, packet.destination_port))
        session = self._met(self.sessions.get((packet.protocol, internal, remote)))
        if session:
            return session
        self._need_authority(self.pool(packet.source).shard, packet, "inside")
        mapping = self.mappings.get((packet.protocol, internal))
        if packet.protocol == ICMP and packet.kind >> 8 in REPLIES and mapping is None:
            raise Refused("icmp_type_not_served")
        goes_on = mapping is not None or self._picks_up(packet)
        if packet.protocol == TCP and not may_open(packet.flags, goes_on):
            raise Refused("tcp_not_opening")
        self._obey_rules("outbound", packet, internal, remote)
        self._find_way(packet, turns)
        self.obey_limits(packet.source, mapping is None)
        if mapping is None:
            mapping = Mapping(packet.protocol, internal, self._choose(packet.protocol, internal, choose))
            self._add(mapping)
        return self._open(mapping, remote, first_state(packet))

    def _picks_up(self, packet: Packet) -> bool:
        """A connection that is under way may be one that the authority before us had, as long as the grace lasts."""
        grace = 1000 * self.bed.shard(self.pool(packet.source).shard).pickup_s
        return not packet.flags & SYN and self.now - self.begun < grace

    def picks_up(self, host: int, flags: int) -> bool:
        """The same for a connection of IPv6 of the subscriber with an IPv4 address."""
        return self._picks_up(Packet(TCP, host, 0, flags=flags))

    def _find_way(self, packet: Packet, turns: bool) -> None:
        """Both next hops must have answered before anything is remembered."""
        if packet.ttl <= 1:
            raise Refused("ttl_exceeded", (TIME_EXCEEDED, 0))
        if not turns and (outcome := self._send(packet, "outside", "")).verdict == "held":
            raise Waits(outcome._replace(packet=packet))
        hop = self.hop("inside", packet.source)
        if hop in self.bed.failed:
            raise Refused("neighbour_unresolved", (HOST_UNREACHABLE, 0))
        if hop in self.bed.silent:
            raise Waits(Outcome("held", packet, "inside", hop))

    def hop(self, side: str, host: int) -> int:
        """The next hop to a host: itself where it is on-link, or where nobody else is named."""
        port = self.bed.inside if side == "inside" else self.bed.outside
        gateway = port.inside_gateway if self.bed.stick and side == "inside" else port.gateway
        return host if contains(port.on_link, host) or not gateway else gateway

    def _add(self, mapping: Mapping) -> None:
        self.mappings[mapping.protocol, mapping.internal] = mapping
        self.owners[mapping.protocol, mapping.external] = mapping

    def _open(self, mapping: Mapping, remote: Endpoint, state: str) -> Session:
        session = Session(mapping, remote, state, self.now + self.lifetime(state))
        self.sessions[mapping.protocol, mapping.internal, remote] = session
        self.soonest = min(self.soonest, session.expiry)
        mapping.sessions.add(remote)
        return session

    def end(self, session: Session) -> None:
        """End a session; its mapping goes with its last one, and the port is held down from now on."""
        mapping = session.mapping
        del self.sessions[mapping.protocol, mapping.internal, session.remote]
        mapping.sessions.discard(session.remote)
        if mapping.sessions or mapping.static:
            return
        del self.mappings[mapping.protocol, mapping.internal]
        del self.owners[mapping.protocol, mapping.external]
        self.freed[mapping.protocol, mapping.external] = self.now
        self._return_block(mapping)

    def _return_block(self, mapping: Mapping) -> None:
        subscriber = self._subscriber(mapping.internal[0])
        host, port = mapping.external
        size = self.pool_of[host].block
        if any(other[0] == host and other[1] // size == port // size for _, other in self.owners):
            return
        subscriber.blocks.discard(port // size)
        if not subscriber.blocks:
            subscriber.external = 0

    def pass_time(self, now: int) -> None:
        """End what is due at tick `now`."""
        self.now = now
        if now < self.soonest:
            return
        for session in [session for session in self.sessions.values() if session.expiry <= now and self._may_end(session)]:
            self.end(session)
        self.six.pass_time(now)
        expiries = [session.expiry for session in self.sessions.values()]
        expiries += [session.expiry for session in self.six.sessions.values()]
        self.soonest = min(expiries, default=now)

    def _may_end(self, session: Session) -> bool:
        """Only the core with the authority over a shard ends what is due, and not before its grace is over."""
        return self.may_end(self.pool_of[session.mapping.external[0]].shard)

    def may_end(self, number: int) -> bool:
        """The same of a shard's."""
        shard = self.bed.shard(number)
        return shard.role in ("absent", "active") and self.now - self.begun >= 1000 * shard.pickup_s

    def _met(self, session: Session | None) -> Session | None:
        """A session that a packet has met; one that is due lives on where it must not end."""
        if session and session.expiry <= self.now:
            session.expiry = self.now + self.lifetime(session.state)
        return session

    def _filter(self, mapping: Mapping, remote: Endpoint) -> None:
        """RFC 4787 section 5. A static mapping is there to let everyone in."""
        filtering = self.pool_of[mapping.external[0]].filtering
        if filtering == "endpoint-independent" or mapping.static:
            return
        if filtering == "address-dependent" and any(host == remote[0] for host, _ in mapping.sessions):
            return
        raise Refused("filtered")

    def advance(self, session: Session | Session6, way: str, flags: int) -> None:
        """Let a packet move a session on."""
        if session.protocol != TCP:
            if way == "out" or self.bed.refresh:
                session.expiry = self.now + self.lifetime(session.state)
            return
        event = "rst" if flags & RST else "syn" if flags & SYN else "fin" if flags & FIN else "other"
        cell = TCP_TABLE[way, session.state][event]
        if cell == "-":
            return
        session.state = session.state if cell == "." else cell
        session.expiry = self.now + self.lifetime(session.state)
        self.soonest = min(self.soonest, session.expiry)

    def lifetime(self, state: str) -> int:
        """Ticks that a session in this state lives on without a packet."""
        long = state in ("established", "fin_out", "fin_in")
        name = {"udp": "udp", "query": "icmp"}.get(state, "established" if long else "transitory")
        return int(self.bed.timeouts_s[name] * 1000)

    # --- whose port -------------------------------------------------------------------------------------------------------

    def _choose(self, protocol: int, internal: Endpoint, choose: Choose) -> Endpoint:
        """The external endpoint that the other side chose, once it is proven legal."""
        subscriber, pool = self._subscriber(internal[0]), self.pool(internal[0])
        old = any(self._free_port(protocol, subscriber.external, block, pool.block) for block in subscriber.blocks)
        if not old and len(subscriber.blocks) >= pool.blocks:
            raise Refused("ports_exhausted")
        if not old and not any(self._free_blocks(subscriber, pool, protocol)):
            raise Refused("pool_exhausted")
        host, port = choose(protocol, internal)
        block = (host, port // pool.block)
        if old and (host != subscriber.external or block[1] not in subscriber.blocks):
            raise Illegal(f"{IPv4Address(host)}:{port} although the subscriber has free ports in his blocks")
        if not old and block not in self._free_blocks(subscriber, pool, protocol):
            raise Illegal(f"{IPv4Address(host)}:{port} is in no block that this subscriber may take")
        if not self._is_of_our_side(host, port):
            raise Illegal(f"{IPv4Address(host)}:{port} is for the other replica to hand out")
        if not self._is_free(protocol, (host, port)) or port < 1024:
            raise Illegal(f"{IPv4Address(host)}:{port} is owned, held down or reserved")
        subscriber.external = host
        subscriber.blocks.add(block[1])
        return host, port

    def _free_port(self, protocol: int, host: int, block: int, size: int) -> int:
        """The first free port of a block, or 0."""
        ports = [port for port in range(block * size, (block + 1) * size) if self._is_of_our_side(host, port)]
        return next((port for port in ports if self._is_free(protocol, (host, port))), 0)

    def _is_of_our_side(self, host: int, port: int) -> bool:
        pool = self.pool_of[host]
        return not self.bed.two_sides or side_of(pool, port) == self.bed.shard(pool.shard).side

    def _is_free(self, protocol: int, external: Endpoint) -> bool:
        freed = self.freed.get((protocol, external))
        # In whole seconds, rounded so that it is never less than the hold-down.
        rested = freed is None or not self.bed.hold_down_s or self.now // 1000 - freed // 1000 > self.bed.hold_down_s
        return rested and (protocol, external) not in self.owners

    def _free_blocks(self, subscriber: Subscriber, pool: Pool, protocol: int) -> Iterator[tuple[int, int]]:
        """Blocks that the subscriber may take: nobody's, and not held down wholly."""
        taken = {(other.external, block) for other in self.subscribers.values() for block in other.blocks}
        statics = (mapping.external for mapping in self.owners.values() if mapping.static)
        taken |= {(host, port // pool.block) for host, port in statics}
        hosts = [subscriber.external] if subscriber.blocks else [int(host) for host in pool.network]
        for host, block in itertools.product(hosts, range(*block_range(pool))):
            ours = self._is_of_our_side(host, block * pool.block)
            if (host, block) not in taken and ours and self._free_port(protocol, host, block, pool.block):
                yield host, block

    def _subscriber(self, host: int) -> Subscriber:
        prefix = self._prefix_of(host)
        assert prefix is not None
        return self.subscribers.setdefault(prefix.unit(host), Subscriber())

    def pool(self, host: int) -> Pool:
        """Pool of a subscriber."""
        prefix = self._prefix_of(host)
        assert prefix is not None
        return next(pool for pool in self.bed.pools if pool.name == prefix.pool)

    def _prefix_of(self, host: int) -> Prefix | None:
        return _longest(self.bed.subscribers, host)

    # --- policy -----------------------------------------------------------------------------------------------------------

    def _obey_rules(self, direction: str, packet: Packet, internal: Endpoint, remote: Endpoint) -> None:
        for rule in self.bed.rules:
            ports = [(rule.internal_ports, internal[1]), (rule.remote_ports, remote[1])]
            if packet.protocol == ICMP:  # has no ports: a rule that names some does not fit
                ports_fit = all(limits == (0, 65535) for limits, _ in ports)
            else:
                ports_fit = all(low <= port <= high for (low, high), port in ports)
            if (
                rule.direction in (direction, "both")
                and rule.protocol in ("any", {ICMP: "icmp", TCP: "tcp", UDP: "udp"}[packet.protocol])
                and contains(rule.internal, internal[0])
                and contains(rule.remote, remote[0])
                and ports_fit
            ):
                if rule.action == "drop":
                    raise Refused("rule_dropped")
                if rule.action == "reject":
                    raise Refused("rule_rejected", (UNREACHABLE | self.bed.reject_code, 0))
                return

    def obey_limits(self, host: int, new_mapping: bool, devices: bool = True) -> None:
        """The device's, then the subscriber's (RFC 6888 REQ-4, REQ-5)."""
        device = _longest(self.bed.devices, host) if devices else None
        holders = [prefix for prefix in (device, self._prefix_of(host)) if prefix]
        for prefix in holders:
            unit = prefix.unit(host)
            sessions, mappings, rate, burst = self._limits(prefix, unit)
            six = 0 if prefix is device else self.six.count(unit)
            if sessions and six + sum(contains(unit, internal[0]) for _, internal, _ in self.sessions) >= sessions:
                raise Refused("session_limit")
            if new_mapping and mappings and sum(contains(unit, internal[0]) for _, internal in self.mappings) >= mappings:
                raise Refused("mapping_limit")
            if rate and self._tokens(unit, rate, burst) < 1:
                raise Refused("rate_limit")
        for prefix in holders:
            unit = prefix.unit(host)
            *_, rate, burst = self._limits(prefix, unit)
            if rate:
                self._spend(unit, rate, burst)

    def _limits(self, prefix: Prefix, unit: IPv4Network) -> tuple[int, int, int, int]:
        return next((own.limits for own in self.bed.exceptions if own.network == unit), prefix.limits)

    def _tokens(self, whose: IPv4Network | str, rate: int, burst: int) -> float:
        tokens, at = self.tokens.get(whose, (burst, self.now))
        return min(burst, tokens + (self.now - at) * rate / 1000)

    def _spend(self, whose: IPv4Network | str, rate: int, burst: int) -> bool:
        tokens = self._tokens(whose, rate, burst)
        self.tokens[whose] = (tokens - (tokens >= 1), self.now)
        return tokens >= 1

    # --- ICMP errors about our packets (RFC 5508 4) -----------------------------------------------------------------------

    def _error_outbound(self, packet: Packet, turns: bool) -> Outcome:
        translated = self._error_out(packet)
        if turns and not self.bed.hairpin:
            raise Refused("hairpin_refused")
        if turns and packet.ttl <= 1:
            raise Refused("ttl_exceeded")
        if turns and (outcome := self._turn(translated)).verdict == "held":
            raise Refused("no_authority" if outcome.patience < NEIGHBOUR_WAIT else "neighbour_unresolved")
        return outcome if turns else self._send(translated, "outside", "forwarded_out")

    def _error_out(self, packet: Packet) -> Packet:
        """An inside station's word on a packet that we delivered: outer source and embedded destination become external."""
        about = embedded(packet)
        if about.source != packet.destination:
            raise Refused("icmp_unrelated")
        internal = (about.destination, about.destination_port or identifier(about))
        mapping = self.mappings.get((about.protocol, internal))
        if mapping is None and can_have_passed(about) and self._prefix_of(about.destination):
            self._need_authority(self.pool(about.destination).shard, packet, "inside")
        if mapping is None:
            raise Refused("icmp_unrelated")
        return replace(packet, source=mapping.external[0], about=with_destination(about, mapping.external))

    def _error_in(self, packet: Packet, turned: bool) -> Packet:
        """The Internet's word on a packet that we sent: outer destination and embedded source become internal."""
        about = embedded(packet)
        mapping = self.owners.get((about.protocol, (about.source, about.source_port or identifier(about))))
        ours = not turned and about.destination in self.pool_of  # such a packet never went out
        known = about.source == packet.destination and not ours
        if mapping is None and known and can_have_passed(about):
            self._need_authority(self.pool_of[about.source].shard, packet, "outside", turned)
        if mapping is None or not known:
            raise Refused("icmp_unrelated")
        return replace(packet, destination=mapping.internal[0], about=with_source(about, mapping.internal))


# --- what needs no memory -------------------------------------------------------------------------------------------------


def side_of(pool: Pool, port: int) -> int:
    """Side of a port where a pool has two: the last of eight blocks, and of eight 64-port chunks in each, is the other's."""
    chunks, chunk = pool.block // 64, port % pool.block // 64
    end = chunks > 1 and chunk >= chunks - max(chunks // 8, 1)
    return int((port // pool.block % 8 == 7) != end)


def _names_no_host(port: Port, host: int) -> bool:
    """The core itself, or its whole link."""
    link = port.on_link
    ends = (int(link.network_address), int(link.broadcast_address)) if link.prefixlen < 31 else ()
    return host == port.address or host in ends


def _longest(prefixes: list[Prefix], host: int) -> Prefix | None:
    fitting = [prefix for prefix in prefixes if contains(prefix.network, host)]
    return max(fitting, key=lambda prefix: prefix.network.prefixlen, default=None)
