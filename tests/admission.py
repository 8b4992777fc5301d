"""What a core takes in at all, in plain words: the first thing that `tests.model` asks about a frame, before any memory."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network

from tests.bed import Port, contains
from tests.frames import (
    ICMP,
    REPLIES,
    REQUESTS,
    TCP,
    UDP,
    Malformed,
    Packet,
    dissect_header,
    dissect_transport,
    mac_of,
    residue_of,
    split_frame,
)

FIN, SYN, RST, ACK = 1, 2, 4, 16
GRE = 47
# Bytes that the headers of generic protocols have at least: RFC 2003, 4213, 2784, 4303, 9260 ...
HEADERS = {2: 8, 4: 20, 33: 12, 41: 40, 46: 8, GRE: 4, 50: 8, 58: 8, 88: 20, 89: 16, 97: 2, 103: 4, 108: 4}
HEADERS |= {112: 8, 115: 4, 132: 12, 135: 8, 136: 8, 137: 4, 139: 8, 140: 8}
NOWHERE = [IPv4Network(text) for text in ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4")]


def admit(port: Port, frame: bytes, protocols: set[int]) -> Packet:
    """The packet, or the bare fragment, in a frame that has reached a port; raises `Malformed` for what never passes.

    `protocols`: generic ones that are translated.
    """
    to, _, vlan, ethertype, data = split_frame(frame)
    if to != mac_of(port.address):
        raise Malformed("foreign_mac")
    if vlan != port.vlan:
        raise Malformed("vlan_unexpected")
    if ethertype != 0x0800:
        raise Malformed("ipv6_not_served" if ethertype == 0x86DD else "not_ip")
    header = dissect_header(data)
    _admit_addresses(header)
    if is_generic(header.protocol) and header.protocol not in protocols:
        raise Malformed("ah_not_served" if header.protocol == 51 else "protocol_not_served")
    if is_fragment(header):
        return header
    packet = dissect_transport(header)
    _admit_transport(packet)
    if packet.residue == -1 and not port.partial:  # elsewhere it is a wrong checksum like any other
        packet = replace(packet, residue=residue_of(header, header.payload[: packet.udp_length or None]))
    return packet


def _admit_addresses(packet: Packet) -> None:
    """RFC 7126 4.3, RFC 6890, RFC 791."""
    if _source_routed(packet.ip_options):
        raise Malformed("source_routed")
    if martian(packet.source):
        raise Malformed("martian_source")
    if martian(packet.destination):
        raise Malformed("martian_destination")
    if packet.source == packet.destination:
        raise Malformed("land")


def is_generic(protocol: int) -> bool:
    """Whether a protocol is none of those whose ports, or identifiers, are translated."""
    return protocol not in (ICMP, TCP, UDP)


def is_fragment(packet: Packet) -> bool:
    """Whether more fragments, or an offset, make this a piece of a datagram."""
    return packet.fragment & 0x3FFF != 0


def beginning(fragment: Packet) -> Packet:
    """A first fragment with its transport header read; raises `Malformed` (RFC 1858: all of the header must be there)."""
    least = {TCP: 20, UDP: 8, ICMP: 8}.get(fragment.protocol, HEADERS.get(fragment.protocol, 0))
    if len(fragment.payload) < least:
        raise Malformed("tiny_fragment")
    packet = dissect_transport(fragment, embedded=True)
    if packet.protocol == TCP and not 20 <= 4 * (fragment.payload[12] >> 4) <= len(fragment.payload):
        raise Malformed("tiny_fragment")
    if packet.protocol == UDP and int.from_bytes(fragment.payload[4:6], "big") < 8:
        raise Malformed("bad_length")
    if packet.is_error:
        raise Malformed("error_in_fragments")
    _admit_transport(replace(packet, residue=0))
    return packet


def blanked(options: bytes) -> bytes:
    """Options without the addresses that they have recorded."""
    bare, at = bytearray(options), 0
    while at + 1 < len(bare) and bare[at]:
        size = 1 if bare[at] == 1 else bare[at + 1]
        if size == 0 or at + size > len(bare):
            break
        if bare[at] == 7:
            bare[at + 3 : at + size] = bytes(max(size - 3, 0))
        if bare[at] == 68 and size >= 4 and bare[at + 3] & 15 in (1, 3):
            for k in range(at + 4, at + size, 8):
                bare[k : min(k + 4, at + size)] = bytes(min(k + 4, at + size) - k)
        at += size
    return bytes(bare)


def martian(host: int) -> bool:
    """An address that never crosses a router."""
    return any(contains(network, host) for network in NOWHERE)


def _source_routed(options: bytes) -> bool:
    while options and options[0] != 0:
        if options[0] == 1:
            options = options[1:]
        elif options[0] in (131, 137) or len(options) < 2 or not 2 <= options[1] <= len(options):
            return True
        else:
            options = options[options[1] :]
    return False


def _admit_transport(packet: Packet) -> None:
    if len(packet.payload) < HEADERS.get(packet.protocol, 0):
        raise Malformed("bad_l4_header")
    if packet.protocol == GRE and packet.payload[0] & 0x40:  # RFC 1701: a route of its sender's choice
        raise Malformed("source_routed")
    if packet.protocol == ICMP:
        if packet.residue:
            raise Malformed("bad_icmp_checksum")
        if packet.kind >> 8 not in (*REQUESTS, *REPLIES, 3, 4, 11, 12):
            raise Malformed("icmp_type_not_served")
    if packet.protocol == TCP:
        flags = packet.flags & 0x3F
        if not flags or (flags & SYN and flags & (FIN | RST)) or flags & (FIN | ACK | RST) == FIN:
            raise Malformed("bad_tcp_flags")


def names_no_host(port: Port, host: int) -> bool:
    """The core itself, or its whole link."""
    link = port.on_link
    ends = (int(link.network_address), int(link.broadcast_address)) if link.prefixlen < 31 else ()
    return host == port.address or host in ends
