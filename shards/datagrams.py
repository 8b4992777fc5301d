"""Of which datagram a fragment is, which part of it, and whether it may be one at all: IPv4 (RFC 791) and IPv6 (RFC 8200 4.5)
made alike for `fragments`, which keeps what is known of datagrams.

A *name* is what all fragments of a datagram have in common and no other datagram under way has: (source, its upper half before
it; destination, likewise; side, identification | protocol << 32). Fragments of IPv6 do not agree on what their datagram holds
(RFC 8200 4.5 takes the first one's word), so their protocol is that of the Fragment header, which is at the row's l4.
"""

from __future__ import annotations

import numpy as np

from shards import bypass, firewall6, nat, parse, parse6, serve, sessions, sessions6, wire
from shards.burst import Burst
from shards.jit import hot, whole
from shards.native import Word, read16, read32
from shards.state import OUTBOUND, TCP, Array, State
from shards.verdict import (
    BAD_FRAGMENT,
    INSIDE_DESTINATION,
    MARTIAN_DESTINATION,
    NOT_OUR_DESTINATION,
    SPOOFED_SOURCE,
    TINY_FRAGMENT,
    UNDECIDED,
)
from shards.wire import IPV4_BYTES, IPV6_BYTES

Name = tuple[Word, Word, Word, Word, int, int]

_MORE, _OFFSET = 0x2000, 0x1FFF  # in the word of flags and offset of IPv4
_MORE6, _OFFSET6 = 1, 0xFFF8  # in that of a Fragment header
_HEADER6 = 8  # bytes of one
_LONGEST = 65535
_U = np.uint64

# --- whose it is ----------------------------------------------------------------------------------------------------------


@hot
def choose_key(state: State, frames: Array, burst: Burst, i: int) -> None:
    """Direction of a row that is a fragment; a key, too, which is right once a first one's transport header was read."""
    if burst.six[i]:
        firewall6.choose_key(state, frames, burst, i)
    else:
        nat.choose_key(state, burst, i)


@hot
def set_key(state: State, frames: Array, burst: Burst, i: int) -> None:
    """Key of a first fragment, to be decided like a packet."""
    if burst.six[i]:
        sessions6.set_key(state, frames, burst, i)
    else:
        nat.set_key(state, burst, i)


@hot
def name(state: State, frames: Array, burst: Burst, i: int) -> Name:
    """Name of the datagram that a row is a fragment of, once its direction is known."""
    port, direction, l3 = state.ports[burst.port[i]], burst.direction[i], burst.l3[i]
    realm = whole(port["internal_realm"] if direction == OUTBOUND else port["external_realm"])
    side = realm | direction << 24 | (burst.turned[i] != 0) << 25  # whichever of its ports it came by
    what = identification(frames, burst, i) | burst.protocol[i] << 32
    if burst.six[i] == 0:
        return _U(0), _U(burst.source[i]), _U(0), _U(burst.destination[i]), side, what
    source_high, source = wire.word_at(frames, l3 + 8), wire.word_at(frames, l3 + 16)
    return source_high, source, wire.word_at(frames, l3 + 24), wire.word_at(frames, l3 + 32), side, what


@hot
def identification(frames: Array, burst: Burst, i: int) -> int:
    """What tells datagrams between the same two hosts apart: 16 bits, of IPv6 32."""
    return read32(frames, burst.l4[i] + 4) if burst.six[i] else read16(frames, burst.l3[i] + 4)


@hot
def sender(state: State, frames: Array, burst: Burst, i: int) -> int:
    """Account of the subscriber that sent an outbound fragment; 0: of nobody's."""
    realm = whole(state.ports[burst.port[i]]["internal_realm"])
    if burst.six[i] == 0:
        account, _ = nat.find_account(state, realm, burst.source[i])
        return account
    high = wire.word_at(frames, burst.l3[i] + 8)
    p = firewall6.prefix_of(state, realm, high)
    return 0 if p < 0 else firewall6.subscriber_of(state, p, high)


@hot
def ours(state: State, frames: Array, burst: Burst, i: int) -> Word:
    """Who of ours a fragment is from or for, as a word: an address, of IPv6 the upper half of the subscriber's whole prefix."""
    outbound = burst.direction[i] == OUTBOUND
    if burst.six[i] == 0:
        return _U(burst.source[i] if outbound else burst.destination[i])
    high = wire.word_at(frames, burst.l3[i] + (8 if outbound else 24))
    p = firewall6.prefix_of(state, whole(state.ports[burst.port[i]]["internal_realm"]), high)
    shift = _U(state.prefixes6[p]["shift"]) if p >= 0 else _U(0)
    return high >> shift << shift


# --- which part, and whether it may be ------------------------------------------------------------------------------------


@hot
def place(frames: Array, burst: Burst, i: int) -> tuple[int, int, bool]:
    """Where a fragment is in what was cut: offset and size in bytes, and whether more comes behind it."""
    l3, l4 = burst.l3[i], burst.l4[i]
    end = l3 + burst.ip_length[i]
    if burst.six[i]:
        word = read16(frames, l4 + 2)
        return word & _OFFSET6, end - l4 - _HEADER6, word & _MORE6 != 0
    word = read16(frames, l3 + 6)
    return 8 * (word & _OFFSET), end - l4, word & _MORE != 0


@hot
def sound(burst: Burst, i: int, offset: int, size: int, more: bool) -> int:
    """Verdict on a fragment's place, or UNDECIDED (RFC 791, RFC 8200 4.5, RFC 3128)."""
    # Before what was cut stand the header and, in every fragment, IPv6's headers for routers.
    before = burst.l4[i] - burst.l3[i] - IPV6_BYTES if burst.six[i] else IPV4_BYTES
    if size == 0 or (more and size & 7) or before + offset + size > _LONGEST:
        return BAD_FRAGMENT
    # Every transport header that IPv4 serves begins in the first 8 bytes, and that of TCP does not end there.
    return TINY_FRAGMENT if burst.protocol[i] == TCP and 0 < offset < 20 else UNDECIDED


@hot
def plausible(state: State, frames: Array, burst: Burst, i: int) -> int:
    """Verdict on the addresses alone, so that nobody has a row who could not send, or be sent, anything; or UNDECIDED."""
    realm = whole(state.ports[burst.port[i]]["internal_realm"])
    if burst.six[i]:
        return _plausible6(state, frames, burst, i, realm)
    source, destination = burst.source[i], burst.destination[i]
    if burst.direction[i] == OUTBOUND:
        if not nat.is_internal(state, realm, source):
            return SPOOFED_SOURCE
        unseen = nat.is_internal(state, realm, destination) and not bypass.is_reached(state, destination)
        return INSIDE_DESTINATION if unseen else UNDECIDED
    inside = nat.is_internal(state, realm, destination)
    if inside and not bypass.names(state, destination):
        return INSIDE_DESTINATION
    if not inside and sessions.external_ordinal(state, destination) < 0:
        return NOT_OUR_DESTINATION
    return UNDECIDED if burst.turned[i] or nat.plausible_outsider(state, realm, source) else SPOOFED_SOURCE


@hot
def _plausible6(state: State, frames: Array, burst: Burst, i: int, realm: int) -> int:
    l3 = burst.l3[i]
    verdict = parse6.refuse_addresses(frames, l3)
    if verdict != UNDECIDED:
        return verdict
    source, destination = wire.word_at(frames, l3 + 8), wire.word_at(frames, l3 + 24)
    outbound = burst.direction[i] == OUTBOUND
    if not outbound and firewall6.prefix_of(state, realm, destination) < 0:
        return NOT_OUR_DESTINATION
    if outbound and firewall6.is_own(state, source, wire.word_at(frames, l3 + 16)):
        return SPOOFED_SOURCE
    # From inside nobody but subscribers, from outside none of them.
    if burst.turned[i] == 0 and (firewall6.prefix_of(state, realm, source) >= 0) != outbound:
        return SPOOFED_SOURCE
    return MARTIAN_DESTINATION if firewall6.is_own(state, destination, wire.word_at(frames, l3 + 32)) else UNDECIDED


@hot
def beginning(frames: Array, burst: Burst, i: int) -> int:
    """Verdict, or UNDECIDED, on the headers of a first fragment; it fills the columns that a fragment's parsing could not."""
    return parse6.beginning(frames, burst, i) if burst.six[i] else parse.beginning(frames, burst, i)


@hot
def way(state: State, frames: Array, burst: Burst, i: int) -> int:
    """UNDECIDED if a fragment can go to its next hop, else why not. One of IPv6 is never cut again."""
    return firewall6.passable(state, frames, burst, i) if burst.six[i] else serve.way(state, frames, burst, i)
