"""Packets that are longer than the MTU of their next link, and may be cut (RFC 791 3.2, RFC 4787 REQ-13): cut into pieces.

Each piece is a frame of its own, so the packet's is free again as soon as they are made. Where frames come from is the loop's
affair (`shard`): here is only how many there are, and what is in them. A fragment is cut like any packet.
"""

from __future__ import annotations

from shards import fragments, wire
from shards.accounts import is_bypassed
from shards.burst import Burst
from shards.jit import hot, whole
from shards.native import read16, write16
from shards.state import OUTBOUND, Array, State
from shards.verdict import HAIRPINNED
from shards.wire import read8, write8

_MORE, _COPIED = 0x2000, 0x80  # flag of a fragment; bit of an option's kind: it stands in every fragment


@hot
def mark(state: State, burst: Burst, i: int) -> None:
    """Count a row that is to be forwarded and must be cut; on its way out it gets an identification of its own (RFC 6864)."""
    out = state.ports[whole(state.neighbours[burst.next_hop[i]]["port"])]
    if burst.ip_length[i] > whole(out["mtu"]):
        state.core[0]["cuts"] += 1
        if burst.part[i] == 0 and (burst.direction[i] == OUTBOUND or burst.turned[i] > 0) and not _is_bare(state, burst, i):
            burst.identity[i] = fragments.next_identity(state, burst.destination[i]) + 1


@hot
def _is_bare(state: State, burst: Burst, i: int) -> bool:
    """Whether a row keeps its source, an address that nobody shares: then its identification is its sender's affair."""
    if burst.icmp_error[i]:
        return bool(burst.mapping[i] == 0)
    line = burst.turned[i] if burst.turned[i] > 0 else burst.session[i]
    return is_bypassed(state.sessions[line])


@hot
def pieces(state: State, frames: Array, burst: Burst, i: int) -> int:
    """Into how many pieces a row must be cut; 0 where it leaves as it is, or not at all."""
    if burst.verdict[i] > HAIRPINNED or burst.out_length[i] == 0:
        return 0
    if burst.ip_length[i] <= whole(state.ports[burst.out_port[i]]["mtu"]):
        return 0
    header = 4 * (read8(frames, burst.l3[i]) & 15)
    count: int = -(-(burst.ip_length[i] - header) // _each(state, frames, burst, i))
    return count


@hot
def _each(state: State, frames: Array, burst: Burst, i: int) -> int:
    """Bytes of payload of each piece but the last."""
    header = 4 * (read8(frames, burst.l3[i]) & 15)
    return (whole(state.ports[burst.out_port[i]]["mtu"]) - header) & ~7


@hot
def make(state: State, frames: Array, burst: Burst, i: int, number: int, at: int) -> int:
    """Write piece `number` (from 0) of a row, a whole frame, to `at`; its length."""
    l3, link, each = burst.l3[i], burst.l3[i] - burst.out_at[i], _each(state, frames, burst, i)
    header, payload = 4 * (read8(frames, l3) & 15), number * each
    size = min(each, burst.ip_length[i] - header - payload)
    _copy(frames, burst.out_at[i], at, link + header)
    to = at + link
    kept = header if number == 0 else _keep_options(frames, to, header)
    _copy(frames, l3 + header + payload, to + kept, size)
    word = read16(frames, l3 + 6)
    more = _MORE if payload + size < burst.ip_length[i] - header else word & _MORE
    write8(frames, to, 0x40 | kept >> 2)
    write16(frames, to + 2, kept + size)
    write16(frames, to + 6, (word & ~_MORE | more) + (payload >> 3))
    write16(frames, to + 10, 0)
    write16(frames, to + 10, wire.checksum(frames, to, kept))
    length: int = link + kept + size
    return length


@hot
def _copy(frames: Array, source: int, to: int, count: int) -> None:
    for k in range(count):
        frames[to + k] = frames[source + k]


@hot
def _keep_options(frames: Array, l3: int, header: int) -> int:
    """Leave only the options that every fragment has; length of the header then. `parse` has seen that they are sound."""
    at, to = l3 + wire.IPV4_BYTES, l3 + wire.IPV4_BYTES
    while at < l3 + header and read8(frames, at) != 0:
        size = 1 if read8(frames, at) == 1 else read8(frames, at + 1)
        if read8(frames, at) & _COPIED:
            _copy(frames, at, to, size)
            to += size
        at += size
    while (to - l3) & 3:
        write8(frames, to, 0)
        to += 1
    return to - l3
