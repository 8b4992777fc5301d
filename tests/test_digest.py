"""Digests of two copies of a shard: sound ones agree row by row, one changed field is found, whatever changes meanwhile."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from bench.verify import FIELDS, OWN
from shards import digest, gather, invariants, journal, slabs, tcp
from shards.state import MAPPING_0, PASSIVE, SESSION_0, Array, State
from tests.frames import address
from tests.fuzz import RICH, Traffic, bed
from tests.pair import EPOCH
from tests.twins import KEYS, Twins, differences, mapped

NONE: Array = np.zeros(1, np.uint64)  # of 64 rows


@pytest.fixture(scope="module")
def twins() -> Twins:
    """Two copies with some traffic behind them; whoever changes something, changes it back."""
    made = Twins(bed(RICH), EPOCH)
    made.one.resolve(*range(address("192.0.2.0"), address("192.0.3.0")))
    traffic = Traffic(5, made.one.bed, lambda: mapped(made.one.state))
    for burst in range(30):
        made.one.receive(traffic.burst(64), EPOCH + 900 * burst)
        made.one.resolve()
        made.one.again(EPOCH + 900 * burst)
    made.settle(EPOCH + 27_000)
    made.check()
    return made


def compared_rows(state: State, rows: str) -> list[int]:
    """Lines or half-lines of rows that are compared."""
    if rows == "mappings":
        found: list[int] = invariants.halves(state).tolist()
        return found
    return [int(line) for line in invariants.lines(state) if not tcp.half_open(int(state.sessions[line]["state"]))]


def wire(state: State, rows: str, local: int) -> tuple[int, int]:
    """Class and row, as all cores name it."""
    _, klass, row = slabs.wire_row(state, local if rows == "mappings" else 2 * local)
    return klass, row


def test_enough_is_compared_to_mean_something(twins: Twins) -> None:
    assert len(compared_rows(twins.other.state, "sessions")) > 20 and len(compared_rows(twins.other.state, "mappings")) > 60


@pytest.mark.parametrize(("rows", "field"), FIELDS)
def test_one_planted_divergence_is_found_and_where_100_of_100(twins: Twins, rows: str, field: str) -> None:
    """One bit of one field of one row of the copy; what it is, is drawn."""
    dice = random.Random(f"{rows} {field}")
    array: Any = getattr(twins.other.state, rows)
    for _ in range(100):
        local = dice.choice(compared_rows(twins.other.state, rows))
        before = array[local][field]
        array[local][field] = int(before) ^ 1 << dice.randrange(8 * array.dtype[field].itemsize)
        klass, row = wire(twins.other.state, rows, local)
        ours, theirs = (rows_of(core.state, klass, row // 64 * 64) for core in (twins.one, twins.other))
        array[local][field] = before
        assert np.flatnonzero(ours != theirs).tolist() == [row % 64]
    assert differences(twins.one.state, twins.other.state) == []


@pytest.mark.parametrize(("rows", "field"), [(rows, field) for rows, fields in OWN.items() for field in sorted(fields)])
def test_what_is_each_core_s_own_may_differ(twins: Twins, rows: str, field: str) -> None:
    array: Any = getattr(twins.other.state, rows)
    living = compared_rows(twins.other.state, rows)
    array[field][living] ^= 0x55
    found = differences(twins.one.state, twins.other.state)
    array[field][living] ^= 0x55
    assert found == []


def test_a_row_that_is_missing_or_one_too_many_is_found(twins: Twins) -> None:
    for core in (twins.one, twins.other):
        line = compared_rows(core.state, "sessions")[3]
        core.state.sessions[line]["kind"] = 0
        assert differences(twins.one.state, twins.other.state) == [wire(core.state, "sessions", line)]
        core.state.sessions[line]["kind"] = 1


def test_rows_that_changed_places_are_two_differences(twins: Twins) -> None:
    state = twins.other.state
    one, other = compared_rows(state, "sessions")[:2]
    state.sessions[[one, other]] = state.sessions[[other, one]]
    found = differences(twins.one.state, state)
    assert found == sorted(wire(state, "sessions", line) for line in (one, other))
    assert total(twins.one.state) != total(state)  # a sum, but of digests that know their number
    state.sessions[[one, other]] = state.sessions[[other, one]]


def total(state: State, first: int = 0, end: int = 512, keys: tuple[np.uint64, np.uint64] = KEYS) -> int:
    """Sum of a range of sessions."""
    return int(digest.digest(state, 0, SESSION_0, *keys, first, end, np.zeros(8, np.uint64), np.zeros(0, np.uint64)))


def test_pieces_in_any_order_make_the_whole_and_the_key_matters(twins: Twins) -> None:
    state = twins.one.state
    pieces = [total(state, first, first + 64) for first in range(448, -1, -64)]
    assert sum(pieces) % 2**64 == total(state) == total(twins.other.state)
    assert total(state, keys=(KEYS[0], KEYS[1] ^ np.uint64(1))) != total(state)


def test_rows_beyond_what_a_copy_spans_are_as_if_dead(twins: Twins) -> None:
    assert total(twins.one.state, 0, 512) == total(twins.one.state, 0, 100_000 // 64 * 64)


def test_what_changes_during_the_walk_is_left_out_and_the_rest_compared(twins: Twins) -> None:
    """Rows change on the primary between pieces; the journal marks them; the backup leaves out what the primary does."""
    primary, backup = twins.one.state, twins.other.state
    living, dice = compared_rows(primary, "sessions"), random.Random(1)
    changing = dice.sample(living, 10)
    before = primary.sessions["packets"].copy(), primary.sessions["external_port"][changing].copy()
    planted = next(line for line in living if line not in changing)
    copy = slabs.local_row(backup, 0, *wire(primary, "sessions", planted))
    backup.sessions[copy]["external_port"] ^= 1
    found: list[int] = []
    for first in range(0, 512, 64):
        for line in changing:
            primary.sessions[line]["external_port"] ^= dice.randrange(1, 9)
            journal.mark(primary, 2 * line)
        left_out = np.zeros(1, np.uint64)
        digest.unsettled(primary, 0, SESSION_0, first, first + 64, left_out)
        ours, theirs = (rows_of(state, SESSION_0, first, left_out) for state in (primary, backup))
        found += (np.flatnonzero(ours != theirs) + first).tolist()
    assert found == [wire(primary, "sessions", planted)[1]]
    backup.sessions[copy]["external_port"] ^= 1
    primary.sessions["packets"], primary.sessions["external_port"][changing] = before
    gather.clean(primary, 0, 0, len(primary.extents))
    assert differences(primary, backup) == []


def rows_of(state: State, klass: int, first: int, left_out: Array = NONE) -> Array:
    """Digests of 64 rows."""
    rows = np.full(64, 7, np.uint64)
    digest.digest(state, 0, klass, *KEYS, first, first + 64, left_out, rows)
    return rows


def test_rows_that_were_never_sent_are_left_out_on_both_sides(twins: Twins) -> None:
    """A mapping whose life nobody was told of; the copy has none."""
    state = twins.one.state
    half = compared_rows(state, "mappings")[0]
    copy = slabs.local_row(twins.other.state, 0, *wire(state, "mappings", half))
    twins.other.state.mappings[copy]["kind"] = 0
    assert differences(state, twins.other.state) == [wire(state, "mappings", half)]
    state.shipped[half >> 6] ^= np.uint64(1) << np.uint64(half & 63)
    assert differences(state, twins.other.state) == []
    state.shipped[half >> 6] ^= np.uint64(1) << np.uint64(half & 63)
    twins.other.state.mappings[copy]["kind"] = 2
    assert wire(state, "mappings", half)[0] == MAPPING_0 and twins.other.state.shards[0]["role"] == PASSIVE
