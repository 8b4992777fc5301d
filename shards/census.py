"""How many packets a shard's sessions have seen: what tells an old owner that nobody sends to it any more.

A hit counts in its session's row and nowhere else, so that nothing is added to the packet path; the sum over a shard's rows,
taken twice, differs if a packet came between.
"""

from __future__ import annotations

from shards import slabs
from shards.jit import hot, whole
from shards.state import NAT_SESSION, State


@hot
def packets(state: State, shard: int, klass: int, first: int, at_most: int) -> tuple[int, int]:
    """(sum of the packets of living sessions, row to go on from or -1) of at most `at_most` rows of a class from `first` on."""
    each = slabs.rows_each(klass)
    end = whole(state.slabs[shard, klass]["extents"]) * each
    total, last = 0, min(first + at_most, end)
    for row in range(first, last):
        session = state.sessions[slabs.local_row(state, shard, klass, row)]
        if session["kind"] == NAT_SESSION:
            total += whole(session["packets"])
    return total, last if last < end else -1
