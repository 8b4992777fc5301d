"""Who asks for a connection that nothing permits is told so by an ICMP error, but not before six seconds have passed, and not
at all if the other side has asked for the same connection by then (RFC 6092 REC-34 and REC-39, RFC 5382 REQ-4).

An error at once would end a simultaneous open: the SYN from outside is dropped, the one from inside is still on its way to us.

    dropped: unsolicited, no_mapping, filtered -> a row of UNASKED, with as much of the packet as the error will quote
    six seconds later                          -> judged again: a session of its own, or another verdict than then, is silence;
                                                  else ICMPv6 "prohibited", ICMP "port unreachable", if the rate allows it

The ring is in the order of time; when it is full nobody else is remembered, so a flood costs one look each and others no more
than this service. What is told is the same whether the address has a host or not, and whatever of the three the verdict was.
Rows are a core's own: its worker's successor goes on with them, but no other core is told of them. Who takes a shard over
answers nothing that was asked before, and who has lost the authority is silent, as if it were policy: a SYN comes again.

A session that was opened and has ended again within these seconds is not remembered: no timer is that short unless
`timeouts.allow-short-timers` made it so, and an operator who deletes a session ends it for both ends anyway.
"""

from __future__ import annotations

import numpy as np

from shards import cuckoo, firewall6, icmp, icmp6, nat, parse6, sessions6, wire
from shards.atomics import fence
from shards.burst import TURNED_BARE, Burst
from shards.jit import hot, whole
from shards.native import read32, write16, write32
from shards.state import INBOUND, OUTBOUND, TCP, Array, Row, State
from shards.timers import remaining
from shards.unasked_rows import QUOTE_BYTES, UNASKED_ROWS
from shards.verdict import UNASKED_OVERFLOW, UNASKED_TOLD, UNASKED_WITHDRAWN
from shards.wire import ACK, RST, SYN, read8

WAIT_TICKS = 6100  # at least six seconds, though a packet may come at the end of a breath whose tick is that of its beginning

_PORT_UNREACHABLE = wire.UNREACHABLE << 8 | 3  # RFC 5382 REQ-4
_PROHIBITED6 = parse6.UNREACHABLE << 8 | 1  # RFC 6092 REC-34
_INIT = 1  # type of an SCTP chunk (RFC 9260 3.3.2)
_SCTP_BYTES = 12  # before the first chunk
_ETHERNET_BYTES = wire.ETHERNET_BYTES + wire.TAG_BYTES
_LOW32 = 0xFFFF_FFFF

# --- remembered -----------------------------------------------------------------------------------------------------------


@hot
def remember(state: State, frames: Array, burst: Burst, i: int, now: int) -> None:
    """Row `i` is dropped because nothing permits it: if it asks for a connection keep it until its sender may be told."""
    if not (_may_be_told(state, burst, i) and _asks(frames, burst, i)):
        return
    written = whole(state.core[0]["unasked"])
    if (written - whole(state.core[0]["unasked_done"])) & _LOW32 >= UNASKED_ROWS:
        state.counters[UNASKED_OVERFLOW, 0] += np.uint64(1)
        return
    at = written % UNASKED_ROWS
    _write(state.unasked[at], burst, i, wire.mac_at(frames, burst.at[i] + 6), now + WAIT_TICKS)
    _copy(frames, burst.l3[i], state.quotes, at * QUOTE_BYTES, min(burst.ip_length[i], QUOTE_BYTES))
    fence()  # who finds the memory without its worker believes every row that is counted
    state.core[0]["unasked"] = (written + 1) & _LOW32


@hot
def _may_be_told(state: State, burst: Burst, i: int) -> bool:
    """Whether the configuration has senders like this one told at all, and this core could."""
    settings = state.settings[0]
    if not _is_told(state, burst.six[i] != 0) or settings["icmp_rate"] == 0 or burst.turned[i] == -1:
        return False  # the sender of half a hairpin is known to another core only
    return not icmp.is_quiet(state, OUTBOUND if burst.turned[i] else burst.direction[i])


@hot
def _is_told(state: State, six: bool) -> bool:
    settings = state.settings[0]
    return bool(settings["unasked6"] != 0 if six else settings["unasked"] != 0)


@hot
def _asks(frames: Array, burst: Burst, i: int) -> bool:
    """Whether a packet is the first of a connection: a SYN, or of IPv6 an SCTP INIT, which has no tag yet (RFC 9260 8.5.1)."""
    l4, protocol = burst.l4[i], burst.protocol[i]
    if l4 - burst.l3[i] > QUOTE_BYTES - 8:
        return False  # so many extension headers that no error could say what it is about
    if protocol == TCP:
        return bool(burst.tcp_flags[i] & (SYN | ACK | RST) == SYN)
    if burst.six[i] == 0 or protocol != parse6.SCTP or burst.l3[i] + burst.ip_length[i] <= l4 + _SCTP_BYTES:
        return False
    return read32(frames, l4 + 4) == 0 and read8(frames, l4 + _SCTP_BYTES) == _INIT


@hot
def _write(row: Row, burst: Burst, i: int, mac: int, due: int) -> None:
    row["mac"] = mac
    row["due"] = due & _LOW32
    row["source"] = burst.source[i]
    row["destination"] = burst.destination[i]
    row["source_port"] = burst.source_port[i]
    row["destination_port"] = burst.destination_port[i]
    row["l4"] = burst.l4[i] - burst.l3[i]
    row["ip_length"] = burst.ip_length[i]
    row["shard"] = burst.shard[i] if burst.outer[i] else 0
    row["verdict"] = burst.verdict[i]
    row["port"] = burst.port[i]
    row["outer"] = burst.outer[i]
    row["six"] = burst.six[i]
    row["protocol"] = burst.protocol[i]
    row["turned"] = int(burst.turned[i] != 0)


@hot
def _copy(source: Array, at: int, sink: Array, to: int, size: int) -> None:
    for k in range(size):
        sink[to + k] = source[at + k]


# --- told -----------------------------------------------------------------------------------------------------------------


@hot
def is_due(state: State, now: int) -> bool:
    """Whether somebody has waited long enough."""
    done = whole(state.core[0]["unasked_done"])
    return whole(state.core[0]["unasked"]) != done and remaining(now, whole(state.unasked[done % UNASKED_ROWS]["due"])) <= 0


@hot
def next_port(state: State) -> int:
    """Row of PORT by which the first that waits had come."""
    return whole(state.unasked[whole(state.core[0]["unasked_done"]) % UNASKED_ROWS]["port"])


@hot
def bring_back(state: State, frames: Array, burst: Burst, at: int, now: int) -> None:
    """Judge the first that waits again, as row 0, in a free frame that may begin at `at`; `out_length` of the error, 0: none.

    It is taken off the ring before that: what might kill a worker does not kill its successor, too.
    """
    done = whole(state.core[0]["unasked_done"])
    state.core[0]["unasked_done"] = (done + 1) & _LOW32
    fence()
    _put_back(state, frames, burst, at, done % UNASKED_ROWS)
    if not _is_still_refused(state, frames, burst, now):
        state.counters[UNASKED_WITHDRAWN, 0] += np.uint64(1)
        return
    if burst.six[0]:
        icmp6.tell(state, frames, burst, 0, _PROHIBITED6, now)
    else:
        icmp.tell(state, frames, burst, 0, _PORT_UNREACHABLE, now)
    state.counters[UNASKED_TOLD, 0] += np.uint64(burst.out_length[0] != 0)


@hot
def _put_back(state: State, frames: Array, burst: Burst, at: int, number: int) -> None:
    """Frame and columns as they were when it was dropped, but for what cannot be quoted."""
    row = state.unasked[number]
    l3, size = at + _ETHERNET_BYTES, min(whole(row["ip_length"]), QUOTE_BYTES)
    write16(frames, at + 6, whole(row["mac"]) >> 32)
    write32(frames, at + 8, whole(row["mac"]) & _LOW32)
    _copy(state.quotes, number * QUOTE_BYTES, frames, l3, size)
    for column in (
        burst.deadline, burst.tcp_flags, burst.icmp_error, burst.ref, burst.session, burst.mapping, burst.next_hop,
        burst.detail, burst.out_length, burst.part, burst.identity,
    ):  # fmt: skip
        column[0] = 0
    burst.at[0], burst.length[0], burst.l3[0], burst.l4[0] = at, l3 + size - at, l3, l3 + whole(row["l4"])
    burst.port[0], burst.outer[0], burst.shard[0] = whole(row["port"]), whole(row["outer"]), whole(row["shard"])
    burst.source[0], burst.source_port[0] = whole(row["source"]), whole(row["source_port"])
    burst.destination[0], burst.destination_port[0] = whole(row["destination"]), whole(row["destination_port"])
    burst.ip_length[0], burst.six[0], burst.protocol[0] = whole(row["ip_length"]), whole(row["six"]), whole(row["protocol"])
    burst.direction[0], burst.verdict[0] = INBOUND, whole(row["verdict"])
    burst.turned[0] = TURNED_BARE if row["turned"] != 0 else 0


@hot
def _is_still_refused(state: State, frames: Array, burst: Burst, now: int) -> bool:
    """Whether row 0 has no session, would be dropped as it was, and is ours to answer."""
    if not _is_told(state, burst.six[0] != 0):
        return False
    if burst.six[0]:
        sessions6.set_key(state, frames, burst, 0)
    else:
        nat.set_key(state, burst, 0)
    if cuckoo.lookup(state, burst.key0[0], burst.key1[0]):
        return False
    if burst.six[0]:
        return bool(firewall6.inbound_miss(state, frames, burst, 0, now) == burst.verdict[0])
    return bool(nat.inbound_miss(state, burst, 0, now) == burst.verdict[0])
