"""Memory of a connection: the arithmetic agrees with the arrays, and with what a small bench of it finds resident."""

from __future__ import annotations

import pytest

from bench import flows, memory
from krononat import appliance, capacity, doctor
from krononat.config import read
from shards import cuckoo
from shards.state import EXTENT_LINES, PORT_SPACES, Sizes, new_state

LINES = 1 << 20  # sessions, one per mapping
SIZES = Sizes(**{**dict.fromkeys(Sizes._fields, 1), "buckets": 1 << 19, "extents": LINES * 3 // 2 // EXTENT_LINES})


def test_every_section_that_grows_is_in_the_arithmetic() -> None:
    """Twice the connections: what each section grows by is what the arithmetic says, at the load that they make."""
    small = {name: array.nbytes for name, array in new_state(SIZES)._asdict().items()}
    doubled = SIZES._replace(extents=2 * SIZES.extents, buckets=2 * SIZES.buckets)
    large = {name: array.nbytes for name, array in new_state(doubled)._asdict().items()}
    load = 3 * LINES / (SIZES.buckets * cuckoo.SLOTS)
    told = capacity.per_connection(1, load)
    grown = {
        name: (large[name] - small[name]) / LINES
        for name in small
        if name not in ("sessions", "flows6", "mappings", "refs", "blooms")
    }
    by_lines = {name: bytes_each for name, bytes_each in grown.items() if bytes_each and name not in ("extents", "extent_of")}
    assert by_lines == pytest.approx({name: told[name] for name in by_lines})
    assert set(by_lines) == {"words", "links", "tags", "dirty", "summary", "shipped"}


def test_ports_and_accounts_are_in_the_arithmetic() -> None:
    """An external address has a chunk per 64 ports, an owner per port and protocol; a subscriber 63 mappings."""
    state, told = new_state(SIZES), capacity.per_connection()
    assert told["owners"] == state.owners.nbytes / (PORT_SPACES * 65536)
    assert told["chunks"] == state.chunks.nbytes / 65536
    assert told["accounts"] == pytest.approx(state.accounts.nbytes / 63)


def test_a_connection_takes_no_more_than_promised() -> None:
    single, shared = sum(capacity.per_connection().values()), sum(capacity.per_connection(4).values())
    assert shared < single <= memory.GOAL


def test_room_is_what_the_configuration_asked_for() -> None:
    told = read(memory.CONFIG.format(sessions=1_000_000, subscribers="100.64.0.0/24", prefixes='"203.0.113.0/28"'))
    room, shared = capacity.room(appliance.compose(told)), capacity.room(appliance.compose(told), 4)
    assert 1_000_000 <= room.connections <= 1_000_000 + EXTENT_LINES
    assert room.bound == "rows" and shared.connections > room.connections


def test_doctor_says_how_many_connections_fit() -> None:
    told = read(memory.CONFIG.format(sessions=1_000_000, subscribers="100.64.0.0/24", prefixes='"203.0.113.0/28"'))
    (found,) = doctor.room(doctor.Machine(config=told))
    room = capacity.room(appliance.compose(told))
    assert (found.result, found.needed) == (doctor.OK, "1,000,000 sessions")
    assert found.measured.startswith(f"{room.connections:,} with a mapping each, ")
    assert found.measured.endswith(f"; {16 * 1008 * 64:,} ports a protocol")
    assert [found.result for found in doctor.room(doctor.Machine())] == [doctor.SKIP]


def test_room_may_be_bound_by_the_index() -> None:
    assert capacity.room(SIZES._replace(buckets=64)) == (int(64 * cuckoo.SLOTS * capacity.LOAD / 3), "index")


@pytest.mark.parametrize("sessions_each", [1, 4])
def test_connections_are_made_by_first_packets_and_measured(sessions_each: int) -> None:
    taken = memory.take(2000, sessions_each)
    assert taken.connections == 2000
    assert taken.load == pytest.approx(2000 * (2 + 1 / sessions_each) / (taken.index_bytes / 8))
    assert taken.resident > 2000 * 64 + taken.index_bytes


def test_connections_that_are_not_made_are_told() -> None:
    state = memory.compose(1000, 1)
    memory.connect(state, 100, 1, lambda text: None)
    with pytest.raises(RuntimeError, match=r"100 first packets made .* \(100, 100, 200\)"):
        memory.connect(state, 100, 1, lambda text: None)


def test_the_index_counts_at_the_load_that_is_published() -> None:
    taken = memory.Taken(connections=100, resident=10_000, index_bytes=2_000, load=0.425)
    assert taken.at_load(0.85) == 90 and taken.at_load(0.425) == 100


def test_the_arithmetic_is_of_the_same_subscribers() -> None:
    assert capacity.MAPPINGS_EACH == flows.MAPPINGS_EACH


def test_figures_have_their_names() -> None:
    taken = memory.Taken(connections=100, resident=14_000, index_bytes=2_800, load=0.85)
    results = {result.name: result for result in memory.figures(taken, taken._replace(resident=10_000))}
    assert results["memory/per_connection"].value == pytest.approx(140) and results["memory/per_connection"].ok
    assert (
        results["memory/per_connection/4_per_mapping"].value == pytest.approx(100)
        and results["memory/per_connection/4_per_mapping"].ok
    )
    assert results["memory/protected"].value == pytest.approx(280)
    parts = sum(result.value for name, result in results.items() if name.startswith("memory/section/"))
    assert parts == pytest.approx(results["memory/per_connection"].value)
