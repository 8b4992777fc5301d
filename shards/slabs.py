"""Rows of a shard: taken from extents of the arena, given back to free lists.

An extent holds rows of one class of one shard, so a snapshot, a digest or the end of a shard is a range. Memory follows load:
an extent that was never taken is never touched. Rows are numbered within their class, so that the copies on two cores have the
same numbers whatever else those cores hold (`wire_row`, `local_row`).

Free lists are doubly linked: `take` finds one certain row in them. A session's line links through `links`, a mapping's
half-line through fields of its own that mean something else while it lives.
"""

from __future__ import annotations

from shards.jit import hot, whole
from shards.state import (
    EXTENT_LINES,
    FIREWALL_SESSION6,
    MAPPING_0,
    NAT_MAPPING,
    NAT_PERMISSION,
    NAT_SESSION,
    PERMISSION,
    SESSION6_0,
    SESSION_0,
    State,
)

MAPPINGS_EACH_EXTENT = 2 * EXTENT_LINES


@hot
def new_line(state: State, shard: int) -> int:
    """A free line for a session, of the shard's side; 0 if there is none."""
    return _new_row(state, shard, SESSION_0 + whole(state.shards[shard]["side"]))


@hot
def new_line6(state: State, shard: int) -> int:
    """The first of two free lines for a session of IPv6, of the shard's side; 0 if there are none."""
    return _new_row(state, shard, SESSION6_0 + whole(state.shards[shard]["side"]))


@hot
def new_half(state: State, shard: int) -> int:
    """A free half-line for a mapping, of the shard's side; 0 if there is none."""
    return _new_row(state, shard, MAPPING_0 + whole(state.shards[shard]["side"]))


@hot
def new_permission(state: State, shard: int) -> int:
    """A free half-line for a permission; 0 if there is none."""
    return _new_row(state, shard, PERMISSION)


@hot
def free_line(state: State, line: int) -> None:
    """Give a session's line back; its timer must be off."""
    extent = state.extents[line // EXTENT_LINES]
    _push(state, whole(extent["shard"]), whole(extent["klass"]), line)


@hot
def free_half(state: State, half: int) -> None:
    """Give a half-line back."""
    extent = state.extents[half // MAPPINGS_EACH_EXTENT]
    _push(state, whole(extent["shard"]), whole(extent["klass"]), half)


@hot
def rows_each(klass: int) -> int:
    """Rows of an extent of a class."""
    return MAPPINGS_EACH_EXTENT if not in_lines(klass) else EXTENT_LINES // lines_each(klass)


@hot
def in_lines(klass: int) -> bool:
    """Whether rows of a class are sessions, named by their (first) line; those of the others are half-lines."""
    return klass < MAPPING_0 or klass >= SESSION6_0


@hot
def kind_at(state: State, line: int) -> int:
    """Kind of the rows where a line is."""
    return whole(state.extents[line // EXTENT_LINES]["kind"])


@hot
def lines_each(klass: int) -> int:
    """How far the numbers of two rows lie apart: lines of a session; half-lines follow each other."""
    return 2 if klass >= SESSION6_0 else 1


@hot
def wire_row(state: State, half: int) -> tuple[int, int, int]:
    """(shard, class, row within the class) of the row at a half-line (a session's is twice its line)."""
    extent = state.extents[half // MAPPINGS_EACH_EXTENT]
    klass, offset = whole(extent["klass"]), half % MAPPINGS_EACH_EXTENT
    if in_lines(klass):
        offset = (offset >> 1) // lines_each(klass)
    return whole(extent["shard"]), klass, whole(extent["ordinal"]) * rows_each(klass) + offset


@hot
def local_row(state: State, shard: int, klass: int, row: int) -> int:
    """Line (sessions) or half-line (others) of a row of a class; 0 if this core has no extent for it."""
    each = rows_each(klass)
    ordinal = row // each
    if row < 0 or ordinal >= whole(state.slabs[shard, klass]["extents"]):
        return 0
    return (whole(state.extent_of[shard, klass, ordinal]) * each + row % each) * lines_each(klass)


@hot
def take(state: State, shard: int, klass: int, row: int) -> int:
    """Take one certain row of a class, which must not be alive; its line or half-line, 0 if no extent is left for it."""
    slab, each = state.slabs[shard, klass], rows_each(klass)
    missing = row // each + 1 - whole(slab["extents"])
    if missing > len(state.extents) - max(whole(state.core[0]["next_extent"]), 1):
        return 0
    for _ in range(missing):
        _grow(state, shard, klass)
    local = local_row(state, shard, klass, row)
    fresh = whole(slab["fresh"])
    if fresh <= local < whole(slab["fresh_end"]):
        _push_range(state, shard, klass, fresh, local)
        slab["fresh"] = local + lines_each(klass)
    else:
        _unlink(state, shard, klass, local)
    return local


@hot
def _new_row(state: State, shard: int, klass: int) -> int:
    slab = state.slabs[shard, klass]
    row = whole(slab["free"])
    if row:
        _unlink(state, shard, klass, row)
        return row
    if slab["fresh"] == slab["fresh_end"] and not _grow(state, shard, klass):
        return 0
    row = whole(slab["fresh"])
    slab["fresh"] = row + lines_each(klass)
    return row


@hot
def _push(state: State, shard: int, klass: int, row: int) -> None:
    slab = state.slabs[shard, klass]
    head = whole(slab["free"])
    _link(state, klass, row, head, 0)
    if head:
        _set_previous(state, klass, head, row)
    slab["free"] = row


@hot
def _push_range(state: State, shard: int, klass: int, first: int, end: int) -> None:
    for row in range(first, end, lines_each(klass)):
        _push(state, shard, klass, row)


@hot
def _unlink(state: State, shard: int, klass: int, row: int) -> None:
    if in_lines(klass):
        following, previous = whole(state.links[row]["next"]), whole(state.links[row]["previous"])
    else:
        following, previous = whole(state.mappings[row]["account"]), whole(state.mappings[row]["remote_address"])
    if previous == 0:
        state.slabs[shard, klass]["free"] = following
    elif in_lines(klass):
        state.links[previous]["next"] = following
    else:
        state.mappings[previous]["account"] = following
    if following:
        _set_previous(state, klass, following, previous)


@hot
def _link(state: State, klass: int, row: int, following: int, previous: int) -> None:
    """A free half-line keeps the next of its list where a living one keeps its account, and the previous in its remote."""
    if in_lines(klass):
        state.links[row]["next"] = following
        state.links[row]["previous"] = previous
    else:
        state.mappings[row]["account"] = following
        state.mappings[row]["remote_address"] = previous


@hot
def _set_previous(state: State, klass: int, row: int, previous: int) -> None:
    if in_lines(klass):
        state.links[row]["previous"] = previous
    else:
        state.mappings[row]["remote_address"] = previous


@hot
def _grow(state: State, shard: int, klass: int) -> bool:
    """Give a class one more extent; what was fresh of the one before goes to the free list. False if no extent is left."""
    core, slab = state.core[0], state.slabs[shard, klass]
    extent = max(whole(core["next_extent"]), 1)
    if extent >= len(state.extents):
        return False
    _push_range(state, shard, klass, whole(slab["fresh"]), whole(slab["fresh_end"]))
    ordinal = whole(slab["extents"])
    row = state.extents[extent]
    row["shard"] = shard
    row["klass"] = klass
    row["ordinal"] = ordinal
    row["kind"] = _kind(klass)
    state.extent_of[shard, klass, ordinal] = extent
    slab["fresh"] = extent * rows_each(klass) * lines_each(klass)
    slab["fresh_end"] = (extent + 1) * rows_each(klass) * lines_each(klass)
    slab["extents"] = ordinal + 1
    core["next_extent"] = extent + 1  # last: until then the extent is nobody's (see recovery)
    return True


@hot
def _kind(klass: int) -> int:
    """Kind of the rows of a class."""
    if klass >= SESSION6_0:
        return FIREWALL_SESSION6
    if klass < MAPPING_0:
        return NAT_SESSION
    return NAT_PERMISSION if klass == PERMISSION else NAT_MAPPING
