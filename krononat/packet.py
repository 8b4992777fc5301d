"""Packets as people write them, and as frames.

udp 100.64.0.2:4000 > 198.51.100.9:53
tcp syn,ack 198.51.100.9:443 > 203.0.113.1:40000 ttl 3
icmp echo 100.64.0.2 > 198.51.100.9 id 7 length 1400
gre 100.64.0.2 > 198.51.100.9 length 500
udp [2001:db8::2]:4000 > [2600::9]:53
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from krononat.client import Trouble
from krononat.values import read_address
from krononat.values6 import read_address6
from shards import protocols

Address = IPv4Address | IPv6Address

USAGE = 2
FLAGS = {"fin": 1, "syn": 2, "rst": 4, "psh": 8, "ack": 16, "urg": 32}
QUERIES6 = {8: 128, 0: 129}  # what those are in IPv6; it has no timestamps
ICMP6 = 58
QUERIES = {"echo": 8, "echo-reply": 0, "timestamp": 13, "timestamp-reply": 14}
NUMBERS = {name: number for name, number in protocols.BY_NAME.items() if name != "icmp6"}
WITH_PORTS = ("tcp", "udp")
EXAMPLE = "write it like 'udp 100.64.0.2:4000 > 198.51.100.9:53' or 'tcp syn ...' or 'icmp echo 100.64.0.2 > 198.51.100.9'"


class Packet(NamedTuple):
    """One packet; `length` is that of the IP packet in bytes, 0: as short as it can be."""

    protocol: str
    source: Address
    source_port: int
    destination: Address
    destination_port: int
    flags: int = 0  # TCP
    kind: int = 8  # ICMP type
    identifier: int = 1  # ICMP
    ttl: int = 64
    length: int = 0

    def __str__(self) -> str:
        if self.protocol == "icmp":
            word = next((word for word, kind in QUERIES.items() if kind == self.kind), f"type {self.kind}")
            return f"icmp {word} {self.source} > {self.destination} id {self.identifier}"
        if self.protocol not in WITH_PORTS:
            return f"{self.protocol} {self.source} > {self.destination}"
        words = ",".join(word for word, bit in FLAGS.items() if self.flags & bit)
        flags = f" {words}" if words else ""
        source, destination = endpoint(self.source, self.source_port), endpoint(self.destination, self.destination_port)
        return f"{self.protocol}{flags} {source} > {destination}"


def endpoint(address: Address, port: int) -> str:
    """An address and a port as people write them."""
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def read_packet(text: str) -> Packet:
    """Packet of an expression; Trouble where it is none."""
    left, arrow, right = text.lower().replace("->", ">").partition(">")
    words, rest = left.split(), right.split()
    if words and words[0].isdigit() and int(words[0]) < 256:
        words[0] = protocols.name(int(words[0]))
    if words and words[0] not in NUMBERS and not (words[0].isdigit() and int(words[0]) < 256):
        raise Trouble(f"{words[0]!r} is not a protocol to trace", f"there are {', '.join(NUMBERS)}", EXAMPLE, USAGE)
    if len(words) < 2 or not rest:
        quoting = "" if arrow else "; the shell takes a '>' without quotes"
        why = f"it needs a protocol, a source, '>' and a destination{quoting}"
        raise Trouble(f"{text!r} is not a packet", why, EXAMPLE, USAGE)
    protocol, *about, source = words
    with_ports = protocol in WITH_PORTS
    packet = Packet(protocol, *_endpoint(source, with_ports), *_endpoint(rest[0], with_ports))
    if packet.source.version != packet.destination.version:
        raise Trouble(f"{text!r} is of two kinds", "source and destination are IPv4 or IPv6 both", EXAMPLE, USAGE)
    if protocol == "tcp":
        packet = packet._replace(flags=_flags(about))
    elif protocol == "icmp":
        packet = packet._replace(kind=_kind(about))
        if packet.source.version == 6 and packet.kind not in QUERIES6:
            raise Trouble("IPv6 has no ICMP timestamps", "there are echo and echo-reply", EXAMPLE, USAGE)
    elif about:
        raise Trouble(f"{' '.join(about)!r} means nothing for {protocol}", "only TCP has flags", EXAMPLE, USAGE)
    return _with_options(packet, rest[1:])


def _endpoint(text: str, with_port: bool) -> tuple[Address, int]:
    told: Address
    six = text.startswith("[") or text.count(":") > 1
    if six and "]" in text:
        address, _, rest = text.removeprefix("[").partition("]")
        _, colon, port = rest.partition(":")
    elif six:
        address, colon, port = text, "", ""
    else:
        address, colon, port = text.partition(":")
    try:
        told = read_address6(address) if six else read_address(address)
    except ValueError as error:
        raise Trouble(f"{address!r} {error}", "", EXAMPLE, USAGE) from None
    if with_port != bool(colon):
        raise Trouble(
            f"{text!r} {'needs a port' if with_port else 'has a port, but its protocol has none'}", "", EXAMPLE, USAGE
        )
    return told, _number("port", port, 65535) if colon else 0


def _number(what: str, text: str, most: int) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > most:
        raise Trouble(f"{text!r} is not a {what} (0 to {most})", "", EXAMPLE, USAGE)
    return int(text)


def _flags(words: list[str]) -> int:
    """TCP flags; a SYN where none are given."""
    bits = 0
    for word in ",".join(words).split(",") if words else ["syn"]:
        if word not in FLAGS:
            raise Trouble(f"{word!r} is not a TCP flag", f"there are {', '.join(FLAGS)}", EXAMPLE, USAGE)
        bits |= FLAGS[word]
    return bits


def _kind(words: list[str]) -> int:
    word = " ".join(words) or "echo"
    if word not in QUERIES:
        raise Trouble(f"{word!r} cannot be traced", f"ICMP can be {', '.join(QUERIES)}", EXAMPLE, USAGE)
    return QUERIES[word]


def _with_options(packet: Packet, words: list[str]) -> Packet:
    """`ttl N`, `length N`, `id N` after the destination."""
    limits = {"ttl": 255, "length": 9000, "id": 65535}
    if len(words) % 2:
        raise Trouble(f"{words[-1]!r} has no value", f"options are {', '.join(limits)}", EXAMPLE, USAGE)
    told = {}
    for name, value in zip(words[::2], words[1::2], strict=True):
        if name not in limits:
            raise Trouble(f"{name!r} is not an option", f"options are {', '.join(limits)}", EXAMPLE, USAGE)
        told[name] = _number(name, value, limits[name])
    return packet._replace(
        ttl=told.get("ttl", packet.ttl), length=told.get("length", packet.length), identifier=told.get("id", packet.identifier)
    )


def build(packet: Packet, destination_mac: bytes, vlan: int = 0) -> bytes:
    """The packet as an Ethernet frame, tagged if `vlan`, with right checksums; not to be fragmented."""
    head = protocols.LEAST.get(_number_of(packet), 0)
    below = 40 if packet.source.version == 6 else 20
    payload = bytes(max(packet.length - below - head, 0))
    body = {"udp": _udp, "tcp": _tcp, "icmp": _icmp}.get(packet.protocol, _generic)(packet, payload)
    tag = struct.pack("!HH", 0x8100, vlan) if vlan else b""
    ethernet = destination_mac + bytes((2, 0, 0, 0, 0, 254)) + tag
    if packet.source.version == 6:
        ip = struct.pack("!IHBB", 6 << 28, len(body), _number_of(packet), packet.ttl)
        return ethernet + b"\x86\xdd" + ip + packet.source.packed + packet.destination.packed + body
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0x4000, packet.ttl, _number_of(packet), 0)
    ip += packet.source.packed + packet.destination.packed
    ip = ip[:10] + struct.pack("!H", _checksum(ip)) + ip[12:]
    return ethernet + b"\x08\x00" + ip + body


def _number_of(packet: Packet) -> int:
    """Its protocol on the wire."""
    return ICMP6 if packet.protocol == "icmp" and packet.source.version == 6 else protocols.number(packet.protocol)


def _generic(packet: Packet, payload: bytes) -> bytes:
    """As much header as the protocol has, and nothing in it: a NAT looks at no more."""
    return bytes(protocols.LEAST.get(_number_of(packet), 0)) + payload


def _udp(packet: Packet, payload: bytes) -> bytes:
    head = struct.pack("!HHHH", packet.source_port, packet.destination_port, 8 + len(payload), 0)
    check = _checksum(_pseudo(packet, head + payload) + head + payload) or 0xFFFF
    return head[:6] + struct.pack("!H", check) + payload


def _tcp(packet: Packet, payload: bytes) -> bytes:
    head = struct.pack("!HHIIBBHHH", packet.source_port, packet.destination_port, 1, 1, 0x50, packet.flags, 65535, 0, 0)
    check = _checksum(_pseudo(packet, head + payload) + head + payload)
    return head[:16] + struct.pack("!H", check) + head[18:] + payload


def _icmp(packet: Packet, payload: bytes) -> bytes:
    if packet.kind >= 13:  # timestamps (RFC 792): three of them
        payload = payload.ljust(12, b"\0")
    six = packet.source.version == 6
    head = struct.pack("!BBHHH", QUERIES6[packet.kind] if six else packet.kind, 0, 0, packet.identifier, 1)
    pseudo = _pseudo(packet, head + payload) if six else b""
    return head[:2] + struct.pack("!H", _checksum(pseudo + head + payload)) + head[4:] + payload


def _pseudo(packet: Packet, body: bytes) -> bytes:
    ends = packet.source.packed + packet.destination.packed
    if packet.source.version == 6:
        return ends + struct.pack("!II", len(body), _number_of(packet))
    return ends + struct.pack("!HH", _number_of(packet), len(body))


def _checksum(data: bytes) -> int:
    """Internet checksum (RFC 1071)."""
    data += b"\0" * (len(data) & 1)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
