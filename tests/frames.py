"""Packets three ways: a line that can be read aloud, a value with named fields, and the bytes on the wire.

    udp 100.64.0.2:4000 > 198.51.100.9:53 ttl 3 len 20
    tcp 100.64.0.2:4000 > 198.51.100.9:80 syn mss 1460
    echo 100.64.0.2:77 > 198.51.100.9            (77 is the identifier; the reply is `echo-reply 198.51.100.9 > 100.64.0.2:77`)
    time-exceeded 198.51.100.1 > 203.0.113.1 about [udp 203.0.113.1:1024 > 198.51.100.9:53 quote 8]

`read` (line to value), `str` (value to line), `build` (value to bytes) and `dissect` (bytes to value) lose nothing for whole
packets. This is a second, slow reading of RFC 791, 792, 768, 9293 that shares no code with `shards`: the tests' own opinion.
"""

from __future__ import annotations

import ipaddress
import re
import struct
from dataclasses import dataclass, replace

ICMP, TCP, UDP = 1, 6, 17
NAMES = {"udp": UDP, "tcp": TCP, "ipip": 4, "6in4": 41, "gre": 47, "esp": 50, "ah": 51, "sctp": 132}
REQUESTS, REPLIES, ERRORS = (8, 13), (0, 14), (3, 4, 11, 12)  # ICMP types; redirects (5) pass no router

ICMP_NAMES = {
    "echo": 0x0800, "echo-reply": 0x0000, "timestamp": 0x0D00, "timestamp-reply": 0x0E00,
    "net-unreachable": 0x0300, "host-unreachable": 0x0301, "port-unreachable": 0x0303, "frag-needed": 0x0304,
    "prohibited": 0x030D, "source-quench": 0x0400, "redirect": 0x0501, "time-exceeded": 0x0B00, "reassembly-exceeded": 0x0B01,
    "parameter-problem": 0x0C00,
}  # fmt: skip
FLAG_NAMES = {"fin": 1, "syn": 2, "rst": 4, "psh": 8, "ack": 16, "urg": 32, "ece": 64, "cwr": 128}
OPTION_NAMES = {
    "recorded-route": bytes([7, 11, 8, 100, 64, 0, 77, 0, 0, 0, 0, 0]),
    "recorded-times": bytes([68, 12, 13, 1, 100, 64, 0, 77, 0, 0, 0, 9]),
    "record-route": bytes([7, 7, 4, 0, 0, 0, 0, 0]),
    "router-alert": bytes([148, 4, 0, 0]),
    "loose-source-route": bytes([131, 7, 4, 198, 51, 100, 1, 0]),
    "strict-source-route": bytes([137, 7, 4, 198, 51, 100, 1, 0]),
}
DONT_FRAGMENT = 0x4000


class Malformed(Exception):
    """These bytes are no packet that could be forwarded; `verdict` names why, in the pipeline's words."""

    def __init__(self, verdict: str) -> None:
        super().__init__(verdict)
        self.verdict = verdict


@dataclass(frozen=True)
class Packet:
    """An IPv4 datagram. Checksums are held as what is wrong with them, so that a translation needs not touch them."""

    protocol: int
    source: int
    destination: int
    source_port: int = 0  # ICMP query: the identifier, on the querying side
    destination_port: int = 0
    flags: int = 0  # TCP
    kind: int = 0  # ICMP type << 8 | code
    rest: int = 0  # ICMP: sequence number of a query, last four header bytes of an error
    ttl: int = 64
    tos: int = 0
    id: int = 0
    fragment: int = 0  # the flags and offset word
    ip_options: bytes = b""
    ip_error: int = 0  # what the header's sum misses; 0 is right
    residue: int | None = 0  # the same of the transport's sum; None: no checksum in it
    sequence: int = 1000
    acknowledgment: int = 0
    window: int = 65535
    urgent: int = 0
    tcp_options: bytes = b""
    offset: int = 0  # TCP data offset with reserved bits, when it is not what the options say
    udp_length: int = 0  # UDP, when it is not what IP says
    payload: bytes = b""
    about: Packet | None = None  # ICMP error: the embedded packet
    missing: int = 0  # embedded: bytes that the quoting router has cut off

    def __str__(self) -> str:
        return " ".join([_head(self), *_attributes(self)])

    @property
    def is_error(self) -> bool:
        """Whether this is an ICMP error message."""
        return self.protocol == ICMP and self.kind >> 8 in ERRORS

    @property
    def mss(self) -> int:
        """Value of the TCP option, 0 without one."""
        at = _mss_at(self.tcp_options)
        return int.from_bytes(self.tcp_options[at : at + 2], "big") if at else 0

    def clamped(self, mss: int) -> Packet:
        """With the MSS option lowered to `mss` where it was greater."""
        at = _mss_at(self.tcp_options)
        if not at or self.mss <= mss:
            return self
        return replace(self, tcp_options=self.tcp_options[:at] + mss.to_bytes(2, "big") + self.tcp_options[at + 2 :])


def _mss_at(options: bytes) -> int:
    at = 0
    while at < len(options) and options[at] != 0:
        if options[at] == 1:
            at += 1
            continue
        if at + 1 >= len(options) or options[at + 1] < 2 or at + options[at + 1] > len(options):
            return 0
        if options[at] == 2 and options[at + 1] == 4:
            return at + 2
        at += options[at + 1]
    return 0


# --- addresses ------------------------------------------------------------------------------------------------------------


def address(text: str) -> int:
    """Host integer of a dotted quad."""
    return int(ipaddress.IPv4Address(text))


def dotted(value: int) -> str:
    """Dotted quad of a host integer."""
    return str(ipaddress.IPv4Address(value))


def endpoint(text: str) -> tuple[int, int]:
    """`203.0.113.1:4000` as (address, port); without a port, port 0."""
    host, _, port = text.partition(":")
    return address(host), int(port or 0)


def spell(host: int, port: int) -> str:
    """The inverse of `endpoint`."""
    return f"{dotted(host)}:{port}" if port else dotted(host)


def mac_of(host: int) -> bytes:
    """The MAC address that every station of the tests has: made of its IPv4 address."""
    return b"\x02\x00" + host.to_bytes(4, "big")


# --- line to value and back -----------------------------------------------------------------------------------------------


def filler(length: int) -> bytes:
    """The payload of packets that do not say another."""
    return bytes(i & 0xFF for i in range(length))


def read(line: str) -> Packet:
    """The packet that a line describes; ValueError says which word is not understood."""
    outer, about = _split(line)
    words = outer.split()
    if len(words) < 4 or words[2] != ">":
        raise ValueError(f"{line!r}: a packet is `kind source > destination ...`")
    packet = _with_head(words[0], endpoint(words[1]), endpoint(words[3]))
    if about:
        packet = replace(packet, about=read(about))
    rest = words[4:]
    quote = None
    while rest:
        word = rest.pop(0)
        if word == "quote":
            quote = int(rest.pop(0))
        else:
            packet = _with_word(packet, word, rest)
    return packet if quote is None else dissect(build(packet)[: 20 + len(packet.ip_options) + quote], embedded=True)


def _split(line: str) -> tuple[str, str]:
    found = re.fullmatch(r"(.*?)\babout \[(.*)\](.*)", line)
    return (found[1] + found[3], found[2]) if found else (line, "")


def _with_head(name: str, source: tuple[int, int], destination: tuple[int, int]) -> Packet:
    packet = Packet(_protocol(name), source[0], destination[0], source[1], destination[1])
    if packet.protocol == ICMP:
        kind = ICMP_NAMES.get(name, 0)
        if found := re.fullmatch(r"icmp/(\d+)/(\d+)", name):
            kind = int(found[1]) << 8 | int(found[2])
        return replace(packet, kind=kind, rest=1 if kind >> 8 in REQUESTS + REPLIES else 0)
    return replace(packet, residue=0 if packet.protocol in (TCP, UDP) else None)


def _protocol(name: str) -> int:
    if name in ICMP_NAMES or name.startswith("icmp/"):
        return ICMP
    if name in NAMES or re.fullmatch(r"ip/\d+", name):
        return NAMES.get(name) or int(name[3:])
    raise ValueError(f"{name!r} is no kind of packet: udp, tcp, ip/N, icmp/T/C, {', '.join(ICMP_NAMES)}")


_NUMBERS = {
    "ttl": "ttl", "tos": "tos", "id": "id", "seq": "sequence", "rest": "rest", "mtu": "rest", "fragment": "fragment",
    "offset": "offset", "udp-length": "udp_length", "window": "window", "acknowledges": "acknowledgment", "urgent": "urgent",
}  # fmt: skip


def _with_word(packet: Packet, word: str, rest: list[str]) -> Packet:
    if word in FLAG_NAMES and packet.protocol == TCP:
        return replace(packet, flags=packet.flags | FLAG_NAMES[word])
    if word == "df":
        return replace(packet, fragment=packet.fragment | DONT_FRAGMENT)
    if word == "more":
        return replace(packet, fragment=packet.fragment | 0x2000)
    if not rest:
        raise ValueError(f"{word!r} is not understood, or misses its value")
    value = rest.pop(0)
    if word in _NUMBERS:
        return replace(packet, **{_NUMBERS[word]: int(value, 0)})  # type: ignore[arg-type]
    return _with_value(packet, word, value)


def _with_value(packet: Packet, word: str, value: str) -> Packet:
    match word:
        case "from":
            return replace(packet, fragment=packet.fragment | int(value) // 8)
        case "len":
            return replace(packet, payload=filler(int(value)))
        case "data":
            return replace(packet, payload=bytes.fromhex(value))
        case "mss":
            return replace(packet, tcp_options=b"\x02\x04" + int(value).to_bytes(2, "big"))
        case "tcp-options":
            return replace(packet, tcp_options=bytes.fromhex(value))
        case "options":
            return replace(packet, ip_options=OPTION_NAMES.get(value) or bytes.fromhex(value))
        case "checksum":
            return replace(packet, residue={"bad": 1, "none": None, "partial": -1}.get(value, 0))
        case "ip-checksum":
            return replace(packet, ip_error={"bad": 1}.get(value, 0))
    raise ValueError(f"{word!r} is no word of a packet")


def _head(packet: Packet) -> str:
    name = {number: name for name, number in NAMES.items()}.get(packet.protocol, f"ip/{packet.protocol}")
    if packet.fragment & 0x1FFF:
        name = f"ip/{packet.protocol}"
    elif packet.protocol == ICMP:
        spoken = {number: word for word, number in ICMP_NAMES.items()}
        name = spoken.get(packet.kind, f"icmp/{packet.kind >> 8}/{packet.kind & 0xFF}")
    return f"{name} {spell(packet.source, packet.source_port)} > {spell(packet.destination, packet.destination_port)}"


def _attributes(packet: Packet) -> list[str]:
    told = [word for word, bit in FLAG_NAMES.items() if packet.flags & bit]
    plain = _with_head(_head(packet).split()[0], (0, 0), (0, 0))
    for word, field in _NUMBERS.items():
        value = getattr(packet, field)
        if field == "fragment" and value < 0x8000:
            told += _place(value)
        elif value != getattr(plain, field) and word != "rest" and (word != "mtu" or packet.kind == 0x0304):
            told.append(f"{word} {value}")
        elif word == "rest" and value != plain.rest and packet.kind != 0x0304:
            told.append(f"rest {value}")
    return told + _long_attributes(packet)


def _place(word: int) -> list[str]:
    """Flags and offset, which is in bytes here."""
    said = ["df"] if word & DONT_FRAGMENT else []
    said += [f"from {8 * (word & 0x1FFF)}"] if word & 0x1FFF else []
    return said + (["more"] if word & 0x2000 else [])


def _long_attributes(packet: Packet) -> list[str]:
    told = []
    if packet.tcp_options:
        only_mss = len(packet.tcp_options) == 4 and packet.mss
        told.append(f"mss {packet.mss}" if only_mss else f"tcp-options {packet.tcp_options.hex()}")
    if packet.ip_options:
        spoken = {value: name for name, value in OPTION_NAMES.items()}
        told.append(f"options {spoken.get(packet.ip_options, packet.ip_options.hex())}")
    size = len(packet.payload) + packet.missing - _cut_header(packet)
    if size > 0:
        same = filler(size).startswith(packet.payload) or packet.missing or packet.fragment & 0x1FFF
        told.append(f"len {size}" if same else f"data {packet.payload.hex()}")
    if packet.ip_error:
        told.append("ip-checksum bad")
    part = packet.missing or packet.fragment & 0x3FFF  # which says nothing of it
    if packet.residue != 0 and packet.protocol in (ICMP, TCP, UDP) and not part:
        told.append({None: "checksum none", -1: "checksum partial"}.get(packet.residue, "checksum bad"))
    if packet.about:
        told.append(f"about [{packet.about}]")
    if packet.missing:
        told.append(f"quote {len(_transport(packet))}")
    return told


def _cut_header(packet: Packet) -> int:
    """How much of payload and missing bytes belongs to the header of a TCP segment cut before its checksum."""
    return 12 if packet.protocol == TCP and packet.residue is None else 0


# --- value to bytes -------------------------------------------------------------------------------------------------------


def ones_sum(data: bytes) -> int:
    """Ones'-complement sum (RFC 1071) in 0 … 0xFFFE, where 0 also stands for 0xFFFF."""
    padded = data + b"\0" * (len(data) & 1)
    words: tuple[int, ...] = struct.unpack(f">{len(padded) // 2}H", padded)
    return sum(words) % 0xFFFF


def build(packet: Packet) -> bytes:
    """The IPv4 datagram; of an embedded packet that was cut short, what is left of it."""
    transport = _transport(packet)
    return _ip_header(packet, 20 + len(packet.ip_options) + len(transport) + packet.missing) + transport


def _ip_header(packet: Packet, total: int) -> bytes:
    words = 5 + len(packet.ip_options) // 4
    header = struct.pack(
        ">BBHHHBBHII", 0x40 | words, packet.tos, total, packet.id, packet.fragment, packet.ttl, packet.protocol, 0,
        packet.source, packet.destination,
    ) + packet.ip_options  # fmt: skip
    check = (packet.ip_error - ones_sum(header)) % 0xFFFF
    return header[:10] + check.to_bytes(2, "big") + header[12:]


def _transport(packet: Packet) -> bytes:
    if packet.fragment & 0x1FFF:
        return packet.payload
    if packet.protocol == UDP:
        length = packet.udp_length or 8 + len(packet.payload) + packet.missing
        segment = struct.pack(">HHHH", packet.source_port, packet.destination_port, length, 0) + packet.payload
        covered = max(length, 8)
        return _summed(packet, segment[:covered], 6) + segment[covered:]
    if packet.protocol == TCP and packet.residue is None:  # cut before the checksum
        return struct.pack(">HHI", packet.source_port, packet.destination_port, packet.sequence) + packet.payload
    if packet.protocol == TCP:
        return _summed(packet, _tcp_header(packet) + packet.payload, 16)
    if packet.protocol == ICMP:
        inner = build(packet.about) if packet.about else b""
        return _summed(packet, _icmp_header(packet) + inner + packet.payload, 2)
    return packet.payload


def _tcp_header(packet: Packet) -> bytes:
    offset = packet.offset or (5 + len(packet.tcp_options) // 4) << 4
    return struct.pack(
        ">HHIIBBHHH", packet.source_port, packet.destination_port, packet.sequence, packet.acknowledgment, offset, packet.flags,
        packet.window, 0, max(packet.urgent, 0),
    )[: 18 if packet.urgent < 0 else 20] + packet.tcp_options  # fmt: skip


def _icmp_header(packet: Packet) -> bytes:
    if packet.kind >> 8 in REQUESTS + REPLIES:
        identifier = packet.source_port if packet.kind >> 8 in REQUESTS else packet.destination_port
        return struct.pack(">HHHH", packet.kind, 0, identifier, packet.rest)
    return struct.pack(">HHI", packet.kind, 0, packet.rest)


def pseudo_header(packet: Packet, length: int) -> bytes:
    """What TCP and UDP checksums cover besides the segment; nothing for ICMP."""
    if packet.protocol == ICMP:
        return b""
    return struct.pack(">IIHH", packet.source, packet.destination, packet.protocol, length)


def _summed(packet: Packet, segment: bytes, at: int) -> bytes:
    if packet.residue is None:
        return segment
    length = packet.udp_length or len(segment) + packet.missing
    pseudo = pseudo_header(packet, length)
    if packet.residue == -1:  # as a local sender leaves it to its hardware: the sum of the pseudo-header, not complemented
        check = ones_sum(pseudo)
    else:
        check = (packet.residue - ones_sum(pseudo + segment)) % 0xFFFF
        if packet.protocol == UDP or not any(segment):
            check = check or 0xFFFF  # RFC 768: zero would mean none
    return segment[:at] + check.to_bytes(2, "big") + segment[at + 2 :]


def piece(datagram: bytes, first: int, last: int) -> bytes:
    """The fragment of a whole datagram without options that brings bytes `first` to `last` of its payload (RFC 791)."""
    packet = dissect_header(datagram)
    more = 0x2000 if last < len(packet.payload) else 0
    part = replace(packet, fragment=packet.fragment | more | first // 8, payload=packet.payload[first:last])
    return _ip_header(part, 20 + len(part.ip_options) + len(part.payload)) + part.payload


def put_together(pieces: list[bytes]) -> bytes:
    """The datagram that these fragments are all of (the others' options are the first one's copied ones)."""
    parts = [dissect_header(data) for data in pieces]
    at = parts[0].fragment & 0x1FFF
    for part in parts:
        assert part.fragment & 0x1FFF == at and (len(part.payload) % 8 == 0 or part is parts[-1])
        assert part.fragment & 0x2000 or part is parts[-1]
        assert _bare(part) == _bare(parts[0])
        at += len(part.payload) // 8
    for part in parts[1:]:
        assert part.ip_options == copied(parts[0].ip_options)
    word = parts[0].fragment & ~0x2000 | parts[-1].fragment & 0x2000
    whole = replace(parts[0], fragment=word, payload=b"".join(part.payload for part in parts))
    return _ip_header(whole, 20 + len(whole.ip_options) + len(whole.payload)) + whole.payload


def _bare(part: Packet) -> Packet:
    """What all fragments of a datagram have in common."""
    return replace(part, fragment=0, payload=b"", ip_options=b"", residue=None)


def copied(options: bytes) -> bytes:
    """The options that every fragment has (RFC 791 3.1: the highest bit of their kind), filled up to words."""
    kept, at = b"", 0
    while at < len(options) and options[at]:
        size = 1 if options[at] == 1 else options[at + 1]
        kept += options[at : at + size] if options[at] & 0x80 else b""
        at += size
    return kept + bytes(-len(kept) % 4)


def shortened(datagram: bytes, length: int) -> bytes:
    """The first bytes of a datagram without options, with a total length and a header checksum that fit them."""
    header = datagram[:2] + length.to_bytes(2, "big") + datagram[4:10] + b"\0\0" + datagram[12:20]
    check = -ones_sum(header) % 0xFFFF
    return header[:10] + check.to_bytes(2, "big") + header[12:] + datagram[20:length]


# --- bytes to value -------------------------------------------------------------------------------------------------------


def dissect(data: bytes, embedded: bool = False, arriving: bool = True) -> Packet:
    """The value of an IPv4 datagram; `embedded` ones may be cut short. Trailing padding is ignored. Raises `Malformed`.

    A residue of -1 (partial) is seen in what is `arriving` only: anywhere else such a checksum is a wrong one like others.
    """
    packet = dissect_header(data, embedded)
    if packet.fragment & 0x1FFF:
        return packet
    told = dissect_transport(packet, embedded or packet.fragment & 0x2000 != 0)
    if told.residue == -1 and not arriving:
        return replace(told, residue=residue_of(packet, packet.payload[: told.udp_length or None]))
    return told


def dissect_header(data: bytes, embedded: bool = False) -> Packet:
    """The value of the IPv4 header, with everything behind it as the payload. Raises `Malformed`."""
    header, packet, total = _dissect_ip(data, embedded)
    segment = data[header:total]
    # A fragment behind the first has no transport header, and so no checksum.
    residue = None if packet.fragment & 0x1FFF else 0
    return replace(packet, payload=segment, missing=total - header - len(segment), residue=residue)


def dissect_transport(packet: Packet, embedded: bool = False) -> Packet:
    """What the payload left by `dissect_header` says. Raises `Malformed`; embedded packets need eight bytes."""
    reader = {UDP: _dissect_udp, TCP: _dissect_tcp, ICMP: _dissect_icmp}.get(packet.protocol)
    return reader(packet, packet.payload, embedded) if reader else replace(packet, residue=None)


def _dissect_ip(data: bytes, embedded: bool) -> tuple[int, Packet, int]:
    if len(data) < 20:
        raise Malformed("runt")
    version, tos, total, id_, fragment, ttl, protocol, _, source, destination = struct.unpack(">BBHHHBBHII", data[:20])
    header = (version & 15) * 4
    if version >> 4 != 4 or header < 20:
        raise Malformed("bad_ip_header")
    if header > len(data) or total < header or (total > len(data) and not embedded):
        raise Malformed("bad_length")
    error = ones_sum(data[:header])
    if error:
        raise Malformed("bad_ip_checksum")
    packet = Packet(protocol, source, destination, ttl=ttl, tos=tos, id=id_, fragment=fragment, ip_options=data[20:header])
    return header, packet, total


def residue_of(packet: Packet, segment: bytes) -> int:
    """What the sum over pseudo-header and segment misses: 0 where the checksum is right.

    A translation that updates the checksum incrementally leaves it the same, whatever it was, and of cut segments as well.
    """
    covered = pseudo_header(packet, len(segment) + packet.missing) + segment
    return ones_sum(covered) if any(covered) else 1  # nothing but zeros lacks the complement of its sum


def _dissect_udp(packet: Packet, segment: bytes, embedded: bool) -> Packet:
    if len(segment) < 8:
        raise Malformed("bad_l4_header")
    source_port, destination_port, length, check = struct.unpack(">HHHH", segment[:8])
    if not embedded and not 8 <= length <= len(segment):
        raise Malformed("bad_length")
    odd = length if length != len(segment) + packet.missing else 0
    packet = replace(packet, source_port=source_port, destination_port=destination_port, udp_length=odd, payload=segment[8:])
    covered = segment[: max(length, 8)]
    residue = ones_sum(pseudo_header(packet, length) + covered) if check else None
    if residue and not embedded and check == ones_sum(pseudo_header(packet, length)):
        residue = -1
    return replace(packet, residue=residue)


def _dissect_tcp(packet: Packet, segment: bytes, embedded: bool) -> Packet:
    if len(segment) < (8 if embedded else 20):
        raise Malformed("bad_l4_header")
    source_port, destination_port, sequence = struct.unpack(">HHI", segment[:8])
    packet = replace(packet, source_port=source_port, destination_port=destination_port, sequence=sequence, residue=None)
    if len(segment) < 18:
        return replace(packet, payload=segment[8:])
    acknowledgment, offset, flags, window, check = struct.unpack(">IBBHH", segment[8:18])
    if len(segment) < 20:  # cut in the urgent pointer: -1 says that there is none
        packet = replace(packet, acknowledgment=acknowledgment, offset=offset, flags=flags, window=window, urgent=-1)
        return replace(packet, payload=segment[18:], residue=residue_of(packet, segment))
    urgent = int.from_bytes(segment[18:20], "big")
    header = (offset >> 4) * 4
    if not 20 <= header <= len(segment):
        if not embedded:
            raise Malformed("bad_l4_header")
        header = 20  # options that are not there belong to no field
    residue = residue_of(packet, segment)
    if residue and not embedded and check == ones_sum(pseudo_header(packet, len(segment))):
        residue = -1
    return replace(
        packet, acknowledgment=acknowledgment, flags=flags, window=window, urgent=urgent, residue=residue,
        offset=0 if offset == header << 2 else offset, tcp_options=segment[20:header], payload=segment[header:],
    )  # fmt: skip


def _dissect_icmp(packet: Packet, segment: bytes, embedded: bool) -> Packet:
    if len(segment) < 8:
        raise Malformed("bad_l4_header")
    kind, _, identifier, sequence = struct.unpack(">HHHH", segment[:8])
    residue = residue_of(packet, segment)
    packet = replace(packet, kind=kind, residue=residue)
    if kind >> 8 in REQUESTS:
        return replace(packet, source_port=identifier, rest=sequence, payload=segment[8:])
    if kind >> 8 in REPLIES:
        return replace(packet, destination_port=identifier, rest=sequence, payload=segment[8:])
    packet = replace(packet, rest=identifier << 16 | sequence, payload=segment[8:])
    return packet if residue or embedded or not packet.is_error else _with_embedded(packet)


def _with_embedded(packet: Packet) -> Packet:
    try:
        about = dissect(packet.payload, embedded=True)
    except Malformed:
        return packet
    return replace(packet, about=about, payload=packet.payload[len(build(about)) :])


# --- Ethernet -------------------------------------------------------------------------------------------------------------


def build_frame(destination: bytes, source: bytes, datagram: bytes, vlan: int = 0, ethertype: int = 0x0800) -> bytes:
    """An Ethernet frame, tagged (802.1Q) if `vlan` is given."""
    tag = struct.pack(">HH", 0x8100, vlan) if vlan else b""
    return destination + source + tag + struct.pack(">H", ethertype) + datagram


def split_frame(frame: bytes) -> tuple[bytes, bytes, int, int, bytes]:
    """(destination MAC, source MAC, VLAN or 0, ethertype, datagram) of a frame; raises `Malformed("runt")`."""
    if len(frame) < 14:
        raise Malformed("runt")
    ethertype, body, vlan = int.from_bytes(frame[12:14], "big"), frame[14:], 0
    if ethertype == 0x8100:
        if len(body) < 4:
            raise Malformed("runt")
        vlan, ethertype, body = int.from_bytes(body[:2], "big") & 0xFFF, int.from_bytes(body[2:4], "big"), body[4:]
    return frame[:6], frame[6:12], vlan, ethertype, body
