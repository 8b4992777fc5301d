"""Digests and copies of slab ranges: two sound copies agree, one changed bit is found, whatever changes meanwhile."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import digest, journal
from shards.digest import BITMAP_LINES
from shards.state import (
    EXTENT_LINES,
    FREE,
    MAPPING,
    NAT_MAPPING,
    NAT_PERMISSION,
    NAT_SESSION,
    SESSION,
    Array,
    Sizes,
    State,
    new_state,
)

LINES = 2 * BITMAP_LINES
MAPPINGS = EXTENT_LINES  # first line of the extent of mappings
KEYS = np.uint64(0x0123456789ABCDEF), np.uint64(0xFEDCBA9876543210)
NONE: Array = np.zeros(LINES * 2 // 64, np.uint64)  # left out
FREE_TO_DIFFER = {
    "sessions": {"expiry", "created", "packets", "rules", "inward", "outward"},
    "mappings": {"account", "sessions"},
}
COMPARED = [
    (rows, field)
    for rows, dtype in (("sessions", SESSION), ("mappings", MAPPING))
    for field in dtype.names or ()
    if field not in FREE_TO_DIFFER[rows]
]


def copy(shard: int = 0) -> State:
    """A core's copy: the same rows in the first lines of two extents, about half of them alive; what may differ does."""
    state = new_state(Sizes(2, 64, 1, 1, 1, 1, 1, 1, 1, 1, 1, 3, 1, 2))
    state.extents["kind"], state.extents["shard"] = [NAT_SESSION, NAT_MAPPING], shard
    content = np.random.default_rng(1)
    for first in (0, MAPPINGS):
        state.words[first * 8 : (first + LINES) * 8] = content.integers(0, 2**64, LINES * 8, np.uint64)
    state.sessions["kind"][:LINES] = content.choice([FREE, NAT_SESSION], LINES)
    state.sessions["shard"][:LINES] = shard
    state.mappings["kind"][2 * MAPPINGS :][: 2 * LINES] = content.choice([FREE, NAT_MAPPING, NAT_PERMISSION], 2 * LINES)
    for rows, first in (("sessions", 0), ("mappings", 2 * MAPPINGS)):
        for field in FREE_TO_DIFFER[rows]:
            getattr(state, rows)[field][first:][: 2 * LINES] = np.random.default_rng().integers(0, 2**16)
    return state


def rows_of(state: State, first: int, left_out: Array = NONE, keys: tuple[np.uint64, np.uint64] = KEYS) -> Array:
    """Digests of the half-lines of a range; their sum is what the walk says it is."""
    rows = np.full(2 * LINES, 7, np.uint64)
    total = digest.digest(state, *keys, first, first + LINES, left_out, rows)
    assert int(total) == int(rows.sum())
    assert int(total) == int(digest.digest(state, *keys, first, first + LINES, left_out, rows[:0]))
    return rows


def alive(state: State) -> list[tuple[str, int]]:
    """Rows that are compared, by name of their array and index in it."""
    mappings = np.flatnonzero(state.mappings["kind"][2 * MAPPINGS : 2 * (MAPPINGS + LINES)] == NAT_MAPPING) + 2 * MAPPINGS
    sessions = np.flatnonzero(state.sessions["kind"][:LINES] == NAT_SESSION)
    return [("sessions", int(line)) for line in sessions] + [("mappings", int(half)) for half in mappings]


def half_of(rows: str, index: int) -> int:
    """Half-line of a row."""
    return 2 * index if rows == "sessions" else index


@pytest.mark.parametrize("first", [0, MAPPINGS])
def test_two_sound_copies_agree_row_by_row(first: int) -> None:
    ours, theirs = copy(shard=1), copy(shard=2)
    assert rows_of(ours, first).tolist() == rows_of(theirs, first).tolist()
    living = {half_of(*row) - 2 * first for row in alive(ours) if (half_of(*row) >= 2 * MAPPINGS) == bool(first)}
    assert set(np.flatnonzero(rows_of(ours, first)).tolist()) == living
    assert rows_of(ours, first, keys=(KEYS[0], KEYS[1] ^ np.uint64(1))).tolist() != rows_of(ours, first).tolist()


@pytest.mark.parametrize(("rows", "field"), COMPARED)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_one_planted_divergence_is_found_and_where(rows: str, field: str, data: st.DataObject) -> None:
    ours, theirs = copy(), copy()
    _, index = data.draw(st.sampled_from([row for row in alive(ours) if row[0] == rows]))
    value = int(getattr(theirs, rows)[index][field])
    bit = 1 << data.draw(st.integers(0, 8 * getattr(theirs, rows).dtype[field].itemsize - 1))
    getattr(theirs, rows)[index][field] = value ^ bit
    first = 0 if rows == "sessions" else MAPPINGS
    differing = np.flatnonzero(rows_of(ours, first) != rows_of(theirs, first)) + 2 * first
    assert differing.tolist() == [half_of(rows, index)]


def test_rows_that_changed_places_are_two_differences() -> None:
    ours, theirs = copy(), copy()
    (_, one), (_, other) = alive(ours)[:2]
    theirs.sessions[[one, other]] = theirs.sessions[[other, one]]
    assert np.flatnonzero(rows_of(ours, 0) != rows_of(theirs, 0)).tolist() == [2 * one, 2 * other]
    whole = [int(digest.digest(state, *KEYS, 0, LINES, NONE, NONE[:0])) for state in (ours, theirs)]
    assert whole[0] != whole[1]  # a sum, but of digests that know their number


def test_pieces_in_any_order_make_the_whole_even_across_extents() -> None:
    state = copy()
    begin, end = MAPPINGS - BITMAP_LINES, MAPPINGS + BITMAP_LINES
    state.sessions["kind"][begin : begin + 5] = NAT_SESSION
    whole = int(digest.digest(state, *KEYS, begin, end, NONE, NONE[:0]))
    upper = int(digest.digest(state, *KEYS, MAPPINGS, end, NONE, NONE[:0]))
    lower = int(digest.digest(state, *KEYS, begin, MAPPINGS, NONE, NONE[:0]))
    assert lower and upper and whole == (upper + lower) % 2**64


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_what_changes_during_the_walk_is_left_out_and_the_rest_compared(data: st.DataObject) -> None:
    """Rows change on the primary between pieces; the journal marks them; the backup leaves out what the primary does."""
    primary, backup = copy(), copy()
    living = [index for rows, index in alive(primary) if rows == "sessions"]
    changing = data.draw(st.lists(st.sampled_from(living), unique=True, max_size=10))
    planted = data.draw(st.sampled_from([line for line in living if line not in changing]))
    backup.sessions[planted]["external_port"] ^= 1
    found = []
    for piece in (0, BITMAP_LINES):
        for line in changing:  # before this piece or after it: only what it was at its instant counts
            primary.sessions[line]["state"] ^= data.draw(st.integers(1, 7))
            journal.mark(primary, 2 * line)
        left_out = primary.dirty[2 * piece // 64 : 2 * (piece + BITMAP_LINES) // 64].copy()
        ours, theirs = (np.zeros(2 * BITMAP_LINES, np.uint64) for _ in range(2))
        sums = [
            int(digest.digest(state, *KEYS, piece, piece + BITMAP_LINES, left_out, rows))
            for state, rows in ((primary, ours), (backup, theirs))
        ]
        assert (sums[0] != sums[1]) == (piece <= planted < piece + BITMAP_LINES)
        found += (np.flatnonzero(ours != theirs) + 2 * piece).tolist()
    assert found == [2 * planted]


# --- copies ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [2, 3, 7, 1000])
def test_copies_in_pieces_carry_every_living_row_once(room: int) -> None:
    state, other = copy(), new_state(Sizes(2, 64, 1, 1, 1, 1, 1, 1, 1, 1, 1, 3, 1, 2))
    other.extents[:] = state.extents
    words, halves, carried = np.zeros((room, 8), np.uint64), np.zeros(room, np.int64), []
    for first, width in ((0, 8), (MAPPINGS, 4)):
        line = first
        while line < first + LINES:
            count, line = digest.copy_living(state, line, first + LINES, words, halves)
            for half, row in zip(halves[:count].tolist(), words[:count], strict=True):
                other.words[half * 4 : half * 4 + width] = row[:width]
                carried.append(half)
    assert carried == [half_of(*row) for row in alive(state)]
    for first in (0, MAPPINGS):
        assert rows_of(other, first).tolist() == rows_of(state, first).tolist()
