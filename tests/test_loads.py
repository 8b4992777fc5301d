"""What shards cost, as two looks into a memory tell."""

from __future__ import annotations

import pytest

from krononat import loads
from shards.jit import PURE
from shards.state import (
    EXTENT_LINES,
    FIREWALL_SESSION6,
    MAPPING_0,
    NAT_SESSION,
    SESSION6_0,
    SESSION_0,
    SESSION_1,
    Sizes,
    State,
    new_state,
)

SIZES = Sizes(**{**dict.fromkeys(Sizes._fields, 1), "extents": 6, "buckets": 4, "neighbours": 4, "shards": 3})

if PURE:

    @pytest.fixture
    def state() -> State:
        """Shard 1 has two extents of sessions, shard 2 one; one is of mappings."""
        made = new_state(SIZES)
        for number, (shard, klass) in enumerate(
            [(1, SESSION_0), (1, SESSION_1), (2, SESSION_0), (1, MAPPING_0), (2, SESSION6_0)], 1
        ):
            row = made.extents[number]
            row["shard"], row["klass"], row["kind"] = shard, klass, NAT_SESSION
        return made

    def session(state: State, extent: int, at: int, packets: int, generation: int = 1, kind: int = NAT_SESSION) -> None:
        row = state.sessions[extent * EXTENT_LINES + at]
        row["packets"], row["generation"], row["kind"] = packets, generation, kind

    def test_packets_between_two_looks(state: State) -> None:
        session(state, 1, 5, 100)
        session(state, 2, 7, 0xFFFFFFFF)
        session(state, 3, 0, 50)
        session(state, 3, 1, 50)
        session(state, 4, 9, 1000)  # no session's
        before = loads.look(state)
        assert set(before) == {1, 2, 3, 5}
        session(state, 5, 2, 8, kind=FIREWALL_SESSION6)
        session(state, 1, 5, 300)
        session(state, 2, 7, 9)  # it wraps
        session(state, 3, 0, 20, generation=2)  # another one by now
        session(state, 3, 1, 90, kind=0)  # it has ended
        session(state, 1, 6, 40)  # it is new
        found = loads.rates(before, loads.look(state), 2.0)
        assert found == {1: (200 + 40 + 10) / 2, 2: (20 + 8) / 2}

    def test_an_extent_that_another_shard_has_by_now(state: State) -> None:
        session(state, 1, 5, 100)
        before = loads.look(state)
        state.extents[1]["shard"] = 2
        assert loads.rates(before, loads.look(state), 1.0) == {1: 0.0, 2: 100.0}

    def test_packets_and_sessions_count_half_each_and_the_idle_a_little(state: State) -> None:
        told = loads.together(range(3), {0: 10.0}, {0: 10.0, 1: 30.0})
        least = loads.IDLE * 1000 / 3
        assert told == pytest.approx({0: least + 625, 1: least + 375, 2: least})
        assert loads.together(range(2), {}, {0: 1.0, 1: 3.0}) == pytest.approx({0: 50 + 250, 1: 50 + 750})
        assert loads.together(range(2), {}, {}) == {0: 1.0, 1: 1.0}
