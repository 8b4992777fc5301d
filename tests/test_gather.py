"""What is told of a shard: every change once and in order, nothing twice, nothing of other shards, however small the pieces."""

from __future__ import annotations

import numpy as np
import pytest

from shards import gather, invariants, journal, sessions, slabs, tcp
from shards.records import HOLD, MAPPING_RECORD, SESSION_RECORD, TOMBSTONE
from shards.state import (
    CHUNK_PORTS,
    EXTENT_LINES,
    MAPPING_0,
    MAPPING_1,
    SESSION6_0,
    SESSION6_1,
    SESSION_0,
    SESSION_1,
    TOMBSTONES,
    UDP,
    Array,
    Sizes,
    State,
    new_state,
)
from tests.bare_core import Core
from tests.fuzz import bed
from tests.pair import EPOCH
from tests.test_apply import delete_all
from tests.twins import PIECE, PLAIN, SNAPSHOT, Sender, Twins, ready, say

HOSTS = 30
SIX: dict[int, list[int]] = {SESSION6_0: [], SESSION6_1: []}  # nobody has IPv6 here


@pytest.fixture
def core() -> Core:
    """One whose subscribers have a session each."""
    made = Core(bed(PLAIN), EPOCH)
    ready(made)
    for host in range(2, 2 + HOSTS):
        say(made, f"udp 100.64.0.{host}:4000 > 198.51.100.1:53", EPOCH)
    return made


def drained(
    state: State, room: int = 100, everything: bool = False, threshold: int = 0, now: int = EPOCH
) -> tuple[Array, Array]:
    """Records of one drain: (sessions, mappings)."""
    told, mapped = np.zeros(room, SESSION_RECORD), np.zeros(room, MAPPING_RECORD)
    counts = gather.drain(state, 0, everything, threshold, now, told, mapped)
    return told[: counts[0]], mapped[: counts[1]]


def test_a_drain_tells_each_change_once(core: Core) -> None:
    told, mapped = drained(core.state)
    assert len(told) == len(mapped) == HOSTS and gather.unsent(core.state, 0) == 0
    assert sorted(told["row"].tolist()) == sorted(mapped["row"].tolist()) == list(range(HOSTS))
    assert [len(records) for records in drained(core.state)] == [0, 0]
    lines = invariants.lines(core.state)[[3, 5]]
    for line in lines.tolist() * 3:
        journal.mark(core.state, 2 * line)
    assert gather.unsent(core.state, 0) == 2
    told, mapped = drained(core.state)
    assert len(mapped) == 0 and told["row"].tolist() == [slabs.wire_row(core.state, 2 * int(line))[2] for line in lines]
    assert not core.state.dirty.any() and not core.state.summary.any()


@pytest.mark.parametrize("room", [1, 2, 7, HOSTS - 1, HOSTS, HOSTS + 1])
def test_however_little_room_there_is_all_is_told_and_mappings_before_their_sessions(core: Core, room: int) -> None:
    known: set[int] = set()
    rows: list[int] = []
    for _ in range(3 * HOSTS):
        told, mapped = drained(core.state, room)
        known |= set(mapped["row"].tolist())
        assert set(told["mapping_row"].tolist()) <= known
        rows += told["row"].tolist()
    assert sorted(rows) == list(range(HOSTS))


def test_a_record_says_what_the_row_says(core: Core) -> None:
    told, mapped = drained(core.state, now=EPOCH + 5_700)
    rows = core.state.sessions[invariants.lines(core.state)]
    for field in ("internal_address", "remote_address", "external_address", "internal_port", "remote_port", "external_port"):
        assert told[field].tolist() == rows[field].tolist()
    assert set(told["age_s"].tolist()) == {5} and set(told["remaining"].tolist()) == {300_000 - 5_700}
    assert set(told["protocol"].tolist()) == {UDP} and set(told["state"].tolist()) == {tcp.STREAM}
    assert told["generation"].tolist() == [1] * HOSTS == mapped["generation"].tolist()
    assert set(mapped["block"].tolist()) == {1} and not told["flags"].any() and not mapped["flags"].any()


def test_other_shards_are_not_touched(core: Core) -> None:
    before = core.state.dirty.copy()
    told, mapped = np.zeros(9, SESSION_RECORD), np.zeros(9, MAPPING_RECORD)
    twins = Twins(bed(PLAIN), EPOCH)
    line = slabs.new_line(twins.other.state, 1)
    journal.mark(twins.other.state, 2 * line)
    assert gather.drain(twins.other.state, 0, True, 0, EPOCH, told, mapped) == (0, 0)
    assert twins.other.state.dirty.any() and gather.unsent(twins.other.state, 1) == 1
    gather.clean(twins.other.state, 0, 0, len(core.state.extents))
    assert gather.unsent(twins.other.state, 1) == 1
    gather.clean(core.state, 0, 0, len(core.state.extents))
    assert before.any() and not core.state.dirty.any() and not core.state.summary.any()


def test_half_open_connections_are_told_of_when_they_open_or_when_everything_is(core: Core) -> None:
    drained(core.state)
    say(core, "tcp 100.64.0.2:5000 > 198.51.100.1:80 syn", EPOCH)
    told, mapped = drained(core.state)
    assert len(told) == 0 and len(mapped) == 1
    endpoint = "203.0.113.{}:{}".format(int(mapped[0]["external_address"]) & 1, mapped[0]["external_port"])
    assert say(core, f"tcp 198.51.100.1:80 > {endpoint} syn ack", EPOCH, "outside").verdict == "forwarded_in"
    assert tcp.STATES[drained(core.state)[0][0]["state"]] == "established"
    say(core, "tcp 100.64.0.3:5000 > 198.51.100.1:80 syn", EPOCH)
    assert tcp.STATES[drained(core.state, everything=True)[0][0]["state"]] == "init"


def test_a_drain_full_of_what_does_not_travel_is_not_the_last(core: Core) -> None:
    drained(core.state)
    for port in range(5000, 5006):
        say(core, f"tcp 100.64.0.2:{port} > 198.51.100.1:80 syn", EPOCH)
    say(core, "udp 100.64.0.2:6000 > 198.51.100.1:80", EPOCH)
    assert [[len(records) for records in drained(core.state, 7)] for _ in range(2)] == [[0, 7], [1, 0]]
    for line in invariants.lines(core.state)[-7:].tolist():
        journal.mark(core.state, 2 * line)
    counts = []
    while gather.unsent(core.state, 0):
        counts.append(len(drained(core.state, 2)[0]))
    assert counts == [0, 0, 0, 1]


def test_young_sessions_travel_when_they_are_old_enough(core: Core) -> None:
    told, mapped = drained(core.state, threshold=5)
    assert len(told) == 0 and len(mapped) == HOSTS
    assert sweep(core.state, EPOCH + 4_999) == [] and sweep(core.state, EPOCH + 5_000) == list(range(HOSTS))
    assert sweep(core.state, EPOCH + 6_000) == []  # they were sent


def sweep(state: State, now: int) -> list[int]:
    """Rows told of after the young have been looked at, in pieces."""
    row = 0
    while row != gather.END:
        row = gather.sweep_untold(state, 0, SESSION_0, row, False, 5, now, 7)
    return sorted(drained(state, threshold=5, now=now)[0]["row"].tolist())


def test_where_everything_is_to_travel_young_and_half_open_sessions_are_looked_for(core: Core) -> None:
    say(core, "tcp 100.64.0.9:4000 > 198.51.100.1:80 syn", EPOCH)
    drained(core.state, threshold=5)
    for everything, found in ((False, 0), (True, HOSTS + 1), (True, 0)):
        row = 0
        while row != gather.END:
            row = gather.sweep_untold(core.state, 0, SESSION_0, row, everything, 5, EPOCH, 7)
        assert len(drained(core.state, threshold=5, everything=everything)[0]) == found


def ends(state: State, number: int, room: int = 1000) -> tuple[list[tuple[int, int, int]], int]:
    """((class, row, generation) of tombstones, where to go on)."""
    out = np.zeros(room, TOMBSTONE)
    count, number = gather.tombstones(state, 0, number, out)
    assert count >= 0
    return [(int(end["klass"]), int(end["row"]), int(end["generation"])) for end in out[:count]], number


@pytest.mark.parametrize("room", [1, 3, 1000])
def test_only_what_was_sent_has_tombstones_and_a_session_has_its_own_before_its_mapping_s(core: Core, room: int) -> None:
    delete_half = invariants.lines(core.state)[::2].tolist()
    for line in delete_half:
        sessions.delete(core.state, line, EPOCH)
    assert ends(core.state, 0) == ([], 0)
    rows = drained(core.state)[0]["row"].tolist()
    delete_all(core.state, EPOCH)
    told: list[tuple[int, int, int]] = []
    number = 0
    while number != int(core.state.core[0]["tombstones"]):
        some, number = ends(core.state, number, room)
        told += some
    assert [klass for klass, _, _ in told] == [SESSION_0, MAPPING_0] * len(rows)
    assert sorted(row for klass, row, _ in told if klass == SESSION_0) == sorted(rows)
    assert {generation for _, _, generation in told} == {1}


def test_a_ring_that_was_lapped_says_so(core: Core) -> None:
    drained(core.state)
    delete_all(core.state, EPOCH)
    last = 2 * HOSTS
    core.state.core[0]["tombstones"] = TOMBSTONES
    out = np.zeros(4, TOMBSTONE)
    assert gather.tombstones(core.state, 0, 0, out)[0] == 4
    core.state.core[0]["tombstones"] = TOMBSTONES + 1
    assert gather.tombstones(core.state, 0, 0, out) == (gather.LAPPED, TOMBSTONES + 1)
    core.state.core[0]["tombstones"] = 5  # counts modulo 2**32
    assert ends(core.state, 2**32 - 40)[1] == 5 and last > 45


@pytest.mark.parametrize("room", [1, 4, 100])
def test_a_snapshot_in_pieces_has_every_living_row_once(core: Core, room: int) -> None:
    found: dict[int, list[int]] = {}
    for klass in SNAPSHOT:
        row = 0
        while row != gather.END:
            out = np.zeros(room, MAPPING_RECORD if klass in (MAPPING_0, MAPPING_1) else SESSION_RECORD)
            count, row = gather.snapshot(core.state, 0, klass, row, False, EPOCH, out)
            found[klass] = found.get(klass, []) + out["row"][:count].tolist()
    assert found == {MAPPING_0: list(range(HOSTS)), MAPPING_1: [], SESSION_0: list(range(HOSTS)), SESSION_1: []} | SIX
    assert gather.unsent(core.state, 0) == 2 * HOSTS  # others may be waiting for these


def test_a_piece_of_a_snapshot_looks_at_no_more_rows_than_it_may(core: Core) -> None:
    slabs.take(core.state, 0, SESSION_0, 40_000)
    out, row, pieces = np.zeros(100, SESSION_RECORD), 0, 0
    drained(core.state)
    while row != gather.END:
        before = row
        count, row = gather.snapshot(core.state, 0, SESSION_0, row, False, EPOCH, out)
        assert row == gather.END or row - before <= gather.ROWS_AT_ONCE
        assert count == (HOSTS if pieces == 0 else 0)
        pieces += 1
    assert pieces == 3


def test_a_shard_is_made_clean_by_so_many_extents_at_a_time(core: Core) -> None:
    slabs.take(core.state, 0, SESSION_0, EXTENT_LINES)
    journal.mark(core.state, slabs.local_row(core.state, 0, SESSION_0, EXTENT_LINES) << 1)
    cursor, left = 0, [gather.unsent(core.state, 0)]
    while cursor != gather.END:
        cursor = gather.clean(core.state, 0, cursor, 1)
        left.append(gather.unsent(core.state, 0))
    assert left == [2 * HOSTS + 1, HOSTS + 1, HOSTS, 0]  # sessions, in two extents, and mappings
    assert not core.state.dirty.any() and not core.state.summary.any()


def test_what_changes_behind_the_cursor_has_changed(core: Core) -> None:
    cursor = gather.clean(core.state, 0, 0, 1)
    journal.mark(core.state, slabs.local_row(core.state, 0, SESSION_0, 0) << 1)
    assert gather.clean(core.state, 0, cursor, 9) == gather.END and gather.unsent(core.state, 0) == 1


def test_no_piece_of_ports_at_rest_looks_at_more_chunks_than_it_may(core: Core) -> None:
    core.state.chunks["epoch"] = 0
    cursor, out = 0, np.zeros(64, HOLD)
    while cursor != gather.END:
        before = cursor
        count, cursor = gather.holds(core.state, 0, cursor, EPOCH, out)
        assert count == 0 and (cursor == gather.END or cursor - before <= gather.CHUNKS_AT_ONCE)
    assert gather.CHUNKS_AT_ONCE * CHUNK_PORTS <= 1 << 16


def test_a_session_whose_mapping_is_not_told_of_yet_waits_for_the_drain(core: Core) -> None:
    out = np.zeros(100, SESSION_RECORD)
    assert gather.snapshot(core.state, 0, SESSION_0, 0, False, EPOCH, out) == (0, gather.END)
    assert [len(records) for records in drained(core.state)] == [HOSTS, HOSTS]
    assert gather.snapshot(core.state, 0, SESSION_0, 0, False, EPOCH, out) == (HOSTS, gather.END)


def test_ports_at_rest_are_told_with_their_ages_while_they_rest(core: Core) -> None:
    delete_all(core.state, EPOCH)
    ports = {(int(external), int(port)) for _, external, port in np.argwhere(core.state.owners != 0)}
    assert rest(core.state, EPOCH + 30_000) == {(*port, 30) for port in ports} and len(ports) == HOSTS
    assert {age for _, _, age in rest(core.state, EPOCH + 120_000)} == {120}
    assert rest(core.state, EPOCH + 121_000) == set()


def rest(state: State, now: int) -> set[tuple[int, int, int]]:
    """(external ordinal, port, seconds) of what is held down."""
    found, cursor = set(), 0
    while cursor != gather.END:
        out = np.zeros(64, HOLD)
        count, cursor = gather.holds(state, 0, cursor, now, out)
        assert np.all(out["space"][:count] == 2)
        found |= {(int(hold["address"]) & 1, int(hold["port"]), int(hold["age_s"])) for hold in out[:count]}
    return found


def test_liveness_is_a_bit_a_row_derived_from_its_expiry(core: Core) -> None:
    bits = np.full(1, 2**64 - 1, np.uint64)
    assert gather.refreshed(core.state, 0, SESSION_0, 0, EPOCH - 1, EPOCH, bits) == HOSTS
    assert int(bits[0]) == 2**HOSTS - 1
    assert gather.refreshed(core.state, 0, SESSION_0, 0, EPOCH + 1, EPOCH + 50, bits) == 0 and not bits.any()
    say(core, "udp 100.64.0.5:4000 > 198.51.100.1:53", EPOCH + 60)
    assert gather.refreshed(core.state, 0, SESSION_0, 0, EPOCH + 50, EPOCH + 100, bits) == 1 and int(bits[0]) == 1 << 3
    assert gather.refreshed(core.state, 0, SESSION_0, 64, EPOCH - 1, EPOCH, bits) == 0


def test_nothing_is_told_of_a_shard_that_has_nothing() -> None:
    state = new_state(Sizes(**{**dict.fromkeys(Sizes._fields, 2), "buckets": 4, "neighbours": 4}))
    assert [len(records) for records in drained(state)] == [0, 0]
    assert gather.rows(state, 0, SESSION_1) == gather.unsent(state, 0) == 0
    assert gather.snapshot(state, 0, SESSION_0, 0, True, 0, np.zeros(1, SESSION_RECORD)) == (0, gather.END)
    assert gather.sweep_untold(state, 0, SESSION_0, 0, False, 1, 0, 100) == gather.END


def test_a_lapped_sender_begins_anew_and_the_copy_is_right_again() -> None:
    twins = Twins(bed(PLAIN), EPOCH)
    ready(twins.one, twins.other)
    for host in range(2, 40):
        say(twins.one, f"udp 100.64.0.{host}:4000 > 198.51.100.1:53", EPOCH)
    twins.settle(EPOCH)
    delete_all(twins.one.state, EPOCH)
    twins.one.state.core[0]["tombstones"] += TOMBSTONES  # as if so many more had ended
    sender: Sender = twins.sender
    sender.changes(EPOCH)
    assert [frame.kind for frame in sender.way][:1] == ["begin"]
    twins.deliver(EPOCH)
    twins.check()
    assert len(invariants.living(twins.other.state)) == 0 and PIECE < 2 * 38
