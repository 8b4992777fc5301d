"""From bytes to columns, and the security boundary: compiled code checks no bounds, so this stage compares every offset with
the length, and after it l3, l4 and the headers behind them are known to lie inside the frame.

RFC 791, 792, 768, 9293; what must never be forwarded: RFC 1122 3.2.1.3, RFC 1812 5.2.2 and 5.3.7, RFC 6890, RFC 7126.
"""

from __future__ import annotations

import numpy as np

from shards import generic, parse6, wire
from shards.burst import Burst
from shards.jit import hot, inlined, whole
from shards.native import read16, read32, read64, write16
from shards.state import EXTERNAL, ICMP, PORT_BYTES, TCP, UDP, Array, State
from shards.verdict import (
    BAD_ICMP_CHECKSUM,
    BAD_IP_CHECKSUM,
    BAD_IP_HEADER,
    BAD_L4_HEADER,
    BAD_LENGTH,
    BAD_TCP_FLAGS,
    CHECKSUMS_COMPLETED,
    ERROR_IN_FRAGMENTS,
    FOREIGN_MAC,
    FRAGMENT,
    ICMP_TYPE_NOT_SERVED,
    IPV6_NOT_SERVED,
    LAND,
    MARTIAN_DESTINATION,
    MARTIAN_SOURCE,
    NOT_IP,
    RUNT,
    SOURCE_ROUTED,
    TINY_FRAGMENT,
    UNDECIDED,
    VLAN_UNEXPECTED,
)
from shards.wire import read8, write8

# The smallest header of each protocol that we translate, by protocol number; 0 = not served.
_TCP_BYTES, _UDP_BYTES, _ICMP_BYTES = 20, 8, 8
_ORDINARY_BYTES = wire.ETHERNET_BYTES + wire.IPV4_BYTES + _UDP_BYTES
_IPV4_PLAIN = wire.ETHERTYPE_IPV4 << 8 | 0x45  # ethertype, version 4, a header of 20 bytes
_LOW32 = 0xFFFF_FFFF

# Options (RFC 791 3.1); flags of a timestamp that has addresses beside its times.
_RECORD_ROUTE, _TIMESTAMP = 7, 68
_WITH_ADDRESSES = (1, 3)


@inlined
def parse(state: State, frames: Array, burst: Burst, i: int) -> None:
    """Fill the parse columns of row `i`, once `pipeline.clear` was here; a frame that cannot be used gets its verdict here."""
    burst.verdict[i] = UNDECIDED if _is_ordinary(state, frames, burst, i) else _look_closely(state, frames, burst, i)
    if state.ports[np.uint64(burst.port[i])]["partial"] != 0:
        _complete(state, frames, burst, i)


@inlined
def _is_ordinary(state: State, frames: Array, burst: Burst, i: int) -> bool:
    """Parse what nearly every frame is: untagged, for us, IPv4 without options, whole, sound UDP or TCP. False: look closely.

    A few wide loads and three branches, 6 ns instead of 15. It lets pass what `_look_closely` would, and forbidden addresses
    but 0.0.0.0: no session has any, so they need only be looked for where the lookup misses (`refuse_addresses`).
    """
    at, length, port = burst.at[i], burst.length[i], burst.port[i]
    if length < _ORDINARY_BYTES:
        return False
    l3, l4 = at + wire.ETHERNET_BYTES, at + wire.ETHERNET_BYTES + wire.IPV4_BYTES
    head = read64(frames, at + 8)  # end of the source MAC, ethertype, version and length of header, type of service
    body = read64(frames, l3 + 2)  # total length, identification, flags and offset, TTL, protocol
    addresses = read64(frames, l3 + 12)
    source, destination = (addresses >> 32) & _LOW32, addresses & _LOW32
    end = l3 + ((body >> 48) & 0xFFFF)
    total = (head & 0xFFFF) + ((body >> 32) & _LOW32) + (body & _LOW32) + read16(frames, l3 + 10) + source + destination
    ordinary = (
        (wire.mac_at(frames, at) == wire.mac_at(state.port_bytes, port * PORT_BYTES))
        & ((head >> 8) & 0xFF_FFFF == _IPV4_PLAIN)
        & (body & 0x3FFF_0000 == 0)
        & (total % 0xFFFF == 0)  # of ones' complement: it folds to 0xFFFF
        & (end <= at + length)
        & (destination != 0)  # with port 0 the key of the sender's own mapping, which is no session to serve it by
        & (state.ports[np.uint64(port)]["vlan"] == 0)
    )
    if not ordinary:
        return False
    burst.l3[i] = l3
    burst.l4[i] = l4
    burst.ip_length[i] = end - l3
    burst.protocol[i] = body & 0xFF
    burst.source[i] = source
    burst.destination[i] = destination
    if body & 0xFF == UDP:
        return _udp(frames, burst, i, l4, end) == UNDECIDED
    return body & 0xFF == TCP and _tcp(frames, burst, i, l4, end) == UNDECIDED


@hot
def refuse_addresses(burst: Burst, i: int) -> int:
    """Verdict on the addresses of an undecided row, or UNDECIDED."""
    if martian(burst.source[i]):
        return MARTIAN_SOURCE
    if martian(burst.destination[i]):
        return MARTIAN_DESTINATION
    return LAND if burst.source[i] == burst.destination[i] else UNDECIDED


@hot
def _look_closely(state: State, frames: Array, burst: Burst, i: int) -> int:
    """Verdict on any frame, one field after another."""
    at, length = burst.at[i], burst.length[i]
    verdict, l3 = _link(state, frames, at, length, burst.port[i])
    burst.l3[i] = l3
    if verdict != UNDECIDED:
        return verdict
    if read16(frames, l3 - 2) == wire.ETHERTYPE_IPV6:
        return parse6.datagram(frames, burst, i, l3, at + length)
    verdict = datagram(state, frames, burst, i, l3, at + length)
    if verdict in (UNDECIDED, FRAGMENT):
        conceal(state, frames, burst, i)
    return verdict


@hot
def datagram(state: State, frames: Array, burst: Burst, i: int, l3: int, end: int) -> int:
    """Verdict on the IPv4 packet at `l3`, in what ends at `end`; it fills the columns from l3 on."""
    burst.l3[i] = l3
    verdict = _network(frames, l3, end)
    if verdict != UNDECIDED and verdict != FRAGMENT:
        return verdict
    l4 = l3 + 4 * (read8(frames, l3) & 15)
    protocol = read8(frames, l3 + 9)
    burst.l4[i] = l4
    burst.ip_length[i] = read16(frames, l3 + 2)
    burst.protocol[i] = protocol
    burst.source[i] = read32(frames, l3 + 12)
    burst.destination[i] = read32(frames, l3 + 16)
    end = l3 + burst.ip_length[i]
    if generic.is_generic(protocol) and generic.refuse(state, protocol) != UNDECIDED:
        return generic.refuse(state, protocol)
    return FRAGMENT if verdict == FRAGMENT else _transport(frames, burst, i, l4, end)


@hot
def _transport(frames: Array, burst: Burst, i: int, l4: int, end: int) -> int:
    """Verdict on the header behind that of IPv4, in a packet that ends at `end`."""
    protocol = burst.protocol[i]
    if protocol == TCP:
        return _tcp(frames, burst, i, l4, end)
    if protocol == UDP:
        return _udp(frames, burst, i, l4, end)
    if protocol == ICMP:
        return _icmp(frames, burst, i, l4, end)
    burst.source_port[i] = 0
    burst.destination_port[i] = 0
    return generic.look(frames, protocol, l4, end)


@hot
def conceal(state: State, frames: Array, burst: Burst, i: int) -> None:
    """Blank what options of a packet that may come from inside have recorded: `ping -R` begins with its own address."""
    if state.ports[burst.port[i]]["side"] != EXTERNAL:
        conceal_route(frames, burst.l3[i])


@hot
def conceal_route(frames: Array, l3: int) -> None:
    """Blank the addresses in the record route and timestamp options of the IPv4 header at `l3` (RFC 791 3.1).

    Translation cannot reach them (RFC 3022 4.3), and the addresses of the inside are not for the outside.
    """
    at, end = l3 + wire.IPV4_BYTES, l3 + 4 * (read8(frames, l3) & 15)
    if at == end:
        return
    while at + 1 < end and read8(frames, at) != 0:
        size = 1 if read8(frames, at) == 1 else read8(frames, at + 1)
        if size == 0 or at + size > end:
            break
        _blank(frames, at, size)
        at += size
    write16(frames, l3 + 10, 0)
    write16(frames, l3 + 10, wire.checksum(frames, l3, end - l3))


@hot
def _blank(frames: Array, at: int, size: int) -> None:
    """Blank the addresses of one option: all of a record, and of a timestamp option those between the times."""
    kind = read8(frames, at)
    if kind == _RECORD_ROUTE:
        for k in range(at + 3, at + size):
            write8(frames, k, 0)
    elif kind == _TIMESTAMP and size >= 4 and read8(frames, at + 3) & 15 in _WITH_ADDRESSES:
        for k in range(at + 4, at + size):
            if (k - at - 4) & 4 == 0:
                write8(frames, k, 0)


@hot
def beginning(frames: Array, burst: Burst, i: int) -> int:
    """Verdict on the transport header of a first fragment, which must have all of it (RFC 1858, RFC 3128).

    Lengths and checksums that cover what is in other fragments are their receiver's to check.
    """
    l4, protocol, end = burst.l4[i], burst.protocol[i], burst.l3[i] + burst.ip_length[i]
    if protocol == TCP:
        verdict = _tcp(frames, burst, i, l4, end)
        return TINY_FRAGMENT if verdict == BAD_L4_HEADER else verdict
    if generic.is_generic(protocol):
        verdict = _transport(frames, burst, i, l4, end)
        return TINY_FRAGMENT if verdict == BAD_L4_HEADER else verdict
    if end - l4 < _UDP_BYTES:
        return TINY_FRAGMENT
    if protocol == UDP:
        burst.source_port[i] = read16(frames, l4)
        burst.destination_port[i] = read16(frames, l4 + 2)
        return UNDECIDED if read16(frames, l4 + 4) >= _UDP_BYTES else BAD_LENGTH
    verdict = _icmp_kind(frames, burst, i, l4)
    return ERROR_IN_FRAGMENTS if burst.icmp_error[i] else verdict


@hot
def _link(state: State, frames: Array, at: int, length: int, port: int) -> tuple[int, int]:
    """Verdict and offset of the IP header: right station, right VLAN, IPv4, or IPv6 where anyone has it."""
    if length < wire.ETHERNET_BYTES:
        return RUNT, 0
    ethertype, l3 = read16(frames, at + 12), at + wire.ETHERNET_BYTES
    vlan = 0
    if ethertype == wire.ETHERTYPE_TAG:
        if length < wire.ETHERNET_BYTES + wire.TAG_BYTES:
            return RUNT, 0
        vlan = read16(frames, at + 14) & 0xFFF
        ethertype, l3 = read16(frames, at + 16), l3 + wire.TAG_BYTES
    if wire.mac_at(frames, at) != wire.mac_at(state.port_bytes, port * PORT_BYTES):
        return FOREIGN_MAC, 0
    if vlan != whole(state.ports[port]["vlan"]):
        return VLAN_UNEXPECTED, 0
    if ethertype == wire.ETHERTYPE_IPV6:
        return (UNDECIDED if state.settings[0]["prefixes6"] != 0 else IPV6_NOT_SERVED), l3
    if ethertype != wire.ETHERTYPE_IPV4:
        return NOT_IP, 0
    return UNDECIDED, l3


@hot
def _network(frames: Array, l3: int, end: int) -> int:
    """Verdict on the IPv4 header; `end` is the end of the frame (beyond the packet there may be Ethernet padding)."""
    if end - l3 < wire.IPV4_BYTES:
        return RUNT
    first = read8(frames, l3)
    header = 4 * (first & 15)
    if first >> 4 != 4 or header < wire.IPV4_BYTES:
        return BAD_IP_HEADER
    total = read16(frames, l3 + 2)
    if total < header or l3 + total > end:
        return BAD_LENGTH
    if wire.fold(wire.sum16(frames, l3, header)) != 0xFFFF:
        return BAD_IP_CHECKSUM
    if header > wire.IPV4_BYTES and _source_routed(frames, l3 + wire.IPV4_BYTES, l3 + header):
        return SOURCE_ROUTED
    source, destination = read32(frames, l3 + 12), read32(frames, l3 + 16)
    if martian(source):
        return MARTIAN_SOURCE
    if martian(destination):
        return MARTIAN_DESTINATION
    if source == destination:
        return LAND
    if read16(frames, l3 + 6) & 0x3FFF:
        return FRAGMENT
    return UNDECIDED


@hot
def martian(address: int) -> bool:
    """An address that neither sends nor receives beyond its own link (RFC 6890): 0/8, 127/8, 169.254/16, 224/4, 240/4."""
    top = address >> 24
    return top == 0 or top == 127 or top >= 224 or address >> 16 == 0xA9FE


@hot
def _source_routed(frames: Array, at: int, end: int) -> bool:
    """Whether the options hold loose or strict source routing (RFC 7126 4.3, 4.4); malformed options count as such."""
    while at < end:
        kind = read8(frames, at)
        if kind == 0:
            return False
        if kind == 1:
            at += 1
            continue
        if kind == 131 or kind == 137 or at + 1 >= end:
            return True
        size = read8(frames, at + 1)
        if size < 2 or at + size > end:
            return True
        at += size
    return False


@inlined
def _tcp(frames: Array, burst: Burst, i: int, l4: int, end: int) -> int:
    if end - l4 < _TCP_BYTES:
        return BAD_L4_HEADER
    offset = 4 * (read8(frames, l4 + 12) >> 4)
    if offset < _TCP_BYTES or l4 + offset > end:
        return BAD_L4_HEADER
    flags = read8(frames, l4 + 13) & 0x3F
    burst.source_port[i] = read16(frames, l4)
    burst.destination_port[i] = read16(frames, l4 + 2)
    burst.tcp_flags[i] = flags
    opening = flags & wire.SYN
    if flags == 0 or (opening and flags & (wire.FIN | wire.RST)) or flags & (wire.FIN | wire.ACK | wire.RST) == wire.FIN:
        return BAD_TCP_FLAGS
    return UNDECIDED


@inlined
def _udp(frames: Array, burst: Burst, i: int, l4: int, end: int) -> int:
    if end - l4 < _UDP_BYTES:
        return BAD_L4_HEADER
    length = read16(frames, l4 + 4)
    if length < _UDP_BYTES or l4 + length > end:
        return BAD_LENGTH
    burst.source_port[i] = read16(frames, l4)
    burst.destination_port[i] = read16(frames, l4 + 2)
    return UNDECIDED


@hot
def _icmp(frames: Array, burst: Burst, i: int, l4: int, end: int) -> int:
    """Queries put their identifier where the other protocols have the port of the asking side; errors are marked."""
    if end - l4 < _ICMP_BYTES:
        return BAD_L4_HEADER
    if wire.fold(wire.sum16(frames, l4, end - l4)) != 0xFFFF:
        return BAD_ICMP_CHECKSUM
    return _icmp_kind(frames, burst, i, l4)


@hot
def _icmp_kind(frames: Array, burst: Burst, i: int, l4: int) -> int:
    kind = read8(frames, l4)
    identifier = read16(frames, l4 + 4)
    burst.source_port[i] = identifier
    burst.destination_port[i] = identifier
    if is_error(kind):
        burst.icmp_error[i] = 1
        return UNDECIDED
    if is_query(kind) or kind == wire.ECHO_REPLY or kind == wire.TIMESTAMP_REPLY:
        return UNDECIDED
    return ICMP_TYPE_NOT_SERVED


@hot
def is_query(kind: int) -> bool:
    """ICMP types that ask (RFC 5508 section 3); information request and address mask are obsolete (RFC 6918)."""
    return kind == wire.ECHO or kind == wire.TIMESTAMP


@hot
def is_error(kind: int) -> bool:
    """ICMP types that carry an embedded packet and may pass a NAT (redirects may not: RFC 1812 5.2.7.2)."""
    return kind in (wire.UNREACHABLE, wire.TIME_EXCEEDED, wire.PARAMETER_PROBLEM, wire.SOURCE_QUENCH)


@hot
def pseudo_sum(frames: Array, l3: int, protocol: int, length: int) -> int:
    """Folded sum of the pseudo header (RFC 9293 3.1): addresses, protocol, transport length."""
    return wire.fold(wire.sum16(frames, l3 + 12, 8) + protocol + length)


@hot
def _complete(state: State, frames: Array, burst: Burst, i: int) -> None:
    """Finish a partial checksum: the bare pseudo-header sum that a local sender leaves to its device.

    A field that is right as it stands is left alone, and so is every wrong one that is not this very sum: damage stays damage.
    """
    protocol, l3, l4 = burst.protocol[i], burst.l3[i], burst.l4[i]
    if burst.verdict[i] != UNDECIDED or protocol not in (TCP, UDP):
        return
    length = l3 + burst.ip_length[i] - l4 if protocol == TCP else read16(frames, l4 + 4)
    field = l4 + 16 if protocol == TCP else l4 + 6
    pseudo = parse6.pseudo_sum(frames, l3, protocol, length) if burst.six[i] else pseudo_sum(frames, l3, protocol, length)
    if read16(frames, field) != pseudo:
        return
    total = wire.fold(wire.sum16(frames, l4, length))
    if wire.fold(total + pseudo) == 0xFFFF:
        return
    # The sum over the segment already holds the pseudo-header sum, in the checksum field itself.
    check = ~total & 0xFFFF
    write16(frames, field, check if check or protocol == TCP else 0xFFFF)
    state.counters[CHECKSUMS_COMPLETED, 0] += 1
