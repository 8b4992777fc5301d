"""Connection states and what a segment does to them: the table of RFC 6146 section 3.5.2 as RFC 7857 section 2 amends it.

No sequence numbers are checked: after a takeover nobody knows the windows (RFC 6092 REC-32 allows it). UDP and ICMP queries
have a row each, so that a hit is served in one way whatever the protocol.
"""

from __future__ import annotations

import numpy as np

from shards import lifetimes
from shards.jit import hot, inlined, whole
from shards.lifetimes import SLACK, STATE_BITS, STATE_MASK, TIMERS
from shards.state import ICMP, TCP, UDP, Array, Row, State
from shards.wire import ACK, FIN, RST, SYN

STATES = lifetimes.STATES
NONE, INIT, ESTABLISHED, FIN_OUT, FIN_IN, CLOSING, RESET, STREAM, QUERY, INIT_IN, ANSWERED, GENERIC = range(12)

# Events: SYN, FIN, RST, anything else; outbound 0..3, inbound 4..7.
#
# A cell is the next state. Its lifetime starts anew, unless the cell ends in
#   '   lifetime left alone        ?   lifetime renewed only where inbound packets refresh (RFC 4787 REQ-6)
# `reset` comes back to life by any packet but another RST (RFC 7857 section 2.2), so a forged RST kills nothing. What has not
# been established is not reset: a RST that goes out in answer would refresh the mapping (section 7.1).
# `answered`: a SYN-ACK went out to a SYN that came in by the mapping alone. RFC 6146 calls that established; here it is
# short-lived until the other side goes on, or forged SYNs to an open port would fill the subscriber's quota for two hours.
# A SYN on `closing` is TIME-WAIT reuse: the connection opens anew (RFC 9293 section 3.6.1), from inside or (`init_in`) outside.
_PICTURE = """
               out: syn      fin       rst     other        in: syn       fin       rst     other
init                init     init'     init'   init'        established   init'     init'   init'
established         established  fin_out  reset  established    established  fin_in  reset  established
fin_out             fin_out  fin_out   reset   fin_out      fin_out       closing   reset   fin_out
fin_in              fin_in   closing   reset   fin_in       fin_in        fin_in    reset   fin_in
init_in             established init_in' init_in' init_in'  init_in       init_in'  init_in' init_in'
answered            answered' answered' answered' answered' answered'     fin_in    answered' established
closing             init     closing'  closing' closing'    init_in       closing'  closing' closing'
reset               established established reset' established  established established reset' established
udp                 udp      udp       udp     udp          udp?          udp?      udp?    udp?
query               query    query     query   query        query?        query?    query?  query?
generic             generic  generic   generic generic      generic?      generic?  generic? generic?
"""

EVENTS = 8
LEAVE, RENEW, RENEW_IF_INBOUND = 0, 1, 2


def _parse(picture: str) -> tuple[Array, Array]:
    """Both tables, for every value that `state` of a row can have: whatever happens, a session keeps its timer."""
    following = np.zeros((TIMERS, 1 << STATE_BITS, EVENTS), np.uint8)
    lifetime = np.zeros((TIMERS, 1 << STATE_BITS, EVENTS), np.uint8)
    for line in picture.strip().splitlines()[1:]:
        name, *cells = line.split()
        for event, cell in enumerate(cells):
            following[:, STATES.index(name), event] = STATES.index(cell.rstrip("'?"))
            lifetime[:, STATES.index(name), event] = {"'": LEAVE, "?": RENEW_IF_INBOUND}.get(cell[-1], RENEW)
    following += np.arange(TIMERS, dtype=np.uint8)[:, None, None] << STATE_BITS
    return following.reshape(-1, EVENTS), lifetime.reshape(-1, EVENTS)


FOLLOWING, LIFETIME = _parse(_PICTURE)


@inlined
def event(direction: int, tcp_flags: int) -> int:
    """Column of the table for a segment (RST before SYN before FIN); without flags (UDP, ICMP) "other"."""
    if tcp_flags & RST:
        kind = 2
    elif tcp_flags & SYN:
        kind = 0
    elif tcp_flags & FIN:
        kind = 1
    else:
        kind = 3
    return direction * 4 + kind


@inlined
def timeout(settings: Array, state: int) -> int:
    """Lifetime in ticks of a session with this `state` of its row."""
    return whole(settings[0]["lifetimes"][np.uint64(state)])


@inlined
def ends(settings: Array, state: int, now: int) -> int:
    """Tick, not wrapped, at which a session ends of which no packet comes from now on: an even one.

    An odd one is a copy's (`copy_ends`), until a packet that comes here renews it.
    """
    return (now + timeout(settings, state) + 1) & -2


@inlined
def copy_ends(left: int, now: int) -> int:
    """The same of a session that another core told of: `left` ticks from now, SLACK among them; an odd one."""
    return now + left | 1


@inlined
def slack(session: Row) -> int:
    """How many of the ticks that are left to a session are not its own. Whoever tells of it must say so:

    with a slack for each core that it moves to it would never end.
    """
    return SLACK if whole(session["expiry"]) & 1 else 0


@hot
def timer_of(state: State, protocol: int, remote_port: int) -> int:
    """What goes into `state` of a new session's row for the timer of its destination port; 0: its protocol's own."""
    for t in range(whole(state.settings[0]["port_timers"])):
        row = state.port_timers[t]
        if row["protocol"] == protocol and whole(row["low"]) <= remote_port <= whole(row["high"]):
            return (t + 1) << STATE_BITS
    return 0


@hot
def first_state(protocol: int, tcp_flags: int) -> int:
    """State of a session that an outbound packet makes.

    A SYN-ACK answers a SYN that came in by the mapping alone; a segment without SYN goes on with a connection whose session was
    lost while its mapping lived.
    """
    if protocol == UDP:
        return STREAM
    if protocol != TCP:
        return QUERY if protocol == ICMP else GENERIC
    if tcp_flags & SYN == 0:
        return ESTABLISHED
    return ANSWERED if tcp_flags & ACK else INIT


@hot
def half_open(state: int) -> bool:
    """Whether one side has not been heard of yet: such connections may come to nothing, and no other core is told of them."""
    return state & STATE_MASK in (INIT, INIT_IN, ANSWERED)


@hot
def answers(protocol: int, tcp_flags: int) -> bool:
    """Whether an outbound packet may answer what came in by a mapping alone, and open nothing: a RST (RFC 7857 section 7.1)."""
    return protocol == TCP and tcp_flags & RST != 0


@hot
def may_open(protocol: int, tcp_flags: int, mapped: bool) -> bool:
    """Whether an outbound packet may make a session: every one but TCP, which needs a SYN or a mapping that it continues."""
    if protocol != TCP:
        return True
    if tcp_flags & (RST | FIN):
        return False
    return mapped or tcp_flags & (SYN | ACK) == SYN
