"""Rows and their numbers: what is taken is nobody else's, a certain row can be had, two cores have the same numbers."""

from __future__ import annotations

import random

import pytest

from shards import slabs
from shards.state import (
    EXTENT_LINES,
    FREE,
    MAPPING_0,
    MAPPING_1,
    PERMISSION,
    SESSION_0,
    SESSION_1,
    Sizes,
    State,
    new_state,
)

SIZES = Sizes(**{**dict.fromkeys(Sizes._fields, 2), "extents": 9, "buckets": 4, "neighbours": 4})


@pytest.fixture
def state() -> State:
    return new_state(SIZES)


def test_none_is_nobodys_row(state: State) -> None:
    """Row 0 means none everywhere, so the first extent is never used, and every class begins with its row 0 elsewhere."""
    line, half, permission = slabs.new_line(state, 0), slabs.new_half(state, 0), slabs.new_permission(state, 0)
    assert line == EXTENT_LINES and half == 4 * EXTENT_LINES and permission == 6 * EXTENT_LINES
    assert slabs.wire_row(state, 2 * line) == (0, SESSION_0, 0)
    assert slabs.wire_row(state, half) == (0, MAPPING_0, 0)
    assert slabs.wire_row(state, permission) == (0, PERMISSION, 0)


def test_sides_have_rows_of_their_own(state: State) -> None:
    first = slabs.new_line(state, 1), slabs.new_half(state, 1)
    state.shards[1]["side"] = 1
    second = slabs.new_line(state, 1), slabs.new_half(state, 1)
    assert [slabs.wire_row(state, 2 * row)[1] for row in (first[0], second[0])] == [SESSION_0, SESSION_1]
    assert [slabs.wire_row(state, row)[1] for row in (first[1], second[1])] == [MAPPING_0, MAPPING_1]


def test_numbers_are_the_same_where_extents_are_others(state: State) -> None:
    """The second core gave an extent to another shard first; row 3 of shard 1 is still its row 3."""
    other = new_state(SIZES)
    slabs.new_line(other, 0)
    for _ in range(3):
        slabs.new_line(state, 1)
    line = slabs.new_line(state, 1)
    shard, klass, row = slabs.wire_row(state, 2 * line)
    copy = slabs.take(other, shard, klass, row)
    assert copy != line and slabs.wire_row(other, 2 * copy) == (shard, klass, row) == (1, SESSION_0, 3)
    assert slabs.local_row(other, shard, klass, row) == copy and slabs.local_row(other, shard, klass, EXTENT_LINES) == 0


@pytest.mark.parametrize("klass", [SESSION_1, MAPPING_0])
def test_a_certain_row_in_any_order(state: State, klass: int) -> None:
    """Against a set: rows taken one by one, given back, taken by number; never one twice, none lost."""
    state.shards[0]["side"] = int(klass == SESSION_1)
    new, free = (slabs.new_line, slabs.free_line) if klass == SESSION_1 else (slabs.new_half, slabs.free_half)
    dice, alive = random.Random(klass), set[int]()
    for _ in range(3000):
        action = dice.random()
        if action < 0.4:
            row = new(state, 0)
        elif action < 0.7 or not alive:
            wanted = dice.randrange(600)
            if slabs.local_row(state, 0, klass, wanted) in alive:
                continue
            row = slabs.take(state, 0, klass, wanted)
            assert row == slabs.local_row(state, 0, klass, wanted)
        else:
            row = dice.choice(sorted(alive))
            alive.remove(row)
            free(state, row)
            continue
        assert row and row not in alive
        alive.add(row)
    fresh = int(state.slabs[0, klass]["fresh"])
    first = slabs.local_row(state, 0, klass, 0)
    left = {new(state, 0) for _ in range(fresh - first - len(alive))}
    assert len(left) == fresh - first - len(alive) and not left & alive
    assert int(state.slabs[0, klass]["free"]) == 0 and new(state, 0) == fresh


def test_a_row_of_an_extent_further_on(state: State) -> None:
    """Extents between are taken as well, and what they hold is free."""
    row = slabs.take(state, 0, SESSION_0, 2 * EXTENT_LINES + 5)
    assert slabs.wire_row(state, 2 * row) == (0, SESSION_0, 2 * EXTENT_LINES + 5)
    taken = {slabs.new_line(state, 0) for _ in range(2 * EXTENT_LINES + 5)}
    assert len(taken) == 2 * EXTENT_LINES + 5 and row not in taken and 0 not in taken
    assert all(state.sessions[line]["kind"] == FREE for line in (min(taken), max(taken)))


def test_no_extent_left_is_told_and_changes_nothing(state: State) -> None:
    assert slabs.take(state, 0, SESSION_0, 9 * EXTENT_LINES) == 0
    assert slabs.take(state, 0, SESSION_0, 1 << 40) == 0
    assert slabs.take(state, 0, SESSION_0, 8 * EXTENT_LINES) == 0  # one more than there are
    assert not state.slabs["extents"].any() and state.core[0]["next_extent"] == 0
    assert slabs.take(state, 0, SESSION_0, 8 * EXTENT_LINES - 1)
    full = state.slabs.tobytes()
    assert slabs.take(state, 1, MAPPING_1, 0) == 0 and slabs.new_line(state, 1) == 0
    assert state.slabs.tobytes() == full
