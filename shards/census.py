"""Whether packets of a shard still come: what tells an old owner that nobody sends to it any more.

A hit counts in its session's row and nowhere else, so that nothing is added to the packet path. Two looks at the same rows
differ where a packet came between; rows that were born or reborn meanwhile (the new owner replicates to us) do not count.
"""

from __future__ import annotations

from shards import sessions, slabs
from shards.jit import hot, whole
from shards.state import Array, State


@hot
def look(state: State, shard: int, klass: int, first: int, at_most: int, packets: Array, lives: Array) -> tuple[int, int]:
    """(rows that saw a packet since the look before, row to go on from or -1): `at_most` rows of a class from `first` on.

    `packets`: uint32 (n,), `lives`: uint16 (n,): what was seen of each row of the class; rows beyond them are not looked at.
    """
    end = min(whole(state.slabs[shard, klass]["extents"]) * slabs.rows_each(klass), len(packets))
    last, moved = min(first + at_most, end), 0
    for row in range(first, last):
        line = slabs.local_row(state, shard, klass, row)
        if not sessions.is_living(state, line):
            continue
        session = state.sessions[line]
        moved += session["generation"] == lives[row] and session["packets"] != packets[row]
        packets[row] = session["packets"]
        lives[row] = session["generation"]
    return moved, last if last < end else -1
