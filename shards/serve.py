"""A hit: what happens to a packet whose session is known. Every packet of an open connection goes this way and no other.

The session row carries everything; beside it a packet looks at its neighbour (for the MAC) and at the port it leaves by.
"""

from __future__ import annotations

import numpy as np

from shards import doubt, journal, tcp, timers
from shards.burst import Burst
from shards.jit import hot, inlined, whole
from shards.native import read16
from shards.sessions import HAIRPIN_HOP
from shards.state import ADMITTED, FAILED, INBOUND, OUTBOUND, REACHABLE, Array, Row, State
from shards.verdict import (
    FORWARDED_IN,
    FORWARDED_OUT,
    HELD_BACK,
    NEEDS_FRAGMENTING,
    NEIGHBOUR_UNRESOLVED,
    TOO_BIG,
    TTL_EXCEEDED,
    UNDECIDED,
)
from shards.wire import read8

DONT_FRAGMENT = 0x4000


@inlined
def passable(state: State, frames: Array, burst: Burst, i: int) -> int:
    """UNDECIDED if row `i` can go to its next hop now, else why not."""
    l3 = burst.l3[i]
    if read8(frames, l3 + 8) <= 1:
        return TTL_EXCEEDED
    neighbour = state.neighbours[np.uint64(burst.next_hop[i])]
    if neighbour["state"] != REACHABLE:
        return NEIGHBOUR_UNRESOLVED if neighbour["state"] == FAILED else HELD_BACK
    if burst.ip_length[i] > whole(state.ports[np.uint64(whole(neighbour["port"]))]["mtu"]):
        return TOO_BIG if read16(frames, l3 + 6) & DONT_FRAGMENT else NEEDS_FRAGMENTING
    return UNDECIDED


@hot
def way(state: State, frames: Array, burst: Burst, i: int) -> int:
    """`passable` for the slow path, which can have packets cut to the MTU of the next link (see `cut`)."""
    verdict = passable(state, frames, burst, i)
    return UNDECIDED if verdict == NEEDS_FRAGMENTING else verdict


@inlined
def touch(settings: Array, session: Row, direction: int, tcp_flags: int, now: int) -> int:
    """Let a packet that will be forwarded move its session's state and lifetime on; the new state."""
    state = whole(session["state"])
    event = tcp.event(direction, tcp_flags)
    following = whole(tcp.FOLLOWING[state, event])
    lifetime = whole(tcp.LIFETIME[state, event])
    session["packets"] = (whole(session["packets"]) + 1) & 0xFFFFFFFF
    session["state"] = following
    if lifetime == tcp.RENEW or (lifetime == tcp.RENEW_IF_INBOUND and settings[0]["inbound_refresh"] != 0):
        session["expiry"] = tcp.ends(settings, following, now) & 0xFFFFFFFF
    return following


@hot
def moved(state: State, line: int, now: int) -> None:
    """The session's state changed: tell the journal, and have the wheel look earlier, for its life may have become shorter."""
    doubt.begin(state)
    journal.mark(state, line << 1)
    timers.disarm(state, line)
    timers.arm(state, line, now + timers.remaining(now, whole(state.sessions[line]["expiry"])))
    doubt.end(state)


@inlined
def serve_hit(state: State, frames: Array, burst: Burst, i: int, now: int) -> None:
    """Decide an undecided row whose lookup hit, unless there is something special about it, for the slow path to see."""
    line = burst.ref[i] >> 2
    session = state.sessions[np.uint64(line)]
    outward = whole(session["outward"])
    last = (
        state.words[np.uint64(line * 8 + 7)] & ADMITTED
    )  # one compare for both: what kind it is, by which rules it was let in
    if last != state.settings[0]["admitted"] or outward == HAIRPIN_HOP or timers.remaining(now, whole(session["expiry"])) <= 0:
        return  # line 0 is of no kind, either
    direction = burst.direction[i]
    burst.session[i] = line
    burst.next_hop[i] = whole(session["inward"]) if direction == INBOUND else outward
    verdict = passable(state, frames, burst, i)
    if verdict == NEEDS_FRAGMENTING:
        return
    if verdict == UNDECIDED:
        verdict = FORWARDED_OUT if direction == OUTBOUND else FORWARDED_IN
        before = whole(session["state"])
        if touch(state.settings, session, direction, burst.tcp_flags[i], now) != before:
            moved(state, line, now)
    burst.verdict[i] = verdict
