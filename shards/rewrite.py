"""What a forwarded packet looks like: addresses and ports translated, checksums adjusted, TTL one less, a new Ethernet header.

Checksums of IPv4, TCP and UDP are updated by the difference (RFC 1624), never computed anew: a wrong one stays as wrong.
"""

from __future__ import annotations

import numpy as np

from shards import wire
from shards.accounts import is_bypassed
from shards.burst import TURNED_BARE, Burst
from shards.jit import hot, inlined, whole
from shards.native import read16, read32, write16, write32, write64
from shards.neighbours import mac_of
from shards.state import ICMP, OUTBOUND, PORT_BYTES, TCP, UDP, Array, Row, State
from shards.verdict import MSS_CLAMPED
from shards.wire import SYN, adjust, read8, write8

_SOURCE, _DESTINATION = 12, 16  # offsets of the addresses in the IPv4 header
_MSS_KIND, _MSS_BYTES = 2, 4  # RFC 9293 3.7.1


@inlined
def rewrite_hit(state: State, frames: Array, burst: Burst, i: int) -> None:
    """Put row `i`, an ordinary hit that is to be forwarded, right."""
    session = state.sessions[np.uint64(burst.session[i])]
    delta = _by_session(frames, burst.l3[i], burst.l4[i], burst.protocol[i], session, burst.direction[i])
    _send_off(state, frames, burst, i, delta)


@hot
def rewrite(state: State, frames: Array, burst: Burst, i: int) -> None:
    """Put row `i`, any that is to be forwarded, right.

    Errors have had their addresses put right already (see `icmp`), and so has what goes by a mapping alone.
    """
    delta = 0
    if burst.session[i] and burst.icmp_error[i] == 0:
        l3, l4, protocol = burst.l3[i], burst.l4[i], burst.protocol[i]
        if burst.turned[i] > 0:
            delta = _by_session(frames, l3, l4, protocol, state.sessions[burst.turned[i]], OUTBOUND)
        delta += _by_session(frames, l3, l4, protocol, state.sessions[burst.session[i]], burst.direction[i])
    _identify(frames, burst, i)
    _send_off(state, frames, burst, i, delta)


@inlined
def _send_off(state: State, frames: Array, burst: Burst, i: int, delta: int) -> None:
    """What befalls every packet that is forwarded; `delta`: what its IPv4 header's sum has grown by."""
    l3, hop = burst.l3[i], burst.next_hop[i]
    if burst.tcp_flags[i] & SYN and state.settings[0]["mss"] != 0:
        state.counters[MSS_CLAMPED, 0] += clamp_mss(frames, burst.l4[i], whole(state.settings[0]["mss"]))
    _age(frames, l3, delta)
    out = whole(state.neighbours[np.uint64(hop)]["port"])
    at = link_header(state, frames, l3, out, mac_of(state, hop))
    burst.out_port[i] = out
    burst.out_at[i] = at
    burst.out_length[i] = l3 - at + burst.ip_length[i]


@hot
def send_off6(state: State, frames: Array, burst: Burst, i: int) -> None:
    """What befalls a packet of IPv6 that is forwarded: one hop less to live, which no checksum covers, and nothing else."""
    l3, hop = burst.l3[i], burst.next_hop[i]
    mss = whole(state.settings[0]["mss"])
    if burst.tcp_flags[i] & SYN and mss != 0:
        state.counters[MSS_CLAMPED, 0] += clamp_mss(frames, burst.l4[i], mss - (wire.IPV6_BYTES - wire.IPV4_BYTES))
    write8(frames, l3 + 7, read8(frames, l3 + 7) - 1)
    out = whole(state.neighbours[hop]["port"])
    at = link_header(state, frames, l3, out, mac_of(state, hop))
    write16(frames, l3 - 2, wire.ETHERTYPE_IPV6)
    burst.out_port[i] = out
    burst.out_at[i] = at
    burst.out_length[i] = l3 - at + burst.ip_length[i]


@hot
def translate_by_mapping(state: State, frames: Array, burst: Burst, i: int) -> None:
    """Translate a packet without a session as soon as it is decided: a later one of its burst may end the mapping."""
    l3, l4, protocol = burst.l3[i], burst.l4[i], burst.protocol[i]
    mapping = state.mappings[burst.mapping[i]]
    if burst.direction[i] == OUTBOUND or burst.turned[i] == TURNED_BARE:
        _out_by_mapping(frames, l3, l4, protocol, mapping)
        return
    if burst.turned[i] > 0:
        turn_out(state, frames, burst, i)
    if burst.mapping[i]:  # without one it goes to an inside address as it is
        _by_mapping(frames, l3, l4, protocol, mapping)


@hot
def turn_out(state: State, frames: Array, burst: Burst, i: int) -> None:
    """The first half of a hairpin: as if it went to the Internet."""
    if burst.turned[i] == TURNED_BARE:
        _out_by_mapping(frames, burst.l3[i], burst.l4[i], burst.protocol[i], state.mappings[burst.mapping[i]])
        return
    l3, session = burst.l3[i], state.sessions[burst.turned[i]]
    adjust(frames, l3 + 10, _by_session(frames, l3, burst.l4[i], burst.protocol[i], session, OUTBOUND))
    if not is_bypassed(session):
        _identify(frames, burst, i)


@hot
def _identify(frames: Array, burst: Burst, i: int) -> None:
    """Give a packet its own identification among all that leave from its external address in fragments (see `fragments`)."""
    if burst.identity[i]:
        l3, identity = burst.l3[i], burst.identity[i] - 1
        adjust(frames, l3 + 10, wire.difference(read16(frames, l3 + 4), identity))
        write16(frames, l3 + 4, identity)


@hot
def readdress(frames: Array, l3: int, source: int, destination: int, identity: int) -> None:
    """Translate a packet without a transport header: a fragment behind the first one."""
    delta = wire.difference(read32(frames, l3 + _SOURCE), source)
    delta += wire.difference(read32(frames, l3 + _DESTINATION), destination)
    delta += wire.difference(read16(frames, l3 + 4), identity)
    write32(frames, l3 + _SOURCE, source)
    write32(frames, l3 + _DESTINATION, destination)
    write16(frames, l3 + 4, identity)
    adjust(frames, l3 + 10, delta)


@inlined
def _by_session(frames: Array, l3: int, l4: int, protocol: int, session: Row, direction: int) -> int:
    """Translate one side of a packet with the differences that its session keeps ready; what the IPv4 header's sum grows by."""
    delta_l3, delta_l4 = whole(session["delta_l3"]), whole(session["delta_l4"])
    if direction == OUTBOUND:
        write32(frames, l3 + _SOURCE, whole(session["external_address"]))
        at, port = l4, whole(session["external_port"])
    else:
        write32(frames, l3 + _DESTINATION, whole(session["internal_address"]))
        at, port = l4 + 2, whole(session["internal_port"])
        delta_l3, delta_l4 = wire.negated(delta_l3), wire.negated(delta_l4)
    _translate_transport(frames, l4, at, protocol, port, delta_l4)
    return delta_l3


@hot
def _by_mapping(frames: Array, l3: int, l4: int, protocol: int, mapping: Row) -> None:
    """Translate the destination of an inbound packet that has no session."""
    delta_l3 = wire.difference(whole(mapping["external_address"]), whole(mapping["internal_address"]))
    ports = wire.difference(whole(mapping["external_port"]), whole(mapping["internal_port"]))
    write32(frames, l3 + _DESTINATION, whole(mapping["internal_address"]))
    adjust(frames, l3 + 10, delta_l3)
    delta_l4 = ports if protocol == ICMP else wire.fold(delta_l3 + ports)
    _translate_transport(frames, l4, l4 + 2, protocol, whole(mapping["internal_port"]), delta_l4)


@hot
def _out_by_mapping(frames: Array, l3: int, l4: int, protocol: int, mapping: Row) -> None:
    """Translate the source of an outbound packet that has no session."""
    delta_l3 = wire.difference(whole(mapping["internal_address"]), whole(mapping["external_address"]))
    ports = wire.difference(whole(mapping["internal_port"]), whole(mapping["external_port"]))
    write32(frames, l3 + _SOURCE, whole(mapping["external_address"]))
    adjust(frames, l3 + 10, delta_l3)
    delta_l4 = ports if protocol == ICMP else wire.fold(delta_l3 + ports)
    _translate_transport(frames, l4, l4, protocol, whole(mapping["external_port"]), delta_l4)


@inlined
def _translate_transport(frames: Array, l4: int, at: int, protocol: int, port: int, delta: int) -> None:
    """Write a port, which stands at `at`, or a query's identifier, and update the checksum. Generic protocols have neither.

    They come last, so that nothing before them is asked one question more.
    """
    if protocol in (TCP, UDP):
        write16(frames, at, port)
    elif protocol == ICMP:
        write16(frames, l4 + 4, port)
    adjust_transport(frames, l4, protocol, delta)


@inlined
def adjust_transport(frames: Array, l4: int, protocol: int, delta: int) -> None:
    """Update the checksum behind the IP header. A UDP checksum of 0 means none, and 0 is sent as 0xFFFF (RFC 768)."""
    if protocol == TCP:
        adjust(frames, l4 + 16, delta)
    elif protocol == UDP:
        check = read16(frames, l4 + 6)
        if check:
            check = wire.adjusted(check, delta)
            write16(frames, l4 + 6, check if check else 0xFFFF)
    elif protocol == ICMP:
        adjust(frames, l4 + 2, delta)


@inlined
def _age(frames: Array, l3: int, delta: int) -> None:
    """One hop less to live: the TTL is a high byte, so the checksum's sum falls by 0x0100. It grows by `delta`, too."""
    word = read32(frames, l3 + 8)  # TTL, protocol, checksum
    check = wire.adjusted(word & 0xFFFF, wire.negated(0x0100) + delta)
    write32(frames, l3 + 8, (word & 0xFFFF_0000) - (1 << 24) | check)


@inlined
def link_header(state: State, frames: Array, l3: int, port: int, mac: int) -> int:
    """Write the Ethernet header that `port` needs (with its tag, IEEE 802.1Q, where it has one) before `l3`; its offset."""
    vlan = whole(state.ports[np.uint64(port)]["vlan"])
    own = wire.mac_at(state.port_bytes, port * PORT_BYTES)
    at = l3 - wire.ETHERNET_BYTES - (wire.TAG_BYTES if vlan else 0)
    write64(frames, at, mac << 16 | own >> 32)
    write32(frames, at + 8, own)
    if vlan:
        write32(frames, at + 12, wire.ETHERTYPE_TAG << 16 | vlan)
    write16(frames, l3 - 2, wire.ETHERTYPE_IPV4)
    return at


@hot
def clamp_mss(frames: Array, l4: int, mss: int) -> int:
    """Lower the MSS option of a SYN to `mss`; 1 if it was higher. `parse` has seen that the header lies inside the packet."""
    at, end = l4 + 20, l4 + 4 * (read8(frames, l4 + 12) >> 4)
    while at + 1 < end:
        kind = read8(frames, at)
        if kind == 0:
            return 0
        if kind == 1:
            at += 1
            continue
        size = read8(frames, at + 1)
        if size < 2 or at + size > end:
            return 0
        if kind == _MSS_KIND and size == _MSS_BYTES:
            old = read16(frames, at + 2)
            if old <= mss:
                return 0
            write16(frames, at + 2, mss)
            # An option at an odd offset adds to the sum with its bytes swapped (RFC 1071 section 2 B).
            delta = wire.difference(old, mss)
            adjust(frames, l4 + 16, delta if (at - l4) & 1 == 0 else (delta >> 8) | (delta & 0xFF) << 8)
            return 1
        at += size
    return 0
