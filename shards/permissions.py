"""Permissions: half-lines whose key says who is let in, and which count the sessions that let him. They follow from these."""

from __future__ import annotations

from shards import cuckoo, slabs
from shards.jit import hot, whole
from shards.native import Word
from shards.state import FREE, NAT_PERMISSION, State
from shards.verdict import ROWS_EXHAUSTED, SESSION_LIMIT, TABLE_FULL

SESSIONS_EACH = 65535  # at most, by the width of the count


@hot
def permit(state: State, shard: int, key0: Word, key1: Word) -> int:
    """Count one session more that gives this permission; verdict, or 0."""
    half = cuckoo.lookup(state, key0, key1) >> 1
    if half == 0:
        half = slabs.new_permission(state, shard)
        if half == 0:
            return ROWS_EXHAUSTED
        state.words[half * 4] = key0
        state.words[half * 4 + 1] = key1
        row = state.mappings[half]
        row["sessions"] = 0
        row["static"] = 0
        if not cuckoo.insert(state, key0, key1, half << 1):
            slabs.free_half(state, half)
            return TABLE_FULL
        row["kind"] = NAT_PERMISSION
    if whole(state.mappings[half]["sessions"]) == SESSIONS_EACH:
        return SESSION_LIMIT
    state.mappings[half]["sessions"] += 1
    return 0


@hot
def forbid(state: State, key0: Word, key1: Word) -> None:
    """Count one session less; the last one takes the permission with it."""
    half = cuckoo.lookup(state, key0, key1) >> 1
    if half == 0:
        return
    row = state.mappings[half]
    row["sessions"] -= 1
    if row["sessions"] == 0:
        row["kind"] = FREE
        cuckoo.erase(state, key0, key1, half << 1)
        slabs.free_half(state, half)
