"""The NAT in plain dictionaries: the oracle that the pipeline is held against (RFC 4787, 5382, 5508, 6146, 6888, 7857).

Obvious rather than fast. It says what becomes of a frame: the verdict, the translated packet, where it goes, and what ICMP
error its sender is owed. The one thing that it does not compute is which external port a new mapping gets: it asks `choose`,
checks that the answer is legal (the pool's, paired, in a block of the subscriber's, neither owned nor held down) and adopts it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network

from tests import shunts
from tests.admission import FIN, RST, SYN, admit, beginning, blanked, is_fragment, names_no_host
from tests.bed import NEIGHBOUR_WAIT, Bed, Port, Prefix, contains, longest
from tests.bed_pools import Pool
from tests.bed_rules import PROTOCOLS
from tests.datagrams import Datagrams, Part, Service
from tests.frames import ICMP, REPLIES, TCP, UDP, Malformed, Packet, build, build_frame, mac_of
from tests.frames6 import Packet6, is_six_frame
from tests.limits import TOLD_REFUSALS, Limits
from tests.model6 import Model6, Session6
from tests.model_bare import Bare
from tests.model_bypass import Untranslated
from tests.model_errors import Errors
from tests.model_generic import Generic
from tests.model_ports import Choose, Ports, Subscriber
from tests.model_unasked import Unasked
from tests.outcome import Outcome, Shunted, Waits, Way
from tests.translation import (
    TCP_TABLE,
    Endpoint,
    Refused,
    first_state,
    identifier,
    lifetime,
    may_open,
    remote_port_of,
    with_destination,
    with_source,
)

UNREACHABLE, HOST_UNREACHABLE, FRAG_NEEDED, TIME_EXCEEDED = 0x0300, 0x0301, 0x0304, 0x0B00  # ICMP type << 8 | code


@dataclass
class Mapping:
    """Internal endpoint <-> external endpoint."""

    protocol: int
    internal: Endpoint
    external: Endpoint
    static: bool = False
    bypass: bool = False  # no mapping at all: what is not translated, of one session
    sessions: set[Endpoint] = field(default_factory=set)  # remotes


@dataclass
class Session:
    """A mapping's traffic with one remote."""

    mapping: Mapping
    remote: Endpoint
    state: str
    expiry: int
    version: int = 1  # of the rules that admitted it

    @property
    def protocol(self) -> int:
        """Its mapping's."""
        return self.mapping.protocol


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
        self.told: dict[IPv4Network, int] = {}  # when a device or subscriber was last told of a refusal
        self.soonest = now  # nothing ends before
        self.pool_of: dict[int, Pool] = {}
        self.learn_pools()
        for protocol, external, internal in bed.statics:
            self._add(Mapping(protocol, internal, external, static=True))
            self.subscriber(internal[0]).last = self.subscriber(internal[0]).last or external[0]
        self.now = now
        self.begun = now
        self.ports, self.generic, self.six, self.bare = Ports(self), Generic(self), Model6(self), Bare(self)
        self.untranslated, self.errors, self.unasked = Untranslated(self), Errors(self), Unasked(self)
        self.came: shunts.Wrapping | None = None  # of the packet in hand: who has passed it to us
        self.datagrams = Datagrams()

    # --- a frame ----------------------------------------------------------------------------------------------------------

    def receive(self, side: str, frame: bytes, now: int, choose: Choose, until: int = 0) -> Outcome:
        """What becomes of a frame that arrives `inside`, `outside2` ... at tick `now`; `until`: when it is served again."""
        self.pass_time(now)
        self.came, self.untranslated.in_hand = None, False
        if self.bed.subscribers6 and is_six_frame(frame):
            return self.six.receive(side, frame, until)
        try:
            packet = admit(self.bed.at(side)[1], frame, self.bed.protocols)
            side = side.rstrip("2")
            if self._is_shunted(packet):
                self.came, packet = self._unwrap(packet)
                side = self.came.side
        except Malformed as wrong:
            return Outcome(wrong.verdict)
        if (side == "inside" or self.bed.stick) and self.came is None:  # else the other core has done it
            packet = replace(packet, ip_options=blanked(packet.ip_options))
        if self.bed.stick:
            side = "inside" if self._prefix_of(packet.source) else "outside"
        if is_fragment(packet):
            return self._receive_fragment(packet, side, choose, until)
        return self._decide(packet, side, choose)

    def _decide(self, packet: Packet, side: str, choose: Choose) -> Outcome:
        """What becomes of a packet with a transport header."""
        try:
            return self._outbound(packet, choose) if side == "inside" else self._inbound(packet, turned=self._came_turned)
        except Refused as refused:
            self.unasked.note(refused.verdict, packet, side)
            if refused.verdict in TOLD_REFUSALS:
                return Outcome(refused.verdict, reply=self.tell_refusal(packet.source, six=False))
            owed = refused.reply if not packet.is_error and self.may_tell(refused.reply, side) else None
            return Outcome(refused.verdict, reply=owed)
        except (Waits, Shunted) as going:
            return going.outcome

    @property
    def _came_turned(self) -> bool:
        """Whether the packet in hand is the second half of a hairpin, whose first another core has done."""
        return self.came is not None and self.came.turned

    # --- fragments: the first is decided, the others follow (RFC 4787 REQ-14) ---------------------------------------------

    def _receive_fragment(self, packet: Packet, side: str, choose: Choose, until: int) -> Outcome:
        key = side, self._came_turned, packet.source, packet.destination, packet.protocol, packet.id
        ours = packet.source if side == "inside" else packet.destination
        offset, more = 8 * (packet.fragment & 0x1FFF), bool(packet.fragment & 0x2000)
        service = Service(
            lambda: self._plausible(packet, side, offset),
            lambda: beginning(packet),
            lambda first: self._decide(first, side, choose),
            lambda first: self._follow(packet, first),
        )
        return self.datagrams.serve(Part(key, ours, offset, len(packet.payload), more), self.now, until, service)

    def _plausible(self, packet: Packet, side: str, offset: int) -> None:
        """It can be (RFC 791, RFC 3128), and nobody has a datagram under way who could not send, or be sent, anything."""
        size = len(packet.payload)
        if not size or (packet.fragment & 0x2000 and size % 8) or offset + size > 65535 - 20:
            raise Malformed("bad_fragment")
        if packet.protocol == TCP and 0 < offset < 20:
            raise Malformed("tiny_fragment")
        if side == "inside" and not self._prefix_of(packet.source):
            raise Malformed("spoofed_source")
        inside = self._prefix_of(packet.destination) is not None
        if inside and not self.untranslated.names(packet.destination, "outbound" if side == "outside" else "inbound"):
            raise Malformed("inside_destination")
        if side == "outside" and not inside and packet.destination not in self.pool_of:
            raise Malformed("not_our_destination")
        if side == "outside" and not self._came_turned and (self._prefix_of(packet.source) or packet.source in self.pool_of):
            raise Malformed("spoofed_source")

    def _follow(self, packet: Packet, first: Outcome) -> Outcome:
        """A fragment behind the first goes its way; nobody is told about one (RFC 1122 3.2.2)."""
        assert isinstance(first.packet, Packet)
        packet = replace(packet, source=first.packet.source, destination=first.packet.destination)
        try:
            self.untranslated.in_hand = self._prefix_of(packet.source) is not None
            if first.shunt:
                if self.bed.shard(first.shunt.shard).role == "active":
                    raise Refused("fragment_refused")
                self._need_authority(first.shunt.shard, packet, first.shunt.side, first.shunt.turned)
            outcome = self._send(packet, first.side, first.verdict)
            return Outcome("neighbour_unresolved") if outcome.verdict == "held" else outcome
        except Refused as refused:
            return Outcome(refused.verdict)
        except Shunted as shunted:
            return shunted.outcome if shunted.outcome.shunt else Outcome("no_authority")

    # --- from core to core ------------------------------------------------------------------------------------------------

    def _is_shunted(self, packet: Packet) -> bool:
        ours = (self.bed.shunt_address, shunts.PORT)
        return bool(self.bed.peers) and packet.protocol == UDP and (packet.destination, packet.destination_port) == ours

    def _unwrap(self, packet: Packet) -> tuple[shunts.Wrapping, Packet]:
        """The packet inside, as if it had come by our own port of that side (no local sender's)."""
        if packet.source not in self.bed.peers:
            raise Malformed("shunt_foreign")
        told, inner = shunts.unwrap(packet)
        port = replace(self.bed.inside if told.side == "inside" else self.bed.outside, partial=False)
        return told, admit(port, build_frame(mac_of(port.address), bytes(6), inner, port.vlan), self.bed.protocols)

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
        side_of_it, port = self.bed.shunts, self.bed.shunt_port
        ways = self.ways(side_of_it, peer.address)
        if self.has_failed(ways[0]):
            raise Refused("no_authority")
        if self.is_silent(ways[0]):
            raise Shunted(waits)
        if len(build(packet)) + shunts.BYTES > min(port.mtu, peer.mtu or 65535):
            raise Refused("shunt_too_big")
        packet = replace(packet, residue=0 if packet.residue == -1 else packet.residue)
        told = shunts.Wrapping(self.bed.shunt_address, peer.address, side, number, shard.epoch, turned)
        raise Shunted(Outcome("shunted", packet, side_of_it, ways, shunt=told))

    # --- a packet ---------------------------------------------------------------------------------------------------------

    def _outbound(self, packet: Packet, choose: Choose) -> Outcome:
        if not self._prefix_of(packet.source) and not packet.is_error:
            raise Refused("spoofed_source")
        if self._names_no_host("inside", packet.source) and not packet.is_error:
            raise Refused("spoofed_source")
        inside = self._prefix_of(packet.destination) is not None
        if inside and not self.untranslated.names(packet.destination, "outbound" if packet.is_error else "inbound"):
            raise Refused("inside_destination")
        if self._names_no_host("outside", packet.destination) and not packet.is_error:
            raise Refused("martian_destination")
        turns = inside or packet.destination in self.pool_of
        if packet.is_error:
            return self.errors.outbound(packet, turns)
        if turns and not self.bed.hairpin:
            raise Refused("hairpin_refused")
        if bare := self.bare.mapping_of(packet):
            return self.bare.answer(packet, bare, turns)
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
        if packet.destination not in self.pool_of and not self._prefix_of(packet.destination):
            raise Refused("not_our_destination")
        bare = None if packet.is_error or packet.destination in self.pool_of else self.untranslated.session_in(packet)
        if packet.destination not in self.pool_of and not bare and not self.untranslated.names(packet.destination, "outbound"):
            raise Refused("inside_destination")
        if not turned and (self._prefix_of(packet.source) or packet.source in self.pool_of):
            raise Refused("spoofed_source")
        if packet.is_error:
            return self._send(self.errors.translated_in(packet, turned), "inside", verdict)
        if packet.destination not in self.pool_of:
            return self.untranslated.inbound(packet, bare, turned, verdict)
        external = (packet.destination, packet.destination_port or identifier(packet))
        mapping = self.generic.owner(packet.protocol, external, packet.source)
        remote = (packet.source, remote_port_of(packet, packet.source_port))
        session = self._met(self.sessions.get((packet.protocol, mapping.internal, remote))) if mapping else None
        session = session if session and not session.mapping.bypass else None
        session = self.untranslated.admitted(session) if session else None
        if session is None:
            self._need_authority(self.pool_of[packet.destination].shard, packet, "outside", turned)
        if mapping is None:
            raise Refused("no_mapping")
        if session is None:
            self._obey_rules("inbound", packet.protocol, mapping.internal, remote)
            if not self.bare.lets_in(mapping, remote):
                raise Refused("filtered")
        outcome = self._send(with_destination(packet, mapping.internal), "inside", verdict)
        if session and outcome.verdict != "held":
            self.advance(session, "in", packet.flags)
        return outcome

    def _send(self, packet: Packet, side: str, verdict: str) -> Outcome:
        if packet.ttl <= 1:
            raise Refused("ttl_exceeded", (TIME_EXCEEDED, 0))
        ways = self.ways(side, packet.destination)
        _, port = self.bed.at(ways[0].place)
        packet = replace(packet, ttl=packet.ttl - 1, residue=0 if packet.residue == -1 else packet.residue)
        if self.bed.mss and packet.protocol == TCP and packet.flags & SYN:
            packet = packet.clamped(self.bed.mss)
        if self.has_failed(ways[0]):
            raise Refused("neighbour_unresolved", (HOST_UNREACHABLE, 0))
        if self.is_silent(ways[0]):
            return Outcome("held", packet, side, ways)
        if len(build(packet)) > port.mtu and packet.fragment & 0x4000:
            raise Refused("too_big", (FRAG_NEEDED, port.mtu))
        return Outcome(verdict, packet, side, ways)

    def give_up(self, held: Outcome) -> Outcome:
        """A packet has waited for its neighbour long enough."""
        assert held.packet
        if held.datagram:
            self.datagrams.learn(held.datagram, Outcome("neighbour_unresolved"), self.now)
        if held.patience < NEIGHBOUR_WAIT:
            return Outcome("no_authority")
        owed = (HOST_UNREACHABLE, 0)
        source = held.packet.source
        if isinstance(held.packet, Packet6):
            return self.six.give_up(held.packet)
        side = "inside" if self._prefix_of(source) or source in self.pool_of else "outside"
        return Outcome("neighbour_unresolved", reply=owed if not held.packet.is_error and self.may_tell(owed, side) else None)

    def may_tell(self, reply: tuple[int, int] | None, side: str, six: bool = False) -> bool:
        """The rate of ICMP errors of our own (RFC 1812 4.3.2.8), to each side."""
        if six and self.bed.outside.on_link6 is None:
            return False
        turned = self.came is not None and self.came.turned  # nobody here knows its sender
        side = "inside" if turned else side
        heard = side not in self.bed.quiet
        return heard and reply is not None and self._spend(f"errors to {side}", self.bed.errors, self.bed.errors) and not turned

    def tell_refusal(self, host: int, six: bool) -> tuple[int, int] | None:
        """The error about a refusal for want of something (RFC 6888 REQ-11), not more than one in 100 ms each."""
        prefix = (None if six else longest(self.bed.devices, host)) or self._prefix_of(host)
        if prefix is None:
            return None
        unit, code = prefix.unit(host), self.bed.refusal_codes[six]
        if self.now - self.told.get(unit, -100) < 100:
            return None
        self.told[unit] = self.now
        if code < 0 or (six and self.bed.outside.on_link6 is None):
            return None
        allowed = self._spend("errors about refusals", self.bed.errors, self.bed.errors) and not self._came_turned
        return ((0x0100 if six else UNREACHABLE) | code, 0) if allowed else None

    # --- mappings and sessions --------------------------------------------------------------------------------------------

    def _session_out(self, packet: Packet, choose: Choose, turns: bool) -> Session:
        internal = (packet.source, packet.source_port or identifier(packet))
        remote = (packet.destination, remote_port_of(packet, packet.destination_port))
        session = self._met(self.sessions.get((packet.protocol, internal, remote)))
        session = self.untranslated.admitted(session) if session else None
        if session:
            self.untranslated.in_hand = session.mapping.bypass
            return session
        self._need_authority(self.pool(packet.source).shard, packet, "inside")
        self.untranslated.in_hand = passes = self.untranslated.fits("outbound", packet.protocol, internal, remote)
        mapping = None if passes else self.mappings.get((packet.protocol, internal))
        answers = passes and self.untranslated.fits("inbound", packet.protocol, internal, remote)
        if packet.protocol == ICMP and packet.kind >> 8 in REPLIES and mapping is None and not answers:
            raise Refused("icmp_type_not_served")
        goes_on = mapping is not None or answers or self._picks_up(packet)
        if packet.protocol == TCP and not may_open(packet.flags, goes_on):
            raise Refused("tcp_not_opening")
        self._obey_rules("outbound", packet.protocol, internal, remote)
        self._find_way(packet, turns)
        if passes:
            mapping = Mapping(packet.protocol, internal, internal, bypass=True)
        else:
            self.generic.foresee(packet, mapping)
        self.obey_limits(packet.source, packet.protocol, mapping)
        if mapping is None:
            mapping = Mapping(packet.protocol, internal, self.generic.choose(packet, internal, choose))
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
        ways = self.ways("inside", packet.source)
        if self.has_failed(ways[0]):
            raise Refused("neighbour_unresolved", (HOST_UNREACHABLE, 0))
        if self.is_silent(ways[0]):
            raise Waits(Outcome("held", packet, "inside", ways))

    def ways(self, side: str, host: int) -> tuple[Way, ...]:
        """The next hops that may lead to a host: itself where it is on-link at a port that lives, or where there is no gateway;
        else any gateway that answers at a port that lives. Where nothing of that is, what it waits for.
        """
        places = self.bed.side(side)
        direct = [Way(place, host) for place, port in places.items() if contains(port.on_link, host)]
        told = [Way(place, gateway) for place, port in places.items() if (gateway := self._gateway(port, side))]
        return self.fit(direct, told) or (Way(next(iter(places)), host),)

    def fit(self, direct: list[Way], told: list[Way]) -> tuple[Way, ...]:
        """Of next hops that are the host itself and those that are gateways, those that may be taken, or are waited for."""
        living = [way for way in direct if not self.bed.is_dead(way.place)]
        unhurt = [way for way in told if not self.bed.is_dead(way.place)]
        sound = [way for way in unhurt if not self.has_failed(way) and not self.is_silent(way)]
        return tuple(living or sound or direct or unhurt or told)

    def _gateway(self, port: Port, side: str) -> int:
        return port.inside_gateway if self.bed.stick and side == "inside" else port.gateway

    def has_failed(self, way: Way) -> bool:
        """Whether nobody answers for a next hop."""
        return way.hop in self.bed.failed

    def is_silent(self, way: Way) -> bool:
        """Whether nobody has answered yet, or it cannot be asked."""
        return way.hop in self.bed.silent or self.bed.lost.get(way.place) == "carrier"

    def _names_no_host(self, side: str, host: int) -> bool:
        return any(names_no_host(port, host) for port in self.bed.side(side).values())

    def _add(self, mapping: Mapping) -> None:
        self.mappings[mapping.protocol, mapping.internal] = mapping
        self.owners[mapping.protocol, mapping.external] = mapping

    def _open(self, mapping: Mapping, remote: Endpoint, state: str) -> Session:
        session = Session(mapping, remote, state, 0, self.bed.version)
        session.expiry = self.end_of(session)
        self.sessions[mapping.protocol, mapping.internal, remote] = session
        self.soonest = min(self.soonest, session.expiry)
        mapping.sessions.add(remote)
        return session

    def end(self, session: Session) -> None:
        """End a session; its mapping goes with its last one, and the port is held down from now on."""
        mapping = session.mapping
        del self.sessions[mapping.protocol, mapping.internal, session.remote]
        mapping.sessions.discard(session.remote)
        if mapping.sessions or mapping.static or mapping.bypass:
            return
        del self.mappings[mapping.protocol, mapping.internal]
        del self.owners[mapping.protocol, mapping.external]
        self.freed[mapping.protocol, mapping.external] = self.now
        self._return_block(mapping)

    def _return_block(self, mapping: Mapping) -> None:
        subscriber = self.subscriber(mapping.internal[0])
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
        ends = [session.expiry for session in self.sessions.values()] + self.six.ends()
        self.soonest = min(ends, default=now)

    def _may_end(self, session: Session) -> bool:
        """Only the core with the authority over a shard ends what is due, and not before its grace is over."""
        return self.may_end(self.pool(session.mapping.internal[0]).shard)

    def may_end(self, number: int) -> bool:
        """The same of a shard's."""
        shard = self.bed.shard(number)
        return shard.role in ("absent", "active") and self.now - self.begun >= 1000 * shard.pickup_s

    def _met(self, session: Session | None) -> Session | None:
        """A session that a packet has met; one that is due lives on where it must not end."""
        if session and session.expiry <= self.now:
            session.expiry = self.end_of(session)
        return session

    def advance(self, session: Session | Session6, way: str, flags: int) -> None:
        """Let a packet move a session on."""
        if session.protocol != TCP:
            if way == "out" or self.bed.refresh:
                session.expiry = self.end_of(session)
            return
        event = "rst" if flags & RST else "syn" if flags & SYN else "fin" if flags & FIN else "other"
        cell = TCP_TABLE[way, session.state][event]
        if cell == "-":
            return
        session.state = session.state if cell == "." else cell
        session.expiry = self.end_of(session)
        self.soonest = min(self.soonest, session.expiry)

    def end_of(self, session: Session | Session6) -> int:
        """Tick at which a session ends if no further packet comes: an even one (see `tcp.ends`)."""
        tick = self.now + lifetime(self.bed, session.protocol, session.remote[1], session.state)
        return tick + tick % 2

    # --- whose port -------------------------------------------------------------------------------------------------------

    def subscriber(self, host: int) -> Subscriber:
        """What a subscriber has."""
        prefix = self._prefix_of(host)
        assert prefix is not None
        return self.subscribers.setdefault(prefix.unit(host), Subscriber())

    def learn_pools(self) -> None:
        """Go by the addresses that the pools have now."""
        self.pool_of = {host: pool for pool in self.bed.pools for host in pool.hosts}

    def pool(self, host: int) -> Pool:
        """Pool of a subscriber."""
        prefix = self._prefix_of(host)
        assert prefix is not None
        return next(pool for pool in self.bed.pools if pool.name == prefix.pool)

    def _prefix_of(self, host: int) -> Prefix | None:
        return longest(self.bed.subscribers, host)

    # --- policy -----------------------------------------------------------------------------------------------------------

    def _obey_rules(self, direction: str, protocol: int, internal: Endpoint, remote: Endpoint) -> None:
        for rule in self.bed.rules:
            ports = [(rule.internal_ports, internal[1]), (rule.remote_ports, remote[1])]
            if protocol not in (TCP, UDP):  # they have no ports: a rule that names some does not fit
                ports_fit = all(limits == (0, 65535) for limits, _ in ports)
            else:
                ports_fit = all(low <= port <= high for (low, high), port in ports)
            if (
                rule.direction in (direction, "both")
                and PROTOCOLS[rule.protocol] in (0, protocol)
                and contains(rule.internal, internal[0])
                and contains(rule.remote, remote[0])
                and ports_fit
            ):
                if rule.action == "drop":
                    raise Refused("rule_dropped")
                if rule.action == "reject":
                    raise Refused("rule_rejected", (UNREACHABLE | self.bed.reject_code, 0))
                return

    def obey_limits(self, host: int, protocol: int, mapping: Mapping | None, devices: bool = True) -> None:
        """The device's, then the subscriber's (RFC 6888 REQ-4, REQ-5). `devices`: whether it is IPv4, which needs a mapping."""
        device = longest(self.bed.devices, host) if devices else None
        holders = [prefix for prefix in (device, self._prefix_of(host)) if prefix]
        for prefix in holders:
            unit = prefix.unit(host)
            self._judge(self.bed.limits_of(prefix, unit), unit, protocol, mapping, devices, prefix is device)
        for prefix in holders:
            unit = prefix.unit(host)
            limits = self.bed.limits_of(prefix, unit)
            if limits.rate:
                self._spend(unit, limits.rate, limits.burst)

    def _judge(self, own: Limits, unit: IPv4Network, protocol: int, mapping: Mapping | None, four: bool, device: bool) -> None:
        sessions = [known for known, internal, _ in self.sessions if contains(unit, internal[0])]
        sessions += [] if device else self.six.protocols(unit)
        ports = [known for known, internal in self.mappings if contains(unit, internal[0])] if four and not mapping else None
        tokens, of_mapping = self._tokens(unit, own.rate, own.burst), len(mapping.sessions) if mapping else 0
        if verdict := own.judge(protocol, sessions, ports, tokens, of_mapping):
            raise Refused(verdict)

    def _tokens(self, whose: IPv4Network | str, rate: int, burst: int) -> float:
        tokens, at = self.tokens.get(whose, (burst, self.now))
        return min(burst, tokens + (self.now - at) * rate / 1000)

    def _spend(self, whose: IPv4Network | str, rate: int, burst: int) -> bool:
        tokens = self._tokens(whose, rate, burst)
        self.tokens[whose] = (tokens - (tokens >= 1), self.now)
        return tokens >= 1

    # --- ICMP errors ------------------------------------------------------------------------------------------------------

    def our_name(self, packet: Packet, side: str) -> int:
        """Where our own errors to a sender on this side come from."""
        reserved = 0
        if side.rstrip("2") == "outside" and packet.destination in self.pool_of:
            reserved = self.bed.shard(self.pool_of[packet.destination].shard).icmp
        return reserved or self.bed.at(side)[1].address
