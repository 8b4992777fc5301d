"""The IPv6 firewall in plain dictionaries: the oracle beside `model`, of which it is a part (RFC 6092, 4443, 4890).

Nothing is translated, so what a forwarded packet must look like is said in bytes: `expected`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING

from tests import frames
from tests.admission import RST, SYN
from tests.bed6 import Prefix6, Rule6
from tests.datagrams import Part, Service
from tests.frames import TCP, Malformed
from tests.frames6 import (
    AUTHENTICATION,
    ECHO,
    FRAGMENT,
    ICMP6,
    WITH_PORTS,
    Packet6,
    Part6,
    beginning,
    dissect,
    embedded,
    part_of,
    transport_at,
)  # fmt: skip
from tests.limits import TOLD_REFUSALS
from tests.outcome import Outcome, Shunted, Waits, Way
from tests.translation import Refused, first_state, may_open

if TYPE_CHECKING:
    from tests.bed import Port
    from tests.model import Model

Endpoint = tuple[int, int]
Tuple6 = tuple[int, Endpoint, Endpoint]  # protocol, internal, remote

NO_ROUTER = [IPv6Network(text) for text in ("::/8", "100::/8", "fc00::/7", "fe00::/8", "ff00::/8")]
TRANSLATORS = IPv6Network("64:ff9b::/96")  # RFC 6052
UNREACHABLE, TOO_BIG, TIME_EXCEEDED = 0x0100, 0x0200, 0x0300


@dataclass
class Session6:
    """Traffic between an internal and a remote endpoint."""

    protocol: int
    internal: Endpoint
    remote: Endpoint
    state: str
    expiry: int
    version: int = 1  # of the rules that admitted it


def crosses_no_router(host: int) -> bool:
    """Whether a packet with this address is never forwarded."""
    told = IPv6Address(host)
    return told not in TRANSLATORS and any(told in network for network in NO_ROUTER)


def identifier(packet: Packet6) -> int:
    return packet.source_port or packet.destination_port


class Model6:
    """The part of a core that serves IPv6."""

    def __init__(self, model: Model) -> None:
        self.model, self.bed = model, model.bed
        self.sessions: dict[Tuple6, Session6] = {}

    def admit(self, port: Port, frame: bytes) -> Packet6:
        """The packet in a frame that has reached a port; raises `Malformed` for what no core ever forwards."""
        to, _, vlan, _, data = frames.split_frame(frame)
        if to != frames.mac_of(port.address):
            raise Malformed("foreign_mac")
        if vlan != port.vlan:
            raise Malformed("vlan_unexpected")
        return dissect(data)

    def receive(self, side: str, frame: bytes, until: int) -> Outcome:
        """What becomes of a frame that arrives `inside`, `outside2` ...; `until`: when it is served again."""
        try:
            packet = self.admit(self.bed.at(side)[1], frame)
        except Malformed as wrong:
            return Outcome(wrong.verdict)
        side = side.rstrip("2")
        if self.bed.stick:
            side = "inside" if self.bed.prefix6_of(packet.source) else "outside"
        data = frames.split_frame(frame)[4]
        self.data, self.size = data, 40 + int.from_bytes(data[4:6], "big")
        if packet.protocol == FRAGMENT:
            return self._receive_fragment(packet, data, side, until)
        return self._told(packet, side, lambda: self._decide(packet, side))

    def _told(self, packet: Packet6, side: str, decide: Callable[[], Outcome]) -> Outcome:
        """What was decided; who is refused hears of it, where that is due."""
        try:
            return decide()
        except Refused as refused:
            self.model.unasked.note(refused.verdict, packet, side, self.data)
            if refused.verdict in TOLD_REFUSALS:
                return Outcome(refused.verdict, reply=self.model.tell_refusal(self.bed.mate(packet.source), six=True))
            owed = refused.reply if not packet.is_error and self.model.may_tell(refused.reply, side, six=True) else None
            return Outcome(refused.verdict, reply=owed)
        except (Waits, Shunted) as going:
            return going.outcome

    # --- fragments: as IPv4's, but that nothing is translated and nothing is cut (RFC 8200 4.5, 5) ------------------------

    def _receive_fragment(self, packet: Packet6, data: bytes, side: str, until: int) -> Outcome:
        part = part_of(packet)
        key = side, packet.source, packet.destination, part.identification
        ours = packet.source if side == "inside" else packet.destination
        whose: Hashable = self.bed.mate(ours) if self.bed.prefix6_of(ours) else ours
        service = Service(
            lambda: self._plausible(packet, side, part),
            lambda: beginning(data),
            lambda first: self._told(first, side, lambda: self._decide(first, side)),
            lambda first: self._told(packet, side, lambda: self._follow(packet, first)),
        )
        told = Part(key, ("six", whose), part.offset, part.size, part.more)
        return self.model.datagrams.serve(told, self.model.now, until, service)

    def _plausible(self, packet: Packet6, side: str, part: Part6) -> None:
        """Its place can be (RFC 8200 4.5), and its addresses may be met on this side."""
        if not part.size or (part.more and part.size % 8) or part.before + part.offset + part.size > 65535:
            raise Malformed("bad_fragment")
        try:
            self._refuse_addresses(packet)
        except Refused as refused:
            raise Malformed(refused.verdict) from refused
        if side == "outside" and not self.bed.prefix6_of(packet.destination):
            raise Malformed("not_our_destination")
        ours = self.bed.prefix6_of(packet.source) is not None
        if ours != (side == "inside") or (ours and self._is_own(packet.source)):
            raise Malformed("spoofed_source")
        if self._is_own(packet.destination):
            raise Malformed("martian_destination")

    def _follow(self, packet: Packet6, first: Outcome) -> Outcome:
        """The way of the first, and told like a packet what is wrong there: RFC 4443 2.4 excepts no fragments."""
        outcome = self._send(packet, first.side, first.verdict)
        return Outcome("neighbour_unresolved") if outcome.verdict == "held" else outcome

    def give_up(self, packet: Packet6) -> Outcome:
        """It has waited for its neighbour long enough."""
        owed = (UNREACHABLE | 3, 0)
        side = "inside" if self.bed.prefix6_of(packet.source) else "outside"
        told = not packet.is_error and self.model.may_tell(owed, side, six=True)
        return Outcome("neighbour_unresolved", reply=owed if told else None)

    def _decide(self, packet: Packet6, side: str) -> Outcome:
        self._refuse_addresses(packet)
        if packet.is_error:
            return self._error(packet, side)
        return self._outbound(packet) if side == "inside" else self._inbound(packet)

    def _refuse_addresses(self, packet: Packet6) -> None:
        if crosses_no_router(packet.source):
            raise Refused("martian_source")
        if crosses_no_router(packet.destination):
            raise Refused("martian_destination")
        if packet.source == packet.destination:
            raise Refused("land")

    def _is_own(self, host: int) -> bool:
        return host in [port.address6 for _, port in self.bed.ports() if port.on_link6]

    def pass_time(self, now: int) -> None:
        """End what is due."""
        for key, session in list(self.sessions.items()):
            if session.expiry <= now and self.model.may_end(self._shard(key)):
                del self.sessions[key]

    def ends(self) -> list[int]:
        """When each session is due."""
        return [session.expiry for session in self.sessions.values()]

    def _shard(self, key: Tuple6) -> int:
        return self.model.pool(self._mate(key)).shard

    def protocols(self, unit: IPv4Network) -> list[int]:
        """Of each session of the subscriber with these IPv4 addresses."""
        return [key[0] for key in self.sessions if self._mate(key) == int(unit.network_address)]

    # --- out --------------------------------------------------------------------------------------------------------------

    def _outbound(self, packet: Packet6) -> Outcome:
        key = self._key(packet, "inside")
        session = self._admitted(self._met(key), key)
        turns = self.bed.prefix6_of(packet.destination) is not None
        if session is None:
            session = self._open(packet, key, turns)
        if turns and not self.bed.hairpin:
            raise Refused("hairpin_refused")
        if session is None:
            return self._inbound(packet, turned=True) if turns else self._send(packet, "outside", "forwarded_out")
        outcome = self._inbound(packet, turned=True) if turns else self._send(packet, "outside", "forwarded_out")
        if outcome.verdict not in ("held", "shunted"):
            self.model.advance(session, "out", packet.flags)
        return outcome

    def _open(self, packet: Packet6, key: Tuple6, turns: bool) -> Session6 | None:
        """None: it refuses what came in without a session, and leaves without one."""
        prefix = self.bed.prefix6_of(packet.source)
        if prefix is None or self._is_own(packet.source):
            raise Refused("spoofed_source")
        if self._is_own(packet.destination):
            raise Refused("martian_destination")
        if turns and not self.bed.hairpin:
            raise Refused("hairpin_refused")
        self._obey_rules("outbound", key)
        invited = self._lets_in(prefix, key, packet)
        if packet.protocol == ICMP6 and packet.kind >> 8 != ECHO and not invited:
            raise Refused("icmp_type_not_served")
        bare = packet.protocol == TCP and packet.flags & RST and invited
        if (
            packet.protocol == TCP
            and not bare
            and not may_open(packet.flags, invited or self.model.picks_up(self._mate(key), packet.flags))
        ):
            raise Refused("tcp_not_opening")
        self._find_way(packet, turns)
        if bare:
            return None
        self.model.obey_limits(self._mate(key), packet.protocol, None, devices=False)
        opening = {TCP: first_state_of(packet), ICMP6: "query", 17: "udp", 136: "udp"}.get(packet.protocol, "generic")
        session = Session6(*key, opening, 0, self.bed.version)
        session.expiry = self.model.end_of(session)
        self.model.soonest = min(self.model.soonest, session.expiry)
        self.sessions[key] = session
        return session

    def _mate(self, key: Tuple6) -> int:
        return self.bed.mate(key[1][0])

    def _find_way(self, packet: Packet6, turns: bool) -> None:
        if packet.ttl <= 1:
            raise Refused("ttl_exceeded", (TIME_EXCEEDED, 0))
        if not turns and (outcome := self._send(packet, "outside", "")).verdict == "held":
            raise Waits(outcome)
        ways = self.ways("inside", packet.source)
        if self.model.has_failed(ways[0]):
            raise Refused("neighbour_unresolved", (UNREACHABLE | 3, 0))
        if self.model.is_silent(ways[0]):
            raise Waits(Outcome("held", packet, "inside", ways))

    # --- in ---------------------------------------------------------------------------------------------------------------

    def _inbound(self, packet: Packet6, turned: bool = False) -> Outcome:
        key = self._key(packet, "outside")
        session = self._admitted(self._met(key), key)
        if session and not turned and self.bed.prefix6_of(packet.source):
            raise Refused("spoofed_source")
        if session is None:
            self._invite(packet, key, turned)
        outcome = self._send(packet, "inside", "hairpinned" if turned else "forwarded_in")
        if session and outcome.verdict != "held":
            self.model.advance(session, "in", packet.flags)
        return outcome

    def _invite(self, packet: Packet6, key: Tuple6, turned: bool) -> None:
        prefix = self.bed.prefix6_of(packet.destination)
        if prefix is None:
            raise Refused("not_our_destination")
        if self._is_own(packet.destination):
            raise Refused("martian_destination")
        if not turned and self.bed.prefix6_of(packet.source):
            raise Refused("spoofed_source")
        self._obey_rules("inbound", key)
        if not self._lets_in(prefix, key, packet):
            raise Refused("unsolicited")

    def _admitted(self, session: Session6 | None, key: Tuple6) -> Session6 | None:
        """As `model._admitted`; where configuration lets such a packet in unasked, the rules for that are asked as well."""
        if session is None or session.version == self.bed.version:
            return session
        prefix = self.bed.prefix6_of(key[1][0])
        try:
            self._obey_rules("outbound", key)
            if prefix and key[0] != ICMP6 and self._is_open(prefix, key):
                self._obey_rules("inbound", key)
        except Refused:
            if self.bed.shard(self._shard(key)).role == "active":
                del self.sessions[key]
            raise
        session.version = self.bed.version
        return session

    def _is_open(self, prefix: Prefix6, key: Tuple6) -> bool:
        if prefix.transparent or self._mate(key) in self.bed.transparent or (key[0] == ICMP6 and self.bed.echo6):
            return True
        return any(_fits(rule, key) for rule in self.bed.pinholes)

    def _lets_in(self, prefix: Prefix6, key: Tuple6, packet: Packet6) -> bool:
        """RFC 6092 REC-11, 17, 21, 22, 24, 26, 33, 48, 49; RFC 4890 4.3.1."""
        protocol, internal, remote = key
        if self._is_open(prefix, key) or (self.bed.ipsec6 and _is_ipsec(packet, internal[1])):
            return True
        if protocol == ICMP6:
            return False
        if protocol in (4, 41) and (135, internal, remote) in self.sessions:  # REC-29: the tunnel of Mobile IPv6
            return True
        known = [other for told, ours, other in self.sessions if (told, ours) == (protocol, internal)]
        if prefix.filtering(protocol) == "endpoint-independent":
            return bool(known)
        return prefix.filtering(protocol) == "address-dependent" and remote[0] in [host for host, _ in known]

    def _obey_rules(self, direction: str, key: Tuple6) -> None:
        for rule in self.bed.rules6:
            if rule.direction in (direction, "both") and _fits(rule, key):
                if rule.action == "accept":
                    return
                raise Refused("rule_dropped") if rule.action == "drop" else Refused("rule_rejected", (UNREACHABLE | 1, 0))

    # --- both -------------------------------------------------------------------------------------------------------------

    def _key(self, packet: Packet6, side: str) -> Tuple6:
        ends = (packet.source, packet.source_port), (packet.destination, packet.destination_port)
        near, far = ends if side == "inside" else ends[::-1]
        if packet.protocol == ICMP6:
            return ICMP6, (near[0], identifier(packet)), (far[0], 0)
        return packet.protocol, near, far

    def _met(self, key: Tuple6) -> Session6 | None:
        session = self.sessions.get(key)
        if session and session.expiry <= self.model.now:
            session.expiry = self.model.end_of(session)
        return session

    def ways(self, side: str, host: int) -> tuple[Way, ...]:
        """As `model.ways`."""
        places = self.bed.side(side)
        direct = [Way(place, host) for place, port in places.items() if port.on_link6 and IPv6Address(host) in port.on_link6]
        told = [Way(place, gateway) for place, port in places.items() if (gateway := self._gateway(port, side))]
        return self.model.fit(direct, told) or (Way(next(iter(places)), host),)

    def _gateway(self, port: Port, side: str) -> int:
        return port.inside_gateway6 if self.bed.stick and side == "inside" else port.gateway6

    def _send(self, packet: Packet6, side: str, verdict: str) -> Outcome:
        if packet.ttl <= 1:
            raise Refused("ttl_exceeded", (TIME_EXCEEDED, 0))
        ways = self.ways(side, packet.destination)
        _, port = self.bed.at(ways[0].place)
        if self.model.has_failed(ways[0]):
            raise Refused("neighbour_unresolved", (UNREACHABLE | 3, 0))
        if self.model.is_silent(ways[0]):
            return Outcome("held", packet, side, ways)
        if self.size > port.mtu:
            raise Refused("too_big", (TOO_BIG, port.mtu))
        return Outcome(verdict, packet, side, ways)

    # --- errors -----------------------------------------------------------------------------------------------------------

    def _error(self, packet: Packet6, side: str) -> Outcome:
        if self._is_own(packet.destination):
            raise Refused("martian_destination")
        if side == "outside" and not self.bed.prefix6_of(packet.destination):
            raise Refused("not_our_destination")
        if side == "outside" and self.bed.prefix6_of(packet.source):
            raise Refused("spoofed_source")
        about = embedded(packet)
        if about is None:
            raise Refused("icmp_embedded_bad")
        if about.source != packet.destination:
            raise Refused("icmp_unrelated")
        if side == "outside":
            return self._error_in(packet, about, turned=False)
        self._delivered(about)
        if self.bed.prefix6_of(about.source):
            if not self.bed.hairpin:
                raise Refused("hairpin_refused")
            return self._error_in(packet, about, turned=True)
        return self._send(packet, "outside", "forwarded_out")

    def _error_in(self, packet: Packet6, about: Packet6, turned: bool) -> Outcome:
        """About a packet that one of ours has sent."""
        ours = not turned and self.bed.prefix6_of(about.destination)  # such a packet never went out
        if _is_other_icmp(about) or ours or not self._alive(self._key(about, "inside")):
            raise Refused("icmp_unrelated")
        return self._send(packet, "inside", "hairpinned" if turned else "forwarded_in")

    def _delivered(self, about: Packet6) -> None:
        """About a packet that one of ours has got, or may have got."""
        key, prefix = self._key(about, "outside"), self.bed.prefix6_of(about.destination)
        if _is_other_icmp(about):
            raise Refused("icmp_unrelated")
        if not self._alive(key) and (prefix is None or not self._lets_in(prefix, key, about)):
            raise Refused("icmp_unrelated")

    def _alive(self, key: Tuple6) -> bool:
        session = self.sessions.get(key)
        return session is not None and session.expiry > self.model.now


def _is_other_icmp(about: Packet6) -> bool:
    return about.protocol == ICMP6 and about.kind >> 8 not in (ECHO, ECHO + 1)


def _is_ipsec(packet: Packet6, port: int) -> bool:
    """Whether it comes in whoever asked for it; `port`: of the host inside."""
    authenticated = any(kind == AUTHENTICATION for kind, _ in packet.headers)
    return packet.protocol in (50, 139) or (packet.protocol, port) == (17, 500) or (authenticated and packet.protocol != ICMP6)


def _fits(rule: Rule6, key: Tuple6) -> bool:
    protocol, internal, remote = key
    ports = [(rule.internal_ports, internal[1]), (rule.remote_ports, remote[1])]
    if protocol in WITH_PORTS:
        ports_fit = all(low <= port <= high for (low, high), port in ports)
    else:
        ports_fit = all(limits == (0, 65535) for limits, _ in ports)
    name = {ICMP6: "icmp", TCP: "tcp", 17: "udp", 50: "esp"}.get(protocol)
    return (
        rule.protocol in ("any", name)
        and IPv6Address(internal[0]) in rule.internal
        and IPv6Address(remote[0]) in rule.remote
        and ports_fit
    )


def first_state_of(packet: Packet6) -> str:
    """State of a connection that begins with this segment."""
    return first_state(frames.Packet(TCP, 0, 0, flags=packet.flags))


# --- what a forwarded packet looks like -----------------------------------------------------------------------------------


def expected(data: bytes, mss: int, partial: bool, hops: int = 1) -> bytes:
    """The datagram as it must leave: a hop less to live; MSS clamped and a partial checksum finished where that is to be."""
    packet = read(data)
    data = data[: 40 + int.from_bytes(data[4:6], "big")]
    sent = data[:7] + bytes([data[7] - hops]) + data[8:]
    if packet.residue == -1 and partial:
        sent = _with_residue(sent, packet.protocol, 0)
    if packet.protocol == TCP and packet.flags & SYN and mss and hops:
        sent = _clamped(sent, mss - 20)
    return sent


def read(data: bytes) -> Packet6:
    """A packet; a fragment with its transport header, where it has that."""
    packet = dissect(data)
    return beginning(data) if packet.protocol == FRAGMENT and part_of(packet).offset == 0 else packet


def _clamped(data: bytes, mss: int) -> bytes:
    packet, at = read(data), transport_at(data)
    options = frames.Packet(TCP, 0, 0, tcp_options=packet.tcp_options).clamped(mss).tcp_options
    changed = data[: at + 20] + options + data[at + 20 + len(options) :]
    return data if changed == data else _with_residue(changed, TCP, _residue(data, TCP))


def _covered(data: bytes, protocol: int) -> tuple[int, int]:
    """Where the transport begins and ends, as its checksum sees it."""
    at = transport_at(data)
    return at, at + int.from_bytes(data[at + 4 : at + 6], "big") if protocol == 17 else len(data)


def _residue(data: bytes, protocol: int) -> int:
    at, end = _covered(data, protocol)
    return frames.ones_sum(data[8:40] + (end - at + protocol).to_bytes(4, "big") + data[at:end])


def _with_residue(data: bytes, protocol: int, residue: int) -> bytes:
    """With another checksum: one that leaves this residue."""
    field = transport_at(data) + (16 if protocol == TCP else 6)
    bare = data[:field] + b"\0\0" + data[field + 2 :]
    check = (residue - _residue(bare, protocol)) % 0xFFFF
    return data[:field] + (check or (0xFFFF if protocol == 17 else 0)).to_bytes(2, "big") + data[field + 2 :]
