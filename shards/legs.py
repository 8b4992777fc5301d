"""Ports that die, and come back: every session whose next hop is behind a dead one leaves by another at once, and unsought.

A session names a row of NEIGHBOUR, for ever. That row has two words: who the neighbour is (its own MAC, state and port), which
the supervisor writes, and the way that packets to it take, which is written here. As long as all is well they are the same. The
way of what cannot be reached itself is that of a gateway of the same side which can, so nobody has to look for sessions:

    its port has lost its carrier, or its peer (BFD) while another port of the side has not      all rows of that port
    it is a gateway, and has not answered, or no longer                                          that row

What is on-link at a dead port is left to the other ports' gateways as well: whether they know a way there is theirs to say.
Where no gateway can take its place a row keeps its own way; frames to it wait if there is no carrier, else they are sent.
"""

from __future__ import annotations

from shards import firewall6, hops, hops6, nat
from shards.jit import hot, whole
from shards.native import read64, write64
from shards.state import (
    BOTH,
    EXTERNAL,
    INTERNAL,
    NEIGHBOUR_BYTES,
    NEIGHBOUR_MAC,
    NEIGHBOUR_OWN,
    REACHABLE,
    WANTED,
    State,
)


@hot
def settle(state: State, now: int) -> int:
    """Bring all ways up to date with what is known of ports and neighbours at tick `now`; how many changed.

    For who forwards packets, between two bursts. Where nothing has happened it costs next to nothing.
    """
    core = state.core[0]
    lost, version = _judge(state, now), whole(core["neighbours_version"])
    if lost == whole(core["legs_lost"]) and version == whole(core["legs_version"]):
        return 0
    changed = 0
    for at in range(1, len(state.neighbours)):
        if state.neighbours[at]["own_state"] != 0:
            changed += _lead(state, at)
    core["legs_lost"] = lost
    core["legs_version"] = version
    return changed


@hot
def _judge(state: State, now: int) -> int:
    """Note which ports are dead; a bit for each."""
    lost = 0
    for p in range(whole(state.settings[0]["ports"])):
        port = state.ports[p]
        dead = int(port["carrier_lost"] != 0 or (port["peer_lost"] != 0 and _another_is_sound(state, p)))
        if dead != whole(port["dead"]):
            port["dead"] = dead
            port["since"] = now & 0xFFFFFFFF
        lost |= dead << p
    return lost


@hot
def _another_is_sound(state: State, p: int) -> bool:
    """Whether a port of the same side has both carrier and peer: a lost peer counts only then, for the watch may be wrong."""
    for q in range(whole(state.settings[0]["ports"])):
        other = state.ports[q]
        if q != p and other["side"] == state.ports[p]["side"] and other["carrier_lost"] == 0 and other["peer_lost"] == 0:
            return True
    return False


@hot
def _lead(state: State, at: int) -> int:
    """Write the way of a row; 1 if that changed it."""
    way = _way(state, at)
    if read64(state.neighbour_bytes, at * NEIGHBOUR_BYTES + NEIGHBOUR_MAC) == way:
        return 0
    write64(state.neighbour_bytes, at * NEIGHBOUR_BYTES + NEIGHBOUR_MAC, way)
    return 1


@hot
def _own_word(state: State, at: int) -> int:
    """MAC, state and port of who a row is, in one load of what the supervisor writes in one store."""
    return read64(state.neighbour_bytes, at * NEIGHBOUR_BYTES + NEIGHBOUR_OWN)


@hot
def _way(state: State, at: int) -> int:
    """The word that packets to row `at` go by."""
    own = _own_word(state, at)
    p, answers = own & 0xFF, own >> 8 & 0xFF == REACHABLE
    if state.ports[p]["dead"] == 0 and (answers or state.neighbours[at]["kept"] == 0):
        return own
    instead = _instead_of(state, at, p)
    if instead:
        return _own_word(state, instead)
    if answers and state.ports[p]["carrier_lost"] != 0:
        return own - ((REACHABLE - WANTED) << 8)
    return own


@hot
def _instead_of(state: State, at: int, p: int) -> int:
    """Row of a gateway of another port of the same side that answers, 0 for none; of several, each address has its own."""
    side, six = _side_of(state, at, p), state.neighbours[at]["six"] != 0
    first, end = hops.ports_of(state, side)
    best, chosen = -1, 0
    for q in range(first, end):
        gateway = hops6.gateway_of(state, q, side) if six else hops.gateway_of(state, q, side)
        if q == p or gateway == 0 or state.ports[q]["dead"] != 0 or state.neighbours[gateway]["own_state"] != REACHABLE:
            continue
        heavy = hops.weight(state, q, whole(state.neighbours[at]["address"]), 0)
        if heavy > best:
            best, chosen = heavy, gateway
    return chosen


@hot
def _side_of(state: State, at: int, p: int) -> int:
    """Which side a neighbour is on; where a port has both, a station is inside if a subscriber has its address."""
    port = state.ports[p]
    if port["side"] != BOTH:
        return whole(port["side"])
    row, realm = state.neighbours[at], whole(port["internal_realm"])
    if row["kept"] != 0:
        return EXTERNAL if at in (whole(port["external_gateway"]), whole(port["external_gateway6"])) else INTERNAL
    if row["six"] != 0:
        return INTERNAL if firewall6.prefix_of(state, realm, row["high"]) >= 0 else EXTERNAL
    return INTERNAL if nat.is_internal(state, realm, whole(row["address"])) else EXTERNAL
