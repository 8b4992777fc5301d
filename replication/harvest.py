"""All that changed in all shards, with one call from Python: a call costs as much as ten rows, and a turn has many shards.

Compiled like the packet path, though it stands here: it knows of several shards what `shards.gather` knows of one.
"""

from __future__ import annotations

from shards import gather
from shards.gather import LAPPED
from shards.jit import hot
from shards.state import EXTENT_LINES, MAPPING_0, MAPPING_1, SESSION6_0, SESSION6_1, SESSION_0, SESSION_1, Array, State

# Columns of a row of `asked`, int64: what is asked, then what was found.
SHARD, EVERYTHING, NEXT, ENDED, MAPPINGS, SESSIONS, MORE = range(7)
COLUMNS = 7

_SUMMARY_EACH = 2 * EXTENT_LINES // 64 // 64  # words of `summary` for an extent


@hot
def harvest(
    state: State, asked: Array, threshold: int, now: int, ended: Array, mappings: Array, sessions: Array
) -> tuple[int, int, int]:
    """Take what ended and what changed of each shard that is asked about: (tombstones, mappings, sessions) written, in order.

    `asked`: COLUMNS; of each shard in turn, SHARD, EVERYTHING and NEXT (number of its next tombstone) are given, and NEXT moves
    on. `ended`: TOMBSTONE, `mappings`: MAPPING_RECORD, `sessions`: SESSION_RECORD, for all together. ENDED, MAPPINGS and
    SESSIONS are how many of these are of the shard, ENDED may be LAPPED; MORE: not all fitted. Of one shard, everything is of
    one instant: nothing that changed is taken before all that ended was.
    """
    stones, mapped, found = 0, 0, 0
    for k in range(len(asked)):
        row = asked[k]
        row[MAPPINGS], row[SESSIONS], row[MORE] = 0, 0, 0
        row[ENDED], row[NEXT] = gather.tombstones(state, row[SHARD], row[NEXT], ended[stones:])
        if row[ENDED] == LAPPED:
            continue
        stones += row[ENDED]
        if stones == len(ended):
            row[MORE] = 1
            continue
        given = state, row[SHARD], row[EVERYTHING] != 0, threshold, now
        row[SESSIONS], row[MAPPINGS] = gather.drain(*given, sessions[found:], mappings[mapped:])
        found += row[SESSIONS]
        mapped += row[MAPPINGS]
        row[MORE] = gather.unsent(state, row[SHARD]) != 0
    return stones, mapped, found


@hot
def is_dirty(state: State, shard: int) -> bool:
    """Whether a row of the shard may have changed; never false where one has."""
    for klass in (SESSION_0, SESSION_1, MAPPING_0, MAPPING_1, SESSION6_0, SESSION6_1):
        for ordinal in range(state.slabs[shard, klass]["extents"]):
            first = state.extent_of[shard, klass, ordinal] * _SUMMARY_EACH
            for word in range(first, first + _SUMMARY_EACH):
                if state.summary[word] != 0:
                    return True
    return False
