"""Records that nobody would send: refused, counted, and whatever was taken leaves a sound state."""

from __future__ import annotations

import numpy as np
import pytest

from shards import apply, invariants, recovery, slabs
from shards.jit import PURE
from shards.records import HOLD, MAPPING_RECORD, SESSION_RECORD, TOMBSTONE
from shards.state import ACTIVE, MAPPING_0, PASSIVE, SESSION_0, Array, State
from tests.fuzz import bed
from tests.pair import EPOCH
from tests.test_apply import SEEDS, Life, delete_all, truth
from tests.twins import NOTHING_SEEN, PLAIN, Twins, mapped, ready, say


def a_life(seed: int) -> Life:
    life = Life("rich", seed)
    for _ in range(6):
        life.step()
    life.quiet()
    return life


RECORDS = {"mappings": MAPPING_RECORD, "sessions": SESSION_RECORD, "tombstones": TOMBSTONE, "holds": HOLD}


@pytest.mark.parametrize("kind", RECORDS)
@pytest.mark.parametrize("role", [PASSIVE, ACTIVE])
def test_random_bytes_change_nothing(kind: str, role: int) -> None:
    life = a_life(1)
    life.other.state.shards[0]["role"] = role
    noise = np.random.default_rng(1)
    before = truth(life.other.state)
    for _ in range(3 if PURE else 100):
        records = noise.integers(0, 256, 300 * RECORDS[kind].itemsize, np.uint8).view(RECORDS[kind])
        give(life.other.state, kind, records, life.now)
    assert truth(life.other.state) == before
    assert invariants.complaints(life.other.state) == []


def give(state: State, kind: str, records: Array, now: int) -> int:
    """Apply records that came as they may; how many were taken."""
    seen = () if kind == "holds" else (NOTHING_SEEN,)
    taken: int = getattr(apply, kind)(state, 0, records, len(records), *seen, now)
    return taken


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("role", [PASSIVE, ACTIVE])
def test_records_with_wrong_bits_are_refused_or_leave_a_sound_state(role: int, seed: int) -> None:
    life, noise = a_life(seed), np.random.default_rng(seed)
    state = life.other.state
    state.shards[0]["role"] = role
    life.twins.sender.snapshot(life.now)
    refused = 0
    for sent in life.twins.sender.way:
        if sent.kind not in RECORDS:
            continue
        records = np.repeat(sent.records, 1 if PURE else 3)
        raw = records.view(np.uint8).reshape(len(records), -1)
        for row in raw:
            row[noise.integers(len(row))] ^= 1 << noise.integers(8)
        refused += len(records) - give(state, sent.kind, records, life.now)
        told = [(half, int(state.mappings[half]["generation"])) for half in invariants.halves(state).tolist()]
        ends = np.zeros(len(told), TOMBSTONE)
        for end, (half, generation) in zip(ends, told, strict=True):
            _, end["klass"], end["row"] = slabs.wire_row(state, half)
            end["generation"] = generation ^ int(noise.integers(2))
        refused += len(ends) - give(state, "tombstones", ends, life.now)
        assert invariants.complaints(state) == []
    assert refused > 50


@pytest.mark.parametrize(
    "field",
    [
        ("klass", 4), ("klass", MAPPING_0), ("protocol", 47), ("state", 0), ("state", 99),
        ("row", 2**32 - 1), ("remaining", 2**32 - 1), ("flags", 1), ("internal_realm", 7), ("external_realm", 1 << 24),
        ("remote_address", 0), ("remote_address", 0x64400005), ("remote_address", 0xFFFFFFFF), ("internal_address", 0x0A000001),
        ("external_address", 0x08080808), ("external_port", 1), ("internal_port", 9),
    ],
)  # fmt: skip
def test_impossible_sessions_are_refused(field: tuple[str, int]) -> None:
    twins = Twins(bed(PLAIN), EPOCH)
    ready(twins.one, twins.other)
    say(twins.one, "udp 100.64.0.2:4000 > 198.51.100.1:53", EPOCH)
    twins.sender.changes(EPOCH)
    (mapping,), (session,) = ([sent for sent in twins.sender.way if sent.kind == kind] for kind in ("mappings", "sessions"))
    assert give(twins.other.state, "mappings", mapping.records, EPOCH) == 1
    before = truth(twins.other.state)
    wrong = session.records.copy()
    wrong[field[0]] = field[1]
    assert give(twins.other.state, "sessions", wrong, EPOCH) == 0 and truth(twins.other.state) == before
    assert give(twins.other.state, "sessions", session.records, EPOCH) == 1
    assert invariants.complaints(twins.other.state) == []


@pytest.mark.parametrize(
    "field",
    [
        ("klass", SESSION_0), ("klass", 9), ("protocol", 0), ("row", 2**32 - 1), ("flags", 1), ("internal_realm", 0),
        ("block", 9), ("internal_address", 0x0A000001), ("external_address", 0x08080808), ("external_port", 1),
    ],
)  # fmt: skip
def test_impossible_mappings_are_refused(field: tuple[str, int]) -> None:
    twins = Twins(bed(PLAIN), EPOCH)
    ready(twins.one, twins.other)
    say(twins.one, "udp 100.64.0.2:4000 > 198.51.100.1:53", EPOCH)
    twins.sender.changes(EPOCH)
    (mapping,) = (sent for sent in twins.sender.way if sent.kind == "mappings")
    before = truth(twins.other.state)
    wrong = mapping.records.copy()
    wrong[field[0]] = field[1]
    assert give(twins.other.state, "mappings", wrong, EPOCH) == 0 and truth(twins.other.state) == before


@pytest.mark.parametrize("block", [9, 60, 255])
def test_a_static_mapping_in_no_block_that_is_is_refused(block: int) -> None:
    twins = Twins(bed(PLAIN + "static tcp 203.0.113.0:8080 to 100.64.0.7:80"), EPOCH)
    ready(twins.one, twins.other)
    recovery.install_statics(twins.one.state, EPOCH)
    twins.sender.changes(EPOCH)
    (mapping,) = (sent for sent in twins.sender.way if sent.kind == "mappings")
    wrong = mapping.records.copy()
    wrong["block"] = block
    accounts = twins.other.state.accounts.tobytes()
    assert give(twins.other.state, "mappings", wrong, EPOCH) == 0
    assert give(twins.other.state, "mappings", mapping.records, EPOCH) == 1
    assert len(accounts) == len(twins.other.state.accounts.tobytes()) and invariants.complaints(twins.other.state) == []


def test_a_session_before_its_mapping_is_refused() -> None:
    twins = Twins(bed(PLAIN), EPOCH)
    ready(twins.one, twins.other)
    say(twins.one, "udp 100.64.0.2:4000 > 198.51.100.1:53", EPOCH)
    twins.sender.changes(EPOCH)
    (session,) = (sent for sent in twins.sender.way if sent.kind == "sessions")
    assert give(twins.other.state, "sessions", session.records, EPOCH) == 0
    assert len(invariants.living(twins.other.state)) == 0


def test_a_mapping_with_sessions_does_not_end_by_a_tombstone_alone() -> None:
    twins = Twins(bed(PLAIN), EPOCH)
    ready(twins.one, twins.other)
    say(twins.one, "udp 100.64.0.2:4000 > 198.51.100.1:53", EPOCH)
    twins.settle(EPOCH)
    delete_all(twins.one.state, EPOCH)
    twins.sender.changes(EPOCH)
    (ends,) = (sent.records for sent in twins.sender.way)
    assert ends["klass"].tolist() == [SESSION_0, MAPPING_0]
    assert give(twins.other.state, "tombstones", ends[1:], EPOCH) == 0
    assert give(twins.other.state, "tombstones", ends, EPOCH) == 2
    twins.check()


def test_a_port_that_changes_hands_in_a_snapshot_does_not_use_up_a_block() -> None:
    twins = Twins(bed(PLAIN), EPOCH)
    ready(twins.one, twins.other)
    say(twins.one, "udp 100.64.0.2:4000 > 198.51.100.1:53", EPOCH)
    twins.sender.changes(EPOCH)
    (mapping,), (session,) = ([sent for sent in twins.sender.way if sent.kind == kind] for kind in ("mappings", "sessions"))
    state, other = twins.other.state, mapping.records.copy()
    mapping.records["block"] = other["block"] = 0  # in nobody's block
    other["row"], other["internal_port"] = other["row"] + 1, 4001
    assert give(state, "mappings", mapping.records, EPOCH) == give(state, "sessions", session.records, EPOCH) == 1
    free = int(state.pools[0]["blocks_free"])
    seen = np.zeros(len(state.dirty), np.uint64)
    assert apply.mappings(state, 0, other, 1, seen, EPOCH) == 1
    assert int(state.pools[0]["blocks_free"]) == free
    for klass, row in ((SESSION_0, int(session.records["row"][0])), (MAPPING_0, int(mapping.records["row"][0]))):
        apply.end_unseen(state, 0, klass, row, seen, EPOCH, 1)
    assert invariants.complaints(state) == [] and len(mapped(state)) == 1
