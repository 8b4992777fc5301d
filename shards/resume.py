"""Go on where the worker before was killed: at once if it can be seen that nothing was half done, else after rebuilding.

`recovery.attach` rebuilds everything that is derived, which takes the longer the more sessions there are (a few tenths of a
second for a million). That is not needed where `doubt` says that no change was under way and the counts agree: then one sweep
over the rows does, which counts them, and marks them for the journal: a new worker's replication does not know what was sent.
"""

from __future__ import annotations

from shards import fragments, journal, recovery
from shards.jit import hot, whole
from shards.state import EXTENT_LINES, FIREWALL_SESSION6, NAT_MAPPING, NAT_SESSION, State


@hot
def resume(state: State, reindex: bool, now: int) -> tuple[int, int]:
    """(sessions alive, 1 if all was rebuilt). `reindex`: rebuild in any case, as at the first start or for other code."""
    core = state.core[0]
    if reindex or core["in_doubt"] or not _adds_up(state):
        core["in_doubt"] = 1  # until it is done, for we may be killed as well
        found = recovery.attach(state, now)
        core["in_doubt"] = 0
        return found, 1
    core["held"] = 0  # they were in the hands of the dead
    fragments.forget(state)
    return _told(state)[0], 0


@hot
def _adds_up(state: State) -> bool:
    """Whether as many rows live as shards and index say; marks all that do."""
    sessions, sessions6, mappings, permissions = 0, 0, 0, 0
    for extent in range(1, whole(state.core[0]["next_extent"])):
        kind = whole(state.extents[extent]["kind"])
        if kind == NAT_SESSION:
            sessions += _count_sessions(state, extent, kind)
        elif kind == FIREWALL_SESSION6:
            sessions6 += _count_sessions(state, extent, kind)
        else:
            living = _count_halves(state, extent, kind)
            mappings += living * (kind == NAT_MAPPING)
            permissions += living * (kind != NAT_MAPPING)
    told_sessions, told_mappings = _told(state)
    entries = 2 * sessions + sessions6 + mappings + permissions
    return (
        sessions + sessions6 == told_sessions and mappings == told_mappings and entries == whole(state.core[0]["index_entries"])
    )


@hot
def _told(state: State) -> tuple[int, int]:
    """Sessions and mappings alive, as the shards count them."""
    sessions, mappings = 0, 0
    for s in range(len(state.shards)):
        sessions += whole(state.shards[s]["sessions"])
        mappings += whole(state.shards[s]["mappings"])
    return sessions, mappings


@hot
def _count_sessions(state: State, extent: int, kind: int) -> int:
    living = 0
    for line in range(extent * EXTENT_LINES, (extent + 1) * EXTENT_LINES):
        if state.sessions[line]["kind"] == kind:
            journal.mark(state, line << 1)
            living += 1
    return living


@hot
def _count_halves(state: State, extent: int, kind: int) -> int:
    """Permissions are nobody else's business: only mappings are marked."""
    living = 0
    for half in range(extent * EXTENT_LINES * 2, (extent + 1) * EXTENT_LINES * 2):
        if state.mappings[half]["kind"] == kind:
            if kind == NAT_MAPPING:
                journal.mark(state, half)
            living += 1
    return living
