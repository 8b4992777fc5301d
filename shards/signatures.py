"""What a frame looks like to somebody who wants to know it again when its sender sends it once more.

A signature is 32-bit words of the frame from its IP header on, and a mask: the header (RFC 791, RFC 8200) and the first 32
bytes behind it, without what a hop or a retransmission changes: identification, TTL, class, checksums; TCP's acknowledgement,
window and timestamps (RFC 7323); the number and time of a ping. Frames themselves are not kept. No compiled code needs this:
`steering` writes signatures into its program as constants, and `Signature.matches` is the model of that.
"""

from __future__ import annotations

import struct
from ipaddress import ip_address
from typing import NamedTuple

_BEHIND = 32  # bytes behind the IP header
_FRAME_AT_MOST = 14 + 2 * 4 + 60 + _BEHIND  # Ethernet, tags, the longest header
_IPV4, _IPV6, _TAGS = 0x0800, 0x86DD, (0x8100, 0x88A8)
_ICMP, _TCP, _UDP, _ICMPV6 = 1, 6, 17, 58
_TIMESTAMPS, _NOTHING, _LAST = 8, 1, 0  # kinds of TCP options

FRAME_BYTES = _FRAME_AT_MOST  # of a frame that are looked at


class Signature(NamedTuple):
    """`content` is already masked; both from the IP header on, as long as each other, a multiple of 4 bytes."""

    version: int
    content: bytes
    mask: bytes

    def matches(self, packet: bytes) -> bool:
        """Whether this packet (from its IP header on) has this signature."""
        return len(packet) >= len(self.mask) and _masked(packet, self.mask) == self.content

    def told(self) -> str:
        """For people: protocol and endpoints."""
        if self.version == 6:
            source, destination, protocol, l4 = self.content[8:24], self.content[24:40], self.content[6], 40
        else:
            source, destination, protocol = self.content[12:16], self.content[16:20], self.content[9]
            l4 = 4 * max(self.content[0] & 15, 5)
        ends = [str(ip_address(source)), str(ip_address(destination))]
        if protocol in (_TCP, _UDP) and len(self.content) >= l4 + 4:
            ends = [f"{end}:{port}" for end, port in zip(ends, struct.unpack_from("!HH", self.content, l4), strict=True)]
        name = {_ICMP: "icmp", _TCP: "tcp", _UDP: "udp", _ICMPV6: "icmp6"}.get(protocol, f"protocol {protocol}")
        return f"{name} {ends[0]} > {ends[1]}"


def sign(frame: bytes) -> Signature | None:
    """The signature of a frame, of which the first `FRAME_BYTES` are enough; None for what is not IP."""
    at = 14
    for _ in range(3):
        (ethertype,) = struct.unpack_from("!H", frame, at - 2)
        if ethertype == _IPV4:
            return _sign4(frame[at:])
        if ethertype == _IPV6:
            return _sign6(frame[at:])
        if ethertype not in _TAGS:
            return None
        at += 4
    return None


def _masked(packet: bytes, mask: bytes) -> bytes:
    return bytes(byte & wanted for byte, wanted in zip(packet, mask, strict=False))


def _sign4(packet: bytes) -> Signature:
    """Where the header's own lengths cannot be, or it is a later fragment, what lies behind it is not looked at."""
    header, total = 4 * (packet[0] & 15), struct.unpack_from("!H", packet, 2)[0]
    sound = header >= 20 and total >= header
    header = header if sound else 20
    first = struct.unpack_from("!H", packet, 6)[0] & 0x1FFF == 0
    behind = min(_BEHIND, total - header) & ~3 if sound else 0
    mask = bytearray(b"\xff" * header)
    for at in (1, 4, 5, 8, 10, 11):  # class, identification, TTL, checksum
        mask[at] = 0
    l4 = packet[header : header + behind]
    return _signature(4, packet, bytes(mask) + (_mask_of(packet[9], l4) if first else b"\xff" * behind))


def _sign6(packet: bytes) -> Signature:
    behind = min(_BEHIND, struct.unpack_from("!H", packet, 4)[0]) & ~3
    mask = b"\xf0\x00\x00\x00" + b"\xff\xff\xff\x00" + b"\xff" * 32  # without class, flow label, hop limit
    return _signature(6, packet, mask + _mask_of(packet[6], packet[40 : 40 + behind]))


def _signature(version: int, packet: bytes, mask: bytes) -> Signature:
    return Signature(version, _masked(packet, mask), mask)


def _mask_of(protocol: int, l4: bytes) -> bytes:
    """What of the bytes behind the IP header a retransmission leaves as they are."""
    mask = bytearray(b"\xff" * len(l4))
    for begin, end in _changing(protocol, l4):
        mask[begin:end] = bytes(max(min(end, len(l4)) - begin, 0))
    return bytes(mask)


def _changing(protocol: int, l4: bytes) -> list[tuple[int, int]]:
    """Ranges of bytes."""
    if protocol == _UDP:
        return [(6, 8)]
    if protocol == _TCP:
        return [(8, 12), (14, 18), *_timestamps(l4)]  # acknowledgement; window and checksum
    if protocol == _ICMP and l4[:1] in (b"\x00", b"\x08"):
        return [(2, 4), (6, 24)]  # number, and where ping(8) puts the time
    if protocol == _ICMP:
        return [(2, 4), (12, 14), (16, 17), (18, 20)]  # the same of the packet inside as outside
    return [(2, 4)] if protocol == _ICMPV6 else []


def _timestamps(l4: bytes) -> list[tuple[int, int]]:
    """Values of TCP's timestamp option, if it lies in what is looked at."""
    at = 20
    while at < len(l4) and l4[at] != _LAST:
        if l4[at] == _NOTHING:
            at += 1
            continue
        if l4[at] == _TIMESTAMPS:
            return [(at + 2, at + 10)]
        if at + 1 >= len(l4) or l4[at + 1] < 2:
            break
        at += l4[at + 1]
    return []
