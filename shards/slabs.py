"""Rows of a shard: taken from extents of the arena, given back to free lists.

An extent holds rows of one kind of one shard, so a snapshot, a digest or the end of a shard is a range. Memory follows load:
an extent that was never taken is never touched.
"""

from __future__ import annotations

from shards.jit import hot, whole
from shards.state import EXTENT_LINES, NAT_MAPPING, NAT_SESSION, State


@hot
def new_line(state: State, shard: int) -> int:
    """A free line for a session; 0 if there is none."""
    row = state.shards[shard]
    line = whole(row["session_free"])
    if line:
        row["session_free"] = state.links[line]["next"]
        return line
    if row["session_fresh"] == row["session_fresh_end"]:
        extent = _new_extent(state, shard, NAT_SESSION, whole(row["session_extents"]))
        if extent < 0:
            return 0
        row["session_extents"] += 1
        row["session_fresh"] = max(extent * EXTENT_LINES, 1)  # line 0 means none
        row["session_fresh_end"] = (extent + 1) * EXTENT_LINES
    line = whole(row["session_fresh"])
    row["session_fresh"] = line + 1
    return line


@hot
def free_line(state: State, shard: int, line: int) -> None:
    """Give a session's line back; its timer must be off."""
    row = state.shards[shard]
    state.links[line]["next"] = row["session_free"]
    row["session_free"] = line


@hot
def new_half(state: State, shard: int) -> int:
    """A free half-line for a mapping; 0 if there is none."""
    row = state.shards[shard]
    half = whole(row["mapping_free"])
    if half:
        row["mapping_free"] = state.mappings[half]["account"]
        return half
    if row["mapping_fresh"] == row["mapping_fresh_end"]:
        extent = _new_extent(state, shard, NAT_MAPPING, whole(row["mapping_extents"]))
        if extent < 0:
            return 0
        row["mapping_extents"] += 1
        row["mapping_fresh"] = max(extent * EXTENT_LINES * 2, 2)
        row["mapping_fresh_end"] = (extent + 1) * EXTENT_LINES * 2
    half = whole(row["mapping_fresh"])
    row["mapping_fresh"] = half + 1
    return half


@hot
def free_half(state: State, shard: int, half: int) -> None:
    """Give a mapping's half-line back. A free one keeps the next of its list where a living one keeps its account."""
    row = state.shards[shard]
    state.mappings[half]["account"] = row["mapping_free"]
    row["mapping_free"] = half


@hot
def _new_extent(state: State, shard: int, kind: int, ordinal: int) -> int:
    core = state.core[0]
    extent = whole(core["next_extent"])
    if extent >= len(state.extents):
        return -1
    row = state.extents[extent]
    row["shard"] = shard
    row["ordinal"] = ordinal
    row["kind"] = kind
    core["next_extent"] = extent + 1
    return extent
