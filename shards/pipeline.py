"""One burst, from bytes to bytes: the packet path on a page.

    parse -> choose_keys -> lookup -> serve hits -> serve the rest -> rewrite -> answer

Each stage reads the columns to its left and fills its own; a row that has a verdict is passed over. `settle` is the one place
that counts, after the rings have had their say.
"""

from __future__ import annotations

import numpy as np

from shards import cuckoo, icmp, lookahead, nat, parse, rewrite, serve, sessions, timers
from shards.burst import Burst
from shards.jit import hot, whole
from shards.state import ICMP, INBOUND, OUTBOUND, Array, State
from shards.verdict import (
    DROP,
    FORWARDED_IN,
    FORWARDED_OUT,
    HAIRPIN_REFUSED,
    HAIRPINNED,
    HELD_BACK,
    NEIGHBOUR_UNRESOLVED,
    RECEIVED,
    SENT,
    SESSIONS_EXPIRED,
    SPOOFED_SOURCE,
    UNDECIDED,
    VERDICTS,
)

FIRST_DROP = min(verdict.number for verdict in VERDICTS if verdict.fate == DROP)


@hot
def process(state: State, frames: Array, burst: Burst, count: int, now: int) -> None:
    """Decide and rewrite `count` packets in place.

    `frames`: uint8, the frame memory, with at least 64 bytes before each frame; `now`: ticks. Afterwards every row has a
    verdict, and `out_length` > 0 where bytes are to be sent (also for a drop that is answered by an ICMP error).
    """
    parse.parse(state, frames, burst, count)
    nat.choose_keys(state, burst, count)
    cuckoo.lookup_bulk(state, burst.key0, burst.key1, burst.ref, burst.verdict, count)
    left = serve.serve_hits(state, frames, burst, count, now)
    if left >= lookahead.WORTH:
        lookahead.misses(state, burst, count)
    if left:
        _serve_rest(state, frames, burst, count, now)
    _limit_waiting(state, burst, count, now)
    rewrite.rewrite(state, frames, burst, count)
    for i in range(count):
        if burst.verdict[i] >= FIRST_DROP:
            icmp.answer(state, frames, burst, i, now)


@hot
def _serve_rest(state: State, frames: Array, burst: Burst, count: int, now: int) -> None:
    for i in range(count):
        if burst.verdict[i] == UNDECIDED:
            if burst.icmp_error[i]:
                burst.verdict[i] = icmp.pass_error(state, frames, burst, i, now)
            else:
                burst.verdict[i] = decide(state, frames, burst, i, now)
                if burst.session[i] == 0 and burst.verdict[i] in (FORWARDED_IN, HAIRPINNED):
                    rewrite.translate_by_mapping(state, frames, burst, i)


@hot
def _limit_waiting(state: State, burst: Burst, count: int, now: int) -> None:
    """A frame waits for its neighbour until its deadline, which its first wait sets; then the neighbour is unresolved."""
    for i in range(count):
        if burst.verdict[i] == HELD_BACK:
            if burst.deadline[i] == 0:
                burst.deadline[i] = now + whole(state.settings[0]["neighbour_wait"])
            elif now >= burst.deadline[i]:
                burst.verdict[i] = NEIGHBOUR_UNRESOLVED


@hot
def decide(state: State, frames: Array, burst: Burst, i: int, now: int) -> int:
    """Verdict of one packet by the slow path: misses, expired sessions, hairpins."""
    verdict = _find_or_open(state, frames, burst, i, now)
    if verdict != UNDECIDED:
        return verdict
    if burst.next_hop[i] == sessions.HAIRPIN_HOP:
        return _hairpin(state, frames, burst, i, now)
    verdict = _send(state, frames, burst, i, now)
    if verdict == UNDECIDED:
        verdict = FORWARDED_OUT if burst.direction[i] == OUTBOUND else FORWARDED_IN
    return verdict


@hot
def _find_or_open(state: State, frames: Array, burst: Burst, i: int, now: int) -> int:
    """Give the row its session or mapping, and its next hop. Verdict, or UNDECIDED.

    The lookup is made again: a packet before it in this burst may have opened the session, or the row may be another's by now.
    """
    line = cuckoo.lookup(state, burst.key0[i], burst.key1[i]) >> 2
    if line and timers.remaining(now, whole(state.sessions[line]["expiry"])) <= 0:
        timers.disarm(state, line)
        sessions.end_session(state, line, now)
        state.counters[SESSIONS_EXPIRED, 0] += 1
        line = 0
    burst.session[i] = line
    inbound = burst.direction[i] == INBOUND
    if line == 0:
        verdict = nat.inbound_miss(state, burst, i, now) if inbound else nat.outbound_miss(state, frames, burst, i, now)
        if verdict != UNDECIDED:
            return verdict
        line = burst.session[i]
    if line:
        row = state.sessions[line]
        if inbound and row["outward"] == sessions.HAIRPIN_HOP and burst.turned[i] == 0:
            return SPOOFED_SOURCE  # its remote is one of our own: it cannot come from outside
        burst.next_hop[i] = row["inward"] if inbound else row["outward"]
    return UNDECIDED


@hot
def _send(state: State, frames: Array, burst: Burst, i: int, now: int) -> int:
    """The common end of both paths: can it go there, and then what it does to its session. Verdict, or UNDECIDED."""
    verdict = serve.passable_row(state, frames, burst, i)
    if verdict == UNDECIDED and burst.session[i]:
        _touch(state, burst.session[i], burst.direction[i], burst.tcp_flags[i], now)
    return verdict


@hot
def _touch(state: State, line: int, direction: int, tcp_flags: int, now: int) -> None:
    session = state.sessions[line]
    before = whole(session["state"])
    if serve.touch(state.settings, session, direction, tcp_flags, now) != before:
        serve.moved(state, line, now)


@hot
def _hairpin(state: State, frames: Array, burst: Burst, i: int, now: int) -> int:
    """Out as if to the Internet and in again, by the external endpoints (RFC 4787 REQ-9a).

    Only the columns turn round; the frame is rewritten once both halves are decided, so a packet that must wait, or is refused,
    is still what its sender sent.
    """
    if state.settings[0]["hairpin"] == 0:
        return HAIRPIN_REFUSED
    first = burst.session[i]
    row = state.sessions[first]
    burst.turned[i] = first
    burst.direction[i] = INBOUND
    burst.source[i] = row["external_address"]
    burst.source_port[i] = row["external_port"]
    if burst.protocol[i] == ICMP:
        burst.destination_port[i] = row["external_port"]
    nat.set_key(state, burst, i)
    verdict = _find_or_open(state, frames, burst, i, now)
    if verdict == UNDECIDED:
        verdict = _send(state, frames, burst, i, now)
    if verdict != UNDECIDED:
        return verdict
    _touch(state, first, OUTBOUND, burst.tcp_flags[i], now)
    return HAIRPINNED


@hot
def settle(state: State, burst: Burst, count: int) -> None:
    """Count `count` rows by verdict, packets and bytes of frame. A held frame is counted once it has left (see `core.held`)."""
    counters = state.counters
    for i in range(count):
        verdict = burst.verdict[i]
        if verdict != HELD_BACK:
            counters[verdict, 0] += np.uint64(1)
            counters[verdict, 1] += np.uint64(burst.length[i])
            counters[RECEIVED, 0] += np.uint64(1)
            counters[RECEIVED, 1] += np.uint64(burst.length[i])
        if burst.out_length[i]:
            counters[SENT, 0] += np.uint64(1)
            counters[SENT, 1] += np.uint64(burst.out_length[i])
