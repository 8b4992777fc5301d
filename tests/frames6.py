"""IPv6 packets three ways, as `frames` has IPv4's: lines, values, bytes (RFC 8200, 4443). Shares no code with `shards`.

    udp [2400:c0de::2]:4000 > [2600::9]:53 ttl 3 len 20
    tcp [2400:c0de::2]:4000 > [2600::9]:80 syn mss 1460
    echo [2400:c0de::2]:77 > [2600::9]          (77 is the identifier; the reply is `echo-reply [2600::9] > [2400:c0de::2]:77`)
    too-big [2600::1] > [2400:c0de::2] mtu 1280 about [udp [2400:c0de::2]:4000 > [2600::9]:53 quote 48]
    udp [2400:c0de::2]:4000 > [2600::9]:53 with hop-by-hop destination routing/0/1 fragment/0/1/7 ah header/253
    sctp [2400:c0de::2]:4000 > [2600::9]:5000 init
    mobility [2400:c0de::2] > [2600::9]         (a header of eight bytes that says that it is the last; so `hip`, `shim6`)

`with` begins the extension headers, in their order; `fragment` has offset, more and, where it matters, an identification. A
fragment that is not atomic has the protocol of its Fragment header, which its payload begins with (`beginning`). Nothing of
what passes is changed but the hop limit, so an ICMPv6 error keeps what it quotes as its payload, byte for byte; `about` is
read from there.
"""

from __future__ import annotations

import ipaddress
import re
import struct
import zlib
from dataclasses import dataclass, replace
from typing import NamedTuple

from tests.frames import FLAG_NAMES, TCP, UDP, Malformed, filler, ones_sum

ICMP6, ESP, NOTHING = 58, 50, 59
WITH_PORTS = {TCP: "tcp", UDP: "udp", 136: "udp-lite", 132: "sctp", 33: "dccp"}
ECHO, ECHO_REPLY, ERRORS = 128, 129, (1, 2, 3, 4)
NAMES = {
    "echo": 0x8000, "echo-reply": 0x8100, "no-route": 0x0100, "prohibited": 0x0101, "address-unreachable": 0x0103,
    "port-unreachable": 0x0104, "too-big": 0x0200, "time-exceeded": 0x0300, "parameter-problem": 0x0400,
    "neighbour-solicitation": 0x8700,
}  # fmt: skip
HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION = 0, 43, 44, 51, 60
EXTENSIONS = (HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION)
LAST = {"mobility": 135, "hip": 139, "shim6": 140}  # extension headers behind which nothing is looked at
SCTP, INIT = 132, 1


@dataclass(frozen=True)
class Packet6:
    """An IPv6 packet."""

    protocol: int
    source: int
    destination: int
    source_port: int = 0  # echo: the identifier, on the asking side
    destination_port: int = 0
    flags: int = 0
    kind: int = 0  # ICMPv6 type << 8 | code
    rest: int = 0  # echo: sequence number; error: its last four header bytes
    ttl: int = 64
    traffic: int = 0  # traffic class and flow label
    headers: tuple[tuple[int, bytes], ...] = ()  # extension headers: (their kind, all of them but the first byte)
    tcp_options: bytes = b""
    residue: int = 0  # what the transport's sum misses: 0 is right; -1: partial
    payload: bytes = b""

    def __str__(self) -> str:
        return " ".join([_head(self), *_attributes(self)])

    @property
    def is_error(self) -> bool:
        """Whether this is an ICMPv6 error message."""
        return self.protocol == ICMP6 and self.kind >> 8 in ERRORS


# --- addresses ------------------------------------------------------------------------------------------------------------


def address6(text: str) -> int:
    """Integer of an IPv6 address, in brackets or without."""
    return int(ipaddress.IPv6Address(text.strip("[]")))


def spelt(host: int) -> str:
    """The inverse, without brackets."""
    return str(ipaddress.IPv6Address(host))


def mac_of6(host: int) -> bytes:
    """The MAC address that every IPv6 station of the tests has."""
    return b"\x02\x06" + zlib.crc32(host.to_bytes(16, "big")).to_bytes(4, "big")


def _endpoint(text: str) -> tuple[int, int]:
    host, _, port = text.removeprefix("[").partition("]")
    return address6(host), int(port.removeprefix(":") or 0)


def spell6(host: int, port: int) -> str:
    """An endpoint as lines have it."""
    return f"[{spelt(host)}]:{port}" if port else f"[{spelt(host)}]"


def is_six_frame(frame: bytes) -> bool:
    """Whether a frame says that it is IPv6, behind a tag perhaps."""
    return frame[12:14] == b"\x86\xdd" or (frame[12:14] == b"\x81\0" and frame[16:18] == b"\x86\xdd")


# --- line to value and back -----------------------------------------------------------------------------------------------


def is_six(line: str) -> bool:
    """Whether a line tells of an IPv6 packet."""
    return len(line.split()) > 1 and line.split()[1].startswith("[")


def read(line: str) -> Packet6:
    """The packet that a line describes."""
    data, cut = _read(line)
    return data if cut is None else replace(data, payload=data.payload[:cut])


def _read(line: str) -> tuple[Packet6, int | None]:
    found = re.fullmatch(r"(.*?)\babout \[(.*)\](.*)", line)
    outer, about = (found[1] + found[3], found[2]) if found else (line, "")
    outer, _, extensions = outer.partition(" with ")
    words = outer.split()
    packet = _with_head(words[0], _endpoint(words[1]), _endpoint(words[3]))
    packet = replace(packet, headers=tuple(_header(word) for word in extensions.split()))
    if about:
        quoted, cut = _read(about)
        packet = replace(packet, payload=build(quoted)[: None if cut is None else 40 + cut])
    quote, rest = None, words[4:]
    while rest:
        word = rest.pop(0)
        if word == "quote":
            quote = int(rest.pop(0))
        else:
            packet = _with_word(packet, word, rest)
    return packet, quote


def _with_head(name: str, source: tuple[int, int], destination: tuple[int, int]) -> Packet6:
    ports = {word: number for number, word in WITH_PORTS.items()}
    found = re.fullmatch(r"(icmp|ip)/(\d+)(?:/(\d+))?", name)
    kind = NAMES.get(name, 0)
    if found and found[1] == "icmp":
        kind = int(found[2]) << 8 | int(found[3])
    if found and found[1] == "ip":
        return Packet6(int(found[2]), source[0], destination[0])
    if name in LAST:
        return Packet6(LAST[name], source[0], destination[0], payload=bytes([NOTHING]) + bytes(7))
    if name in ports or name == "esp":
        return Packet6(ports.get(name, ESP), source[0], destination[0], source[1], destination[1])
    if not kind:
        raise ValueError(f"{name!r} is no kind of IPv6 packet")
    return Packet6(ICMP6, source[0], destination[0], source[1], destination[1], kind=kind, rest=int(kind >> 8 >= ECHO))


def _with_word(packet: Packet6, word: str, rest: list[str]) -> Packet6:
    if word in FLAG_NAMES and packet.protocol == TCP:
        return replace(packet, flags=packet.flags | FLAG_NAMES[word])
    if word == "init":
        return replace(packet, payload=bytes(4) + struct.pack(">BBHIIHHI", INIT, 0, 20, 7, 65536, 1, 1, 9))
    value = rest.pop(0)
    match word:
        case "ttl":
            return replace(packet, ttl=int(value))
        case "len":
            return replace(packet, payload=packet.payload + filler(int(value)))
        case "mtu" | "rest":
            return replace(packet, rest=int(value))
        case "traffic":
            return replace(packet, traffic=int(value, 0))
        case "mss":
            return replace(packet, tcp_options=b"\x02\x04" + int(value).to_bytes(2, "big"))
        case "checksum":
            return replace(packet, residue={"bad": 1, "partial": -1}[value])
    raise ValueError(f"{word!r} is no word of an IPv6 packet")


def _header(word: str) -> tuple[int, bytes]:
    """`routing/TYPE/SEGMENTS-LEFT`, `fragment/OFFSET/MORE`, `header/KIND`, `home/ADDRESS` (RFC 6275 6.3), or the name of one
    with nothing in it. A routing header says that it is of three units, or of as many as a third number says, more than one.
    """
    name, *told = word.split("/")
    numbers = [int(text) for text in told if text.isdecimal()]
    match name:
        case "hop-by-hop":
            return HOP_BY_HOP, b"\0\1\4\0\0\0\0"
        case "destination":
            return DESTINATION, b"\0\1\4\0\0\0\0"
        case "routing":
            return ROUTING, bytes([(*numbers, 2)[2], *numbers[:2]]) + bytes(20)
        case "home":
            return DESTINATION, bytes([2, 1, 2, 0, 0, 201, 16]) + address6(word.partition("/")[2]).to_bytes(16, "big")
        case "fragment":
            offset, more, identification = (*numbers, 7)[:3]
            return FRAGMENT, struct.pack(">BHI", 0, offset << 3 | more, identification)
        case "ah":
            return AUTHENTICATION, b"\4" + bytes(22)
        case "header":
            return numbers[0], b"\0" + bytes(6)
    raise ValueError(f"{word!r} is no extension header")


def _head(packet: Packet6) -> str:
    name = WITH_PORTS.get(packet.protocol, "esp" if packet.protocol == ESP else f"ip/{packet.protocol}")
    if packet.protocol == ICMP6:
        spoken = {number: word for word, number in NAMES.items()}
        name = spoken.get(packet.kind, f"icmp/{packet.kind >> 8}/{packet.kind & 0xFF}")
    return f"{name} {spell6(packet.source, packet.source_port)} > {spell6(packet.destination, packet.destination_port)}"


def _attributes(packet: Packet6) -> list[str]:
    told = [word for word, bit in FLAG_NAMES.items() if packet.flags & bit]
    told += [f"ttl {packet.ttl}"] if packet.ttl != 64 else []
    told += [f"mtu {packet.rest}"] if packet.kind == 0x0200 else []
    if len(packet.tcp_options) == 4:
        told.append(f"mss {int.from_bytes(packet.tcp_options[2:], 'big')}")
    if packet.is_error:
        about = embedded(packet)
        told.append(f"about [{_head(about)}]" if about else f"data {packet.payload.hex()}")
    elif packet.payload:
        told.append(f"len {len(packet.payload)}")
    told += [f"checksum {'bad' if packet.residue > 0 else 'partial'}"] if packet.residue else []
    return told + (["with", *(str(kind) for kind, _ in packet.headers)] if packet.headers else [])


# --- value to bytes -------------------------------------------------------------------------------------------------------


def build(packet: Packet6) -> bytes:
    """The datagram."""
    chain = b""
    kinds = [kind for kind, _ in packet.headers] + [packet.protocol]
    for (_, body), following in zip(packet.headers, kinds[1:], strict=True):
        chain += bytes([following]) + body
    upper = _transport(packet)
    head = struct.pack(">IHBB", 6 << 28 | packet.traffic, len(chain) + len(upper), kinds[0], packet.ttl)
    return head + packet.source.to_bytes(16, "big") + packet.destination.to_bytes(16, "big") + chain + upper


def _transport(packet: Packet6) -> bytes:
    ports = struct.pack(">HH", packet.source_port, packet.destination_port)
    if packet.protocol == UDP:
        return _summed(packet, ports + struct.pack(">HH", 8 + len(packet.payload), 0) + packet.payload, 6)
    if packet.protocol == TCP:
        offset = (5 + len(packet.tcp_options) // 4) << 4
        head = struct.pack(">IIBBHHH", 1000, 0, offset, packet.flags, 65535, 0, 0)
        return _summed(packet, ports + head + packet.tcp_options + packet.payload, 16)
    if packet.protocol == ICMP6:
        if packet.kind >> 8 >= ECHO:
            identifier = packet.source_port or packet.destination_port
            return _summed(packet, struct.pack(">HHHH", packet.kind, 0, identifier, packet.rest) + packet.payload, 2)
        return _summed(packet, struct.pack(">HHI", packet.kind, 0, packet.rest) + packet.payload, 2)
    return (ports + bytes(4) if packet.protocol in WITH_PORTS else b"") + packet.payload


def _pseudo(packet: Packet6, length: int) -> bytes:
    ends = packet.source.to_bytes(16, "big") + packet.destination.to_bytes(16, "big")
    return ends + struct.pack(">II", length, packet.protocol)


def _summed(packet: Packet6, segment: bytes, at: int) -> bytes:
    pseudo = _pseudo(packet, len(segment))
    if packet.residue == -1:
        check = ones_sum(pseudo)
    else:
        check = (packet.residue - ones_sum(pseudo + segment)) % 0xFFFF or 0xFFFF
    return segment[:at] + check.to_bytes(2, "big") + segment[at + 2 :]


# --- bytes to value -------------------------------------------------------------------------------------------------------


def dissect(data: bytes, quoted: bool = False) -> Packet6:
    """The value of a datagram; `quoted` ones may be cut short and be first fragments. Raises `Malformed`."""
    packet = _dissect(data, quoted, first=quoted)
    return packet if packet.protocol == FRAGMENT else _quoted(packet) if quoted else _upper(packet, entire=True)


def beginning(data: bytes) -> Packet6:
    """A first fragment with all of its headers read; raises `Malformed` (RFC 7112: they must be there)."""
    packet = _dissect(data, quoted=False, first=True)
    try:
        if len(packet.payload) < 8:
            raise Malformed("bad_l4_header")
        packet = _upper(packet, entire=False)
    except Malformed as wrong:
        raise Malformed("tiny_fragment" if wrong.verdict == "bad_l4_header" else wrong.verdict) from wrong
    if packet.is_error:
        raise Malformed("error_in_fragments")
    return packet


class Part6(NamedTuple):
    """Where a fragment is in what was cut, which datagram's, and what stands before that in each."""

    offset: int
    size: int
    more: bool
    identification: int
    before: int


def part_of(packet: Packet6) -> Part6:
    """What the Fragment header says that a fragment's payload begins with."""
    word, identification = struct.unpack(">HI", packet.payload[2:8])
    before = sum(1 + len(body) for _, body in packet.headers)
    return Part6(word & 0xFFF8, len(packet.payload) - 8, bool(word & 1), identification, before)


def piece(datagram: bytes, first: int, last: int) -> bytes:
    """The fragment of a datagram with bytes `first` to `last` of what stands behind its (atomic) Fragment header."""
    at = _fragment_header_at(datagram) + 8
    part = datagram[at:][first:last]
    word = first & 0xFFF8 | (at + last < len(datagram))
    header = datagram[at - 8 : at - 6] + word.to_bytes(2, "big") + datagram[at - 4 : at]
    return datagram[:4] + (at - 40 + len(part)).to_bytes(2, "big") + datagram[6 : at - 8] + header + part


def _fragment_header_at(datagram: bytes) -> int:
    kind, at = datagram[6], 40
    while kind in EXTENSIONS:
        if kind == FRAGMENT:
            return at
        kind, at = datagram[at], at + _size(kind, datagram[at:])
    raise ValueError("only a packet `with fragment/0/0/ID` can be cut")


def _size(kind: int, header: bytes) -> int:
    return {FRAGMENT: 8, AUTHENTICATION: 4 * header[1] + 8}.get(kind, 8 * header[1] + 8)


def _dissect(data: bytes, quoted: bool, first: bool) -> Packet6:
    if len(data) < 40:
        raise Malformed("runt")
    word, length, kind, ttl = struct.unpack(">IHBB", data[:8])
    if word >> 28 != 6:
        raise Malformed("bad_ip_header")
    if 40 + length > len(data) and not quoted:
        raise Malformed("bad_length")
    packet = Packet6(
        0, int.from_bytes(data[8:24], "big"), int.from_bytes(data[24:40], "big"), ttl=ttl, traffic=word & 0x0FFFFFFF
    )
    rest = data[40:] if quoted else data[40 : 40 + length]
    headers: list[tuple[int, bytes]] = []
    while kind in EXTENSIONS:
        size = _header_size(kind, rest, headers, first)
        if kind == FRAGMENT and _is_fragment(rest, first):
            return replace(packet, protocol=FRAGMENT, headers=tuple(headers), payload=rest)
        headers.append((kind, rest[1:size]))
        kind, rest = rest[0], rest[size:]
        if len(headers) == 8:
            raise Malformed("bad_extension_header")
    if kind in (253, 254):
        raise Malformed("bad_extension_header")
    return replace(packet, protocol=kind, headers=tuple(headers), payload=rest)


def _is_fragment(header: bytes, first: bool) -> bool:
    """Whether what stands behind a Fragment header is no headers: those of a `first` one are read on."""
    word = int.from_bytes(header[2:4], "big")
    return bool(word >> 3 or (word & 1 and not first))


def _header_size(kind: int, rest: bytes, before: list[tuple[int, bytes]], first: bool) -> int:
    """How long an extension header is; raises `Malformed` for one that must not pass."""
    if (kind == HOP_BY_HOP and before) or (kind == FRAGMENT and any(other == FRAGMENT for other, _ in before)):
        raise Malformed("bad_extension_header")
    short = "tiny_fragment" if first else "bad_extension_header"
    if len(rest) < 8:
        raise Malformed(short)
    if kind == ROUTING and (rest[2] in (0, 1) or (rest[2] != 2 and rest[3])):  # RFC 5095
        raise Malformed("source_routed")
    if kind == ROUTING and rest[2] == 2 and (rest[1] != 2 or rest[3] > 1):  # Mobile IPv6's, to one's own home address
        raise Malformed("source_routed")
    size = _size(kind, rest)
    if size > len(rest):
        raise Malformed(short)
    return size


def _quoted(packet: Packet6) -> Packet6:
    """What eight bytes of the transport say."""
    rest = packet.payload
    if len(rest) < 8:
        raise Malformed("icmp_embedded_bad")
    if packet.protocol == ICMP6:
        return _identified(replace(packet, kind=int.from_bytes(rest[:2], "big")), int.from_bytes(rest[4:6], "big"))
    return _with_ports(packet, rest) if packet.protocol in WITH_PORTS else packet


def _with_ports(packet: Packet6, rest: bytes) -> Packet6:
    ports = int.from_bytes(rest[:2], "big"), int.from_bytes(rest[2:4], "big")
    return replace(packet, source_port=ports[0], destination_port=ports[1])


def _identified(packet: Packet6, identifier: int) -> Packet6:
    end = {ECHO: "source_port", ECHO_REPLY: "destination_port"}.get(packet.kind >> 8)
    return replace(packet, **{end: identifier}) if end else packet  # type: ignore[arg-type]


def _upper(packet: Packet6, entire: bool) -> Packet6:
    rest = packet.payload
    if packet.protocol == NOTHING:
        raise Malformed("protocol_not_served")
    if len(rest) < {TCP: 20, ICMP6: 8}.get(packet.protocol, 8 if packet.protocol in WITH_PORTS else 0):
        raise Malformed("bad_l4_header")
    if packet.protocol in LAST.values() and (len(rest) < 8 or 8 * rest[1] + 8 > len(rest)):
        raise Malformed("bad_extension_header" if entire else "tiny_fragment")
    if packet.protocol == TCP:
        return _dissect_tcp(packet, rest, entire)
    if packet.protocol == UDP:
        length = int.from_bytes(rest[4:6], "big")
        if length < 8 or (entire and length > len(rest)):
            raise Malformed("bad_length")
        residue = _residue(packet, rest[:length], 6) if entire else 0
        return replace(_with_ports(packet, rest), payload=rest[8:], residue=residue)
    if packet.protocol == ICMP6:
        return _dissect_icmp(packet, rest, entire)
    if packet.protocol in WITH_PORTS:
        return replace(_with_ports(packet, rest), payload=rest[8:] if not any(rest[4:8]) else rest[4:])
    return packet


def _residue(packet: Packet6, segment: bytes, at: int) -> int:
    """What is wrong with the transport's checksum; -1 where only the pseudo-header's sum stands there."""
    pseudo = _pseudo(packet, len(segment))
    wrong = ones_sum(pseudo + segment)
    return -1 if wrong and int.from_bytes(segment[at : at + 2], "big") == ones_sum(pseudo) else wrong


def _dissect_tcp(packet: Packet6, rest: bytes, entire: bool) -> Packet6:
    header = (rest[12] >> 4) * 4
    if not 20 <= header <= len(rest):
        raise Malformed("bad_l4_header")
    packet = replace(_with_ports(packet, rest), flags=rest[13], tcp_options=rest[20:header], payload=rest[header:])
    flags = packet.flags & 0x3F
    if not flags or (flags & 2 and flags & 5) or flags & 0x15 == 1:
        raise Malformed("bad_tcp_flags")
    return replace(packet, residue=_residue(packet, rest, 16) if entire else 0)


def _dissect_icmp(packet: Packet6, rest: bytes, entire: bool) -> Packet6:
    if entire and ones_sum(_pseudo(packet, len(rest)) + rest):
        raise Malformed("bad_icmp_checksum")
    kind, _, identifier, sequence = struct.unpack(">HHHH", rest[:8])
    packet = replace(packet, kind=kind, payload=rest[8:])
    if kind >> 8 in ERRORS:
        return replace(packet, rest=identifier << 16 | sequence)
    if kind >> 8 not in (ECHO, ECHO_REPLY):
        raise Malformed("icmp_type_not_served")
    return _identified(replace(packet, rest=sequence), identifier)


def embedded(packet: Packet6) -> Packet6 | None:
    """The packet that an error is about, None where that cannot be known."""
    try:
        about = dissect(packet.payload, quoted=True)
    except Malformed:
        return None
    return None if about.protocol == FRAGMENT else about


def begins_association(data: bytes) -> bool:
    """Whether a sound datagram, or first fragment, is an SCTP INIT: that chunk, and no tag (RFC 9260 8.5.1)."""
    packet = _dissect(data, quoted=False, first=True) if data else None
    if packet is None or packet.protocol != SCTP:
        return False
    return packet.payload[4:8] == bytes(4) and packet.payload[12:13] == bytes([INIT])


def transport_at(data: bytes) -> int:
    """Where the transport header of a sound datagram, or of a first fragment, begins."""
    return 40 + sum(1 + len(body) for _, body in _dissect(data, quoted=False, first=True).headers)
