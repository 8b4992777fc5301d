"""What is not translated (RFC 6888 REQ-6): given destinations, given subscribers, or both.

It is a firewall then, not a hole: a packet from inside that an entry fits makes a session whose external endpoint is the
internal one, answers pass by it, everything else from outside is refused unless an entry lets its direction begin. So all that
holds of sessions (rules, limits, timers, ICMP errors, replication) holds of these; only ports are nobody's.

A translated packet may turn round to a subscriber whose address is known outside (`is_reached`), and his to a mapping of ours:
out by the one's session and in by the other's, as every hairpin.
"""

from __future__ import annotations

from shards import firewall
from shards.jit import hot, whole
from shards.state import INBOUND, State


@hot
def find(state: State, direction: int, protocol: int, internal: int, internal_port: int, remote: int, remote_port: int) -> bool:
    """Whether an entry lets a packet of this direction, which would begin a session, pass untranslated."""
    first = whole(state.settings[0]["bypasses_at"])
    for r in range(first, first + whole(state.settings[0]["bypasses"])):
        entry = state.bypasses[r]
        if firewall.fits(entry, direction, protocol, internal, internal_port, remote, remote_port):
            entry["hits"] += 1
            return True
    return False


@hot
def names(state: State, internal: int) -> bool:
    """Whether some packets of an internal address are not translated: it may be heard of outside."""
    return _is_named(state, internal, 0)


@hot
def is_reached(state: State, internal: int) -> bool:
    """Whether somebody may begin to talk to an internal address as it is."""
    return _is_named(state, internal, 1 << INBOUND)


@hot
def _is_named(state: State, internal: int, directions: int) -> bool:
    first = whole(state.settings[0]["bypasses_at"])
    for r in range(first, first + whole(state.settings[0]["bypasses"])):
        entry = state.bypasses[r]
        if internal & whole(entry["internal_mask"]) == whole(entry["internal_network"]) and (
            whole(entry["directions"]) & directions == directions
        ):
            return True
    return False
