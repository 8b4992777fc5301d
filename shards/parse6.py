"""From bytes to columns for IPv6: the same security boundary as `parse`, with a chain of headers to be walked (RFC 8200, 4443).

The addresses stay in the frame, for nothing here translates them: `local` and `remote` ways of reading them are in `sessions6`.
Which extension headers pass and which do not: RFC 5095, 6092 REC-4, 6946, 7045; which addresses never do: RFC 6890, 4193, 3879.

A chain ends for us with the headers of Mobility, HIP and Shim6: their packets have sessions by protocol and addresses, like
ESP's (RFC 6092 REC-26, 28, 47). What follows a Shim6 payload header is of a connection whose addresses are others (RFC 5533
4.4), so it would fit no session, and its content need not be looked at.

A fragment, other than an atomic one (RFC 6946), has neither ports nor, behind the first, any header: see `fragments`.
"""

from __future__ import annotations

import numpy as np

from shards import wire
from shards.burst import Burst
from shards.jit import hot, whole
from shards.native import Word, read16
from shards.state import ICMP6, TCP, UDP, Array
from shards.verdict import (
    BAD_EXTENSION_HEADER,
    BAD_ICMP_CHECKSUM,
    BAD_IP_HEADER,
    BAD_L4_HEADER,
    BAD_LENGTH,
    BAD_TCP_FLAGS,
    ERROR_IN_FRAGMENTS,
    FRAGMENT,
    ICMP_TYPE_NOT_SERVED,
    LAND,
    MARTIAN_DESTINATION,
    MARTIAN_SOURCE,
    PROTOCOL_NOT_SERVED,
    RUNT,
    SOURCE_ROUTED,
    TINY_FRAGMENT,
    UNDECIDED,
)
from shards.wire import IPV6_BYTES, read8

HEADERS_AT_MOST = 8  # of a chain; RFC 8200 4.1 knows seven places for one

HOP_BY_HOP, ROUTING, FRAGMENTS, AUTHENTICATION, NOTHING, DESTINATION_OPTIONS = 0, 43, 44, 51, 59, 60
MOBILITY, HIP, SHIM6 = 135, 139, 140
_LAST = (MOBILITY, HIP, SHIM6)  # of RFC 7045's: as long as others say that they are (RFC 6275 6.1.1, 7401 5.1, 5533 5.1)
_UNKNOWN = (253, 254)  # those for experiments (RFC 4727), which nobody needs through a firewall
# The routing header that leads home: its one address is its bearer's own, and the way ends there (RFC 6275 6.4.1).
_MOBILE, _MOBILE_UNITS = 2, 2

UDP_LITE, SCTP, DCCP, ESP = 136, 132, 33, 50

UNREACHABLE, TOO_BIG, TIME_EXCEEDED, PARAMETER_PROBLEM, ECHO, ECHO_REPLY = 1, 2, 3, 4, 128, 129

_ICMP_BYTES = 8
_U = np.uint64


@hot
def datagram(frames: Array, burst: Burst, i: int, l3: int, end: int) -> int:
    """Verdict on the IPv6 packet at `l3`, in what ends at `end`; it fills the columns from l3 on."""
    burst.six[i] = 1
    burst.l3[i] = l3
    burst.source[i] = 0
    burst.destination[i] = 0
    if end - l3 < IPV6_BYTES:
        return RUNT
    if read8(frames, l3) >> 4 != 6:
        return BAD_IP_HEADER
    burst.ip_length[i] = IPV6_BYTES + read16(frames, l3 + 4)
    if l3 + burst.ip_length[i] > end:
        return BAD_LENGTH
    verdict, protocol, l4 = walk(frames, l3, l3 + burst.ip_length[i], False)
    burst.protocol[i] = protocol
    burst.l4[i] = l4
    return verdict if verdict != UNDECIDED else _upper_layer(frames, burst, i, l4, l3 + burst.ip_length[i], True)


@hot
def beginning(frames: Array, burst: Burst, i: int) -> int:
    """Verdict on a first fragment, which must have all headers (RFC 7112); it fills the columns that `datagram` could not.

    Lengths and checksums that cover what is in other fragments are their receiver's to check.
    """
    l3, end = burst.l3[i], burst.l3[i] + burst.ip_length[i]
    verdict, protocol, l4 = walk(frames, l3, end, True)
    burst.protocol[i] = protocol
    burst.l4[i] = l4
    if verdict == UNDECIDED:
        verdict = TINY_FRAGMENT if end - l4 < 8 else _upper_layer(frames, burst, i, l4, end, False)
    if verdict == UNDECIDED and burst.icmp_error[i]:
        return ERROR_IN_FRAGMENTS
    return TINY_FRAGMENT if verdict == BAD_L4_HEADER else verdict


@hot
def walk(frames: Array, l3: int, end: int, first: bool) -> tuple[int, int, int]:
    """(verdict or UNDECIDED, protocol, offset of its header) behind the extension headers of the packet at `l3`.

    The header of 40 bytes is there; everything looked at lies before `end`. FRAGMENT: that of its Fragment header.
    `first`: it may be a first fragment, whose chain is to be walked to its end; an embedded packet may be one, too.
    """
    kind, at, fragments = read8(frames, l3 + 6), l3 + IPV6_BYTES, 0
    short = TINY_FRAGMENT if first else BAD_EXTENSION_HEADER
    for number in range(HEADERS_AT_MOST):
        if kind not in (HOP_BY_HOP, ROUTING, FRAGMENTS, AUTHENTICATION, DESTINATION_OPTIONS):
            return (BAD_EXTENSION_HEADER if kind in _UNKNOWN else UNDECIDED), kind, at
        fragments += kind == FRAGMENTS
        # Behind a second Fragment header each host and each firewall sees something else: RFC 8200 4.1 has one.
        if (kind == HOP_BY_HOP and number > 0) or fragments > 1:
            return BAD_EXTENSION_HEADER, kind, at
        if end - at < 8:
            return short, kind, at
        verdict = _may_pass(frames, kind, at, first)
        if verdict != UNDECIDED:
            return verdict, kind, at
        size = _size(frames, kind, at)
        if size > end - at:
            return short, kind, at
        kind, at = read8(frames, at), at + size
    return BAD_EXTENSION_HEADER, kind, at


@hot
def is_authenticated(frames: Array, l3: int) -> bool:
    """Whether an Authentication Header (RFC 4302) is in the chain of the packet at `l3`, which `walk` has let pass."""
    kind, at = read8(frames, l3 + 6), l3 + IPV6_BYTES
    for _ in range(HEADERS_AT_MOST):
        if kind == AUTHENTICATION:
            return True
        if kind not in (HOP_BY_HOP, ROUTING, FRAGMENTS, DESTINATION_OPTIONS):
            return False
        kind, at = read8(frames, at), at + _size(frames, kind, at)
    return False


@hot
def _size(frames: Array, kind: int, at: int) -> int:
    """Bytes of an extension header (RFC 8200 4.3 to 4.6, RFC 4302 2.2)."""
    if kind == FRAGMENTS:
        return 8
    units = read8(frames, at + 1)
    return 4 * (units + 2) if kind == AUTHENTICATION else 8 * (units + 1)


@hot
def _may_pass(frames: Array, kind: int, at: int, first: bool) -> int:
    """Verdict, or UNDECIDED, on one extension header; with `first`, that of a first fragment may pass."""
    if kind == ROUTING:
        told, left = read8(frames, at + 2), read8(frames, at + 3)
        if told == _MOBILE:
            return UNDECIDED if left <= 1 and read8(frames, at + 1) == _MOBILE_UNITS else SOURCE_ROUTED
        return SOURCE_ROUTED if told < _MOBILE or left > 0 else UNDECIDED
    if kind == FRAGMENTS:
        return FRAGMENT if read16(frames, at + 2) & (0xFFF8 if first else 0xFFF9) else UNDECIDED
    return UNDECIDED


@hot
def has_ports(protocol: int) -> bool:
    """Whether a protocol's header begins with two ports."""
    return protocol in (TCP, UDP, UDP_LITE, SCTP, DCCP)


@hot
def _upper_layer(frames: Array, burst: Burst, i: int, l4: int, end: int, entire: bool) -> int:
    """Verdict on the header behind the chain; `entire`: all that its lengths and checksums speak of is there."""
    protocol = burst.protocol[i]
    burst.source_port[i] = 0
    burst.destination_port[i] = 0
    if protocol == ICMP6:
        return _icmp(frames, burst, i, l4, end, entire)
    if protocol == NOTHING:
        return PROTOCOL_NOT_SERVED
    if protocol in _LAST:
        whole_header = end - l4 >= 8 and _size(frames, protocol, l4) <= end - l4
        return UNDECIDED if whole_header else (BAD_EXTENSION_HEADER if entire else TINY_FRAGMENT)
    if not has_ports(protocol):
        return UNDECIDED
    if end - l4 < (20 if protocol == TCP else 8):
        return BAD_L4_HEADER
    burst.source_port[i] = read16(frames, l4)
    burst.destination_port[i] = read16(frames, l4 + 2)
    if protocol == TCP:
        return _tcp(frames, burst, i, l4, end)
    if protocol == UDP:
        length = read16(frames, l4 + 4)
        return BAD_LENGTH if length < 8 or (entire and l4 + length > end) else UNDECIDED
    return UNDECIDED


@hot
def _tcp(frames: Array, burst: Burst, i: int, l4: int, end: int) -> int:
    offset = 4 * (read8(frames, l4 + 12) >> 4)
    if offset < 20 or l4 + offset > end:
        return BAD_L4_HEADER
    flags = read8(frames, l4 + 13) & 0x3F
    burst.tcp_flags[i] = flags
    opening = flags & wire.SYN
    if flags == 0 or (opening and flags & (wire.FIN | wire.RST)) or flags & (wire.FIN | wire.ACK | wire.RST) == wire.FIN:
        return BAD_TCP_FLAGS
    return UNDECIDED


@hot
def _icmp(frames: Array, burst: Burst, i: int, l4: int, end: int, entire: bool) -> int:
    """Errors are marked; of the rest only echo passes a router on the way (RFC 4890 4.3)."""
    if end - l4 < _ICMP_BYTES:
        return BAD_L4_HEADER
    if entire and wire.fold(pseudo_sum(frames, burst.l3[i], ICMP6, end - l4) + wire.sum16(frames, l4, end - l4)) != 0xFFFF:
        return BAD_ICMP_CHECKSUM
    kind = read8(frames, l4)
    burst.source_port[i] = read16(frames, l4 + 4)
    burst.destination_port[i] = burst.source_port[i]
    if UNREACHABLE <= kind <= PARAMETER_PROBLEM:
        burst.icmp_error[i] = 1
        return UNDECIDED
    return UNDECIDED if kind in (ECHO, ECHO_REPLY) else ICMP_TYPE_NOT_SERVED


@hot
def pseudo_sum(frames: Array, l3: int, protocol: int, length: int) -> int:
    """Folded sum of the pseudo header (RFC 8200 8.1): addresses, length, protocol."""
    return wire.fold(wire.sum16(frames, l3 + 8, 32) + length + protocol)


@hot
def refuse_addresses(frames: Array, l3: int) -> int:
    """Verdict on the addresses of a packet, or UNDECIDED (RFC 6092 REC-1, 2, 3, 7)."""
    if martian(wire.word_at(frames, l3 + 8), wire.word_at(frames, l3 + 16)):
        return MARTIAN_SOURCE
    if martian(wire.word_at(frames, l3 + 24), wire.word_at(frames, l3 + 32)):
        return MARTIAN_DESTINATION
    same = (wire.word_at(frames, l3 + 8) == wire.word_at(frames, l3 + 24)) and (
        wire.word_at(frames, l3 + 16) == wire.word_at(frames, l3 + 32)
    )
    return LAND if same else UNDECIDED


@hot
def martian(high: Word, low: Word) -> bool:
    """An address that crosses no router here: ::/8 (loopback, mapped and compatible ones among it) but 64:ff9b::/96 (RFC 6052),
    100::/8 (discard), fc00::/7 (ULA), fe00::/8 (link-local, site-local), ff00::/8 (multicast, of every scope).
    """
    top = whole(high >> _U(56))
    if top == 0 and high == _U(0x0064_FF9B_0000_0000):
        return whole(low >> _U(32)) != 0
    return top < 2 or top >= 0xFC
