"""Who of those in a capture is inside: by prefixes, or whoever began each conversation.

What comes of it is one `Scene` a datagram: it goes out, comes in, or does not pass a NAT at all. Two passes: a fragment behind
the first goes where that goes, even if it was caught before it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import NamedTuple

from tests import frames, frames6
from tests.admission import ACK, SYN
from tests.captures import Caught
from tests.frames import ICMP, REPLIES, TCP, UDP, Malformed, Packet, ones_sum
from tests.frames6 import ICMP6, WITH_PORTS, Packet6
from tests.translation import identifier

Endpoint = tuple[int, int]
Network = IPv4Network | IPv6Network
PRIVATE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")  # RFC 1918, 6598, 4193
OUT, IN = "outbound", "inbound"


class Look(NamedTuple):
    """What a datagram says of itself; ports are 0 where it has none. An ICMP query's identifier is its asker's port."""

    six: bool
    protocol: int
    source: Endpoint
    destination: Endpoint
    datagram: int = -1  # identification, of a fragment
    later: bool = False  # a fragment behind the first
    opens: bool = False  # a SYN alone
    answers: bool = False  # what only the other end of who began can send
    about: Look | None = None  # of an ICMP error: what it is about, as it was sent

    @property
    def talk(self) -> tuple[int, Endpoint, Endpoint]:
        """The conversation that it belongs to, the same both ways."""
        return (self.protocol, *sorted((self.source, self.destination)))  # type: ignore[return-value]

    @property
    def whole(self) -> tuple[int, int, int, int]:
        """What all fragments of a datagram have in common."""
        return self.source[0], self.destination[0], self.protocol, self.datagram


class Scene(NamedTuple):
    """A datagram of the capture and its way: `outbound`, `inbound`, or why it is not played."""

    caught: Caught
    look: Look | None
    way: str


# --- looking ----------------------------------------------------------------------------------------------------------------


def look_at(data: bytes) -> Look | None:
    """What a datagram says; of one whose headers are wrong its addresses alone, and None if not even those are there."""
    six = data[0] >> 4 == 6
    try:
        return _look6(data) if six else _look4(frames.dissect(data))
    except Malformed:
        return _at_least(data, six)


def _at_least(data: bytes, six: bool) -> Look | None:
    at, size, protocol = (8, 16, 6) if six else (12, 4, 9)
    if len(data) < at + 2 * size:
        return None
    ends = [int.from_bytes(data[k : k + size], "big") for k in (at, at + size)]
    return Look(six, data[protocol], (ends[0], 0), (ends[1], 0))


def _look4(packet: Packet) -> Look:
    later = bool(packet.fragment & 0x1FFF)
    known = identifier(packet)
    answers = packet.protocol == ICMP and packet.kind >> 8 in REPLIES
    ends = [(packet.source, packet.source_port), (packet.destination, packet.destination_port)]
    if known:
        ends[answers] = (ends[answers][0], known)
    return Look(
        False, packet.protocol, ends[0], ends[1], packet.id if packet.fragment & 0x3FFF else -1, later,
        _opens(packet.protocol, packet.flags), answers or _answers(packet.protocol, packet.flags, ends),
        _look4(packet.about) if packet.about else None,
    )  # fmt: skip


def _look6(data: bytes) -> Look:
    packet, datagram, later = frames6.dissect(data), -1, False
    if packet.protocol == frames6.FRAGMENT:
        part = frames6.part_of(packet)
        datagram, later = part.identification, part.offset > 0
        packet = frames6.beginning(data) if not later else replace(packet, protocol=packet.payload[0])
    return _of6(packet)._replace(datagram=datagram, later=later)


def _of6(packet: Packet6) -> Look:
    ends = [(packet.source, packet.source_port), (packet.destination, packet.destination_port)]
    answers = packet.protocol == ICMP6 and packet.kind >> 8 == frames6.ECHO_REPLY
    about = frames6.embedded(packet) if packet.is_error else None
    opens = _opens(packet.protocol, packet.flags)
    answers = answers or _answers(packet.protocol, packet.flags, ends)
    return Look(True, packet.protocol, ends[0], ends[1], opens=opens, answers=answers, about=_of6(about) if about else None)


def _opens(protocol: int, flags: int) -> bool:
    return protocol == TCP and flags & (SYN | ACK) == SYN


def _answers(protocol: int, flags: int, ends: list[Endpoint]) -> bool:
    """A SYN-ACK; or, of a conversation that was under way already, what comes from a well-known port to one that is none."""
    if protocol == TCP and flags & SYN:
        return bool(flags & ACK)
    return (protocol in (TCP, UDP) or protocol in WITH_PORTS) and ends[0][1] < 1024 <= ends[1][1]


# --- deciding ---------------------------------------------------------------------------------------------------------------


class Roles:
    """Decides; `inside` are prefixes, or none: then who begins is inside."""

    def __init__(self, inside: Iterable[str] = ()) -> None:
        self.inside = [ip_network(text) for text in inside]
        self.began: dict[tuple[int, Endpoint, Endpoint], Endpoint] = {}
        self.firsts: dict[tuple[int, int, int, int], str] = {}

    def decide(self, caught: Iterable[Caught]) -> list[Scene]:
        """The scenes, in order."""
        scenes = [self._meet(each) for each in caught]
        return [self._with_its_first(scene) for scene in scenes]

    def _meet(self, caught: Caught) -> Scene:
        look = look_at(caught.data)
        if look is None:
            return Scene(caught, None, OUT)
        if look.later:
            return Scene(caught, look, self.firsts.get(look.whole, ""))
        way = self._by_prefix(look) if self.inside else self._by_beginning(look)
        if look.datagram >= 0:
            self.firsts[look.whole] = way
        return Scene(caught, look, way)

    def _with_its_first(self, scene: Scene) -> Scene:
        if scene.way or not scene.look:
            return scene
        way = self.firsts.get(scene.look.whole)
        return scene._replace(way=way or (self._by_prefix(scene.look) if self.inside else self._by_beginning(scene.look)))

    def _by_prefix(self, look: Look) -> str:
        ours = [any(host_in(end[0], look.six, network) for network in self.inside) for end in (look.source, look.destination)]
        return {(True, False): OUT, (False, True): IN, (True, True): "stays inside", (False, False): "stays outside"}[
            ours[0], ours[1]
        ]

    def _by_beginning(self, look: Look) -> str:
        if look.about:  # it goes to who sent what it is about
            return {OUT: IN, IN: OUT}[self._by_beginning(look.about)]
        began = self.began.setdefault(look.talk, look.destination if look.answers else look.source)
        return OUT if began == look.source else IN


def host_in(host: int, six: bool, network: Network) -> bool:
    """Whether an address is in a network of its kind."""
    return network.version == (6 if six else 4) and ip_address(host.to_bytes(16 if six else 4, "big")) in network


# --- what a capture has cut off ---------------------------------------------------------------------------------------------


def mended(caught: Caught) -> Caught:
    """With zeros for what was cut off behind the datagram, and a transport checksum that fits them (IPv4)."""
    data = caught.data
    if not caught.cut or len(data) < 20 or data[0] >> 4 not in (4, 6):
        return caught
    total = 40 + int.from_bytes(data[4:6], "big") if data[0] >> 4 == 6 else int.from_bytes(data[2:4], "big")
    filled = data + bytes(min(max(total - len(data), 0), caught.cut))
    try:
        packet = frames.dissect(filled)
    except Malformed:
        return caught._replace(data=filled)
    if packet.residue and not packet.fragment & 0x3FFF:
        filled = frames.build(replace(packet, residue=0)) + filled[total:]
    return caught._replace(data=filled)


def corrected(caught: Caught) -> Caught:
    """With checksums of IPv4 that fit: capturing hosts leave them to their network cards, and whoever makes names unreadable
    often forgets them.
    """
    data = caught.data
    size = 4 * (data[0] & 15)
    if data[0] >> 4 != 4 or not 20 <= size <= len(data):
        return caught
    bare = data[:10] + b"\0\0" + data[12:]
    right = bare[:10] + (-ones_sum(bare[:size]) % 0xFFFF).to_bytes(2, "big") + bare[12:]
    try:
        packet = frames.dissect(right)
    except Malformed:
        return caught._replace(data=right)
    if packet.residue and not packet.fragment & 0x3FFF:
        right = frames.build(replace(packet, residue=0)) + right[int.from_bytes(right[2:4], "big") :]
    return caught._replace(data=right)
