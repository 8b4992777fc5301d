"""A hit: what happens to a packet whose session is known. Every packet of an open connection goes this way and no other.

The session row carries everything; beside it a packet looks at its neighbour (for the MAC) and at the port it leaves by.
"""

from __future__ import annotations

from shards import journal, tcp, timers
from shards.burst import Burst
from shards.jit import hot, whole
from shards.sessions import HAIRPIN_HOP
from shards.state import FAILED, INBOUND, OUTBOUND, REACHABLE, Array, Row, State
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
from shards.wire import read8, read16

DONT_FRAGMENT = 0x4000


@hot
def passable(neighbours: Array, ports: Array, hop: int, ttl: int, length: int, fragmenting: int) -> int:
    """UNDECIDED if a packet can go to the neighbour `hop` now, else why not. `fragmenting`: its IPv4 flags and offset."""
    if ttl <= 1:
        return TTL_EXCEEDED
    neighbour = neighbours[hop]
    if neighbour["state"] != REACHABLE:
        return NEIGHBOUR_UNRESOLVED if neighbour["state"] == FAILED else HELD_BACK
    if length > whole(ports[whole(neighbour["port"])]["mtu"]):
        return TOO_BIG if fragmenting & DONT_FRAGMENT else NEEDS_FRAGMENTING
    return UNDECIDED


@hot
def passable_row(state: State, frames: Array, burst: Burst, i: int) -> int:
    """`passable` for a row whose next hop is known."""
    l3, hop = burst.l3[i], burst.next_hop[i]
    return passable(state.neighbours, state.ports, hop, read8(frames, l3 + 8), burst.ip_length[i], read16(frames, l3 + 6))


@hot
def touch(settings: Array, session: Row, direction: int, tcp_flags: int, now: int) -> int:
    """Let a packet that will be forwarded move its session's state and lifetime on; the new state."""
    state = whole(session["state"])
    event = tcp.event(direction, tcp_flags)
    following = whole(tcp.FOLLOWING[state, event])
    lifetime = whole(tcp.LIFETIME[state, event])
    session["packets"] = (whole(session["packets"]) + 1) & 0xFFFFFFFF
    session["state"] = following
    if lifetime == tcp.RENEW or (lifetime == tcp.RENEW_IF_INBOUND and settings[0]["inbound_refresh"] != 0):
        session["expiry"] = (now + tcp.timeout(settings, following)) & 0xFFFFFFFF
    return following


@hot
def moved(state: State, line: int, now: int) -> None:
    """The session's state changed: tell the journal, and have the wheel look earlier, for its life may have become shorter."""
    journal.mark(state, line << 1)
    timers.disarm(state, line)
    timers.arm(state, line, now + timers.remaining(now, whole(state.sessions[line]["expiry"])))


@hot
def serve_hits(state: State, frames: Array, burst: Burst, count: int, now: int) -> int:
    """Decide every undecided row that the lookup hit and nothing is special about; how many are left for the slow path."""
    left = 0
    sessions, neighbours, ports, settings = state.sessions, state.neighbours, state.ports, state.settings
    for i in range(count):
        if burst.verdict[i] != UNDECIDED:
            continue
        line = burst.ref[i] >> 2
        session = sessions[line]
        outward = whole(session["outward"])
        if line == 0 or outward == HAIRPIN_HOP or timers.remaining(now, whole(session["expiry"])) <= 0:
            left += 1
            continue
        direction = burst.direction[i]
        hop = whole(session["inward"]) if direction == INBOUND else outward
        l3 = burst.l3[i]
        burst.session[i] = line
        burst.next_hop[i] = hop
        verdict = passable(neighbours, ports, hop, read8(frames, l3 + 8), burst.ip_length[i], read16(frames, l3 + 6))
        if verdict == UNDECIDED:
            verdict = FORWARDED_OUT if direction == OUTBOUND else FORWARDED_IN
            before = whole(session["state"])
            if touch(settings, session, direction, burst.tcp_flags[i], now) != before:
                moved(state, line, now)
        burst.verdict[i] = verdict
    return left
