"""What a NAT does to packets that needs no memory: endpoints replaced, connections led on; for the model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tests.admission import ACK, FIN, RST, SYN, is_generic
from tests.frames import ICMP, REPLIES, REQUESTS, TCP, UDP, Packet, build, dissect, ones_sum

if TYPE_CHECKING:
    from tests.bed import Bed

Endpoint = tuple[int, int]


class Refused(Exception):
    """The packet is not forwarded; `reply` is the ICMP error (type << 8 | code, rest) that its sender is owed."""

    def __init__(self, verdict: str, reply: tuple[int, int] | None = None) -> None:
        super().__init__(verdict)
        self.verdict, self.reply = verdict, reply


# What a segment does to a connection (RFC 6146 3.5.2, RFC 7857 2): state, then next state by FIN, RST, SYN, other.
# `-` stays and leaves the lifetime alone, `.` stays and renews it.
_TCP = {
    "out": """
        init         -            -      .            -
        init_in      -            -      established  -
        established  fin_out      reset  .            .
        fin_out      .            reset  .            .
        fin_in       closing      reset  .            .
        answered     -            -      -            -
        closing      -            -      init         -
        reset        established  -      established  established
    """,
    "in": """
        init         -            -      established  -
        init_in      -            -      .            -
        established  fin_in       reset  .            .
        fin_out      closing      reset  .            .
        fin_in       .            reset  .            .
        answered     fin_in       -      -            established
        closing      -            -      init_in      -
        reset        established  -      established  established
    """,
}
TCP_TABLE = {
    (way, row.split()[0]): dict(zip(("fin", "rst", "syn", "other"), row.split()[1:], strict=True))
    for way, picture in _TCP.items()
    for row in picture.strip().splitlines()
}


def embedded(packet: Packet) -> Packet:
    about = packet.about
    if about is None or about.fragment & 0x1FFF or len(build(about)) - 20 - len(about.ip_options) < _quoted_at_least(about):
        raise Refused("icmp_embedded_bad")
    return about


def _quoted_at_least(about: Packet) -> int:
    """Eight bytes (RFC 792), or all of a packet of a generic protocol that has less."""
    return min(8, len(about.payload) + about.missing) if is_generic(about.protocol) else 8


def concealed(packet: Packet) -> Packet:
    """An error from inside without extensions that may name interfaces and addresses of the inside (RFC 4884, 4950, 5837)."""
    assert packet.about
    words, behind = packet.rest >> 16 & 0xFF, build(packet.about) + packet.payload
    at = 4 * max(words, 32)
    extension = behind[at:]
    if packet.kind >> 8 == 4 or len(extension) < 4:
        return packet
    old = extension[0] >> 4 == 2 and extension[2:4] != b"\0\0" and not ones_sum(extension) and any(extension)
    if (words >= 32 or old) and _names_interfaces(extension[4:]):
        return dissect(build(replace(packet, about=None, payload=behind[:at], rest=packet.rest & ~0xFF0000)))
    return packet


def _names_interfaces(objects: bytes) -> bool:
    """Whether any of these is something else than MPLS labels."""
    while len(objects) >= 4:
        size = int.from_bytes(objects[:2], "big")
        if not 4 <= size <= len(objects) or objects[2] != 1:
            return True
        objects = objects[size:]
    return bool(objects)


def can_have_passed(about: Packet, protocols: set[int]) -> bool:
    """Whether a packet like this is one that a NAT forwards at all. `protocols`: generic ones that it translates."""
    if is_generic(about.protocol):
        return about.protocol in protocols
    return about.protocol in (TCP, UDP) or about.kind >> 8 in (*REQUESTS, *REPLIES)


def with_source(packet: Packet, source: Endpoint) -> Packet:
    """With another source endpoint."""
    return _identified(replace(packet, source=source[0], source_port=source[1]), packet, source[1])


def with_destination(packet: Packet, destination: Endpoint) -> Packet:
    """With another destination endpoint."""
    return _identified(replace(packet, destination=destination[0], destination_port=destination[1]), packet, destination[1])


def _identified(changed: Packet, packet: Packet, identifier: int) -> Packet:
    """An ICMP query has one identifier and no ports, whichever end is translated. Generic protocols have neither."""
    if is_generic(packet.protocol):
        return replace(changed, source_port=0, destination_port=0)
    if packet.protocol != ICMP:
        return changed
    asks = packet.kind >> 8 in REQUESTS
    return replace(changed, source_port=identifier if asks else 0, destination_port=0 if asks else identifier)


def identifier(packet: Packet) -> int:
    return packet.source_port or packet.destination_port if packet.protocol == ICMP else 0


def remote_port_of(packet: Packet, port: int) -> int:
    return 0 if packet.protocol == ICMP else port


def may_open(flags: int, mapped: bool) -> bool:
    if flags & (RST | FIN):
        return False
    return mapped or flags & (SYN | ACK) == SYN


def first_state(packet: Packet) -> str:
    """A SYN-ACK answers a SYN that came in by the mapping alone; without SYN a connection goes on whose session was lost."""
    if packet.protocol != TCP:
        return {UDP: "udp", ICMP: "query"}.get(packet.protocol, "generic")
    return {SYN: "init", SYN | ACK: "answered"}.get(packet.flags & (SYN | ACK), "established")


def lifetime(bed: Bed, protocol: int, remote_port: int, state: str) -> int:
    """Ticks that a session lives on without a packet (RFC 5382 REQ-5, RFC 7857 2.1, RFC 4787 REQ-5, RFC 5508 REQ-2)."""
    if state in ("closing", "reset"):
        name = "closing"
    elif state in ("init", "init_in", "answered"):
        name = "opening"
    else:
        name = {"udp": "udp", "query": "icmp", "generic": "generic"}.get(state, "established")
    fitting = [told for told in bed.port_timers if told[0] == protocol and told[1][0] <= remote_port <= told[1][1]]
    own = fitting[0][2] if fitting and name in ("udp", "established") else bed.timeouts_s[name]
    return int(own * 1000)
