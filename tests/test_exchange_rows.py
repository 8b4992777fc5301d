"""The exchange over the memory of real cores: random traffic on one, and the other has the same rows, sound and useful."""

from __future__ import annotations

import random
from typing import Self

import numpy as np
import pytest

from replication.protocol import Settings
from replication.rows import StateSink, StateSource
from shards import gather, invariants, slabs
from shards.jit import PURE
from shards.state import MAPPING, NAT_SESSION, SESSION
from tests.bare_core import Core
from tests.exchanges import Node, Room, ticks
from tests.frames import address
from tests.fuzz import RICH, Traffic, bed
from tests.twins import Twins, differences, mapped

pytestmark = pytest.mark.alone

BURSTS = 12 if PURE else 120


class Cores:
    """Two cores and their exchange: `one` has the authority over shard 0, `other` a copy."""

    def __init__(self, seed: int, threshold: int = 0) -> None:
        twins = Twins(bed(RICH), ticks())
        self.one, self.other = twins.one, twins.other
        self.one.resolve(*range(address("192.0.2.0"), address("192.0.3.0")))
        self.traffic = Traffic(seed, self.one.bed, lambda: mapped(self.one.state))
        self.room = Room()
        for name, core in (("s1/0", self.one), ("s2/0", self.other)):
            given = StateSource(core.state, threshold), StateSink(core.state)
            self.room.add(Node(name, Settings(threshold=threshold), rows=given))

    def burst(self) -> None:
        """Some packets through the authority, and a turn of each."""
        self.one.receive(self.traffic.burst(32), ticks())
        self.one.resolve()
        self.one.again(ticks())
        self.room.turn()

    def settle(self) -> None:
        """All is told, and both are the same and sound."""
        exchange = self.room["s1/0"].exchange
        self.room.until(lambda: exchange.flushed(0, "s2/0") and exchange.lag(0, "s2/0").records == 0)
        for core in (self.one, self.other):
            assert invariants.complaints(core.state) == []
        assert differences(self.one.state, self.other.state) == []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.room.__exit__()


@pytest.mark.parametrize("seed", range(2))
def test_a_copy_of_a_real_core_is_made_and_follows(seed: int) -> None:
    with Cores(seed) as cores:
        for _ in range(BURSTS):
            cores.burst()
        cores.room.pair_up(0, "s1/0", "s2/0")
        cores.settle()
        for _ in range(BURSTS):
            cores.burst()
        cores.settle()
        status = cores.room["s2/0"].exchange.status()
        assert status["refused_records"] == 0 and len(invariants.living(cores.other.state)) > 5
        assert not any(status["refused"].values())


@pytest.mark.parametrize("everything", [False, True])
def test_a_snapshot_under_traffic(everything: bool) -> None:
    """Pieces so small that bursts come between them; half-open connections travel where everything does."""
    with Cores(3) as cores:
        for _ in range(BURSTS):
            cores.burst()
        exchange = cores.room["s1/0"].exchange
        source = exchange._source
        assert isinstance(source, StateSource)
        source._sessions, source._mappings = source._sessions[:10], source._mappings[:10]
        cores.room["s2/0"].exchange.accept(0, "s1/0", 1)
        exchange.stream(0, "s2/0", True, everything)
        cores.room.until(lambda: exchange.status()["links"]["s2/0"]["records_sent"] > 0)
        between = 0
        while not exchange.synced(0, "s2/0") and between < BURSTS:
            cores.burst()
            cores.room.run(0.01)
            between += 1
        assert between > 1
        cores.room.until(lambda: exchange.synced(0, "s2/0"))
        cores.settle()
        living = [len(invariants.living(core.state)) for core in (cores.one, cores.other)]
        assert living[0] == living[1] if everything else living[0] > living[1]


@pytest.mark.parametrize("threshold", [0, 1000])
def test_who_is_to_know_everything_from_now_on_gets_what_was_left_out_and_no_other_copy(threshold: int) -> None:
    with Cores(6, threshold) as cores:
        for _ in range(BURSTS):
            cores.burst()
        cores.room.pair_up(0, "s1/0", "s2/0")
        cores.burst()
        exchange = cores.room["s1/0"].exchange
        living = [len(invariants.living(core.state)) for core in (cores.one, cores.other)]
        assert living[0] > living[1] and not exchange.is_wide(0, "s2/0")
        exchange.stream(0, "s2/0", True, everything=True)
        assert not exchange.is_wide(0, "s2/0") and exchange.synced(0, "s2/0")
        cores.burst()
        cores.room.until(lambda: exchange.is_wide(0, "s2/0"))
        cores.settle()
        living = [len(invariants.living(core.state)) for core in (cores.one, cores.other)]
        assert living[0] == living[1] and exchange.synced(0, "s2/0")
        assert [stream["resyncs"] for stream in exchange.status()["streams"]] == [0]


def test_young_sessions_travel_when_they_are_old_enough() -> None:
    with Cores(4, threshold=1000) as cores:
        for _ in range(BURSTS):
            cores.burst()
        cores.room.pair_up(0, "s1/0", "s2/0")
        begun = len(invariants.living(cores.other.state))
        cores.burst()
        cores.room.run(0.2)
        assert len(invariants.living(cores.one.state)) > len(invariants.living(cores.other.state))
        cores.room.run(1.2)
        cores.settle()
        assert len(invariants.living(cores.other.state)) >= begun


def test_verify_finds_planted_divergences_and_nothing_else() -> None:
    """In each compared field of sessions and mappings, and rows that only one has."""
    chance = random.Random(5)
    with Cores(5) as cores:
        for _ in range(2 * BURSTS):
            cores.burst()
        cores.room.pair_up(0, "s1/0", "s2/0")
        cores.settle()
        assert compared(cores) == []
        planted = {plant(cores.other, chance) for _ in range(40)} | {bury(cores.other)}
        assert set(compared(cores)) == planted


def plant(core: Core, chance: random.Random) -> tuple[int, int]:
    """Flip a bit of one field of a row of the copy; (class, row)."""
    table, dtype, halves, left_out = chance.choice(
        [
            (core.state.sessions, SESSION, 2 * known(core), "mapping expiry created packets rules inward outward kind shard"),
            (core.state.mappings, MAPPING, invariants.halves(core.state), "account sessions kind"),
        ]
    )
    half = int(chance.choice(halves))
    field = chance.choice([name for name in dtype.names or () if name not in left_out.split()])
    row = table[half // 2 if dtype is SESSION else half]
    row[field] = int(row[field]) ^ 1 << chance.randrange(3)
    return slabs.wire_row(core.state, half)[1:]


def known(core: Core) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Lines of the sessions that a copy has because it was told."""
    return np.array([line for line in invariants.lines(core.state).tolist() if gather.is_shipped(core.state, 2 * line)])


def bury(core: Core) -> tuple[int, int]:
    """Let a row of the copy be dead."""
    line = int(known(core)[-1])
    core.state.sessions[line]["kind"] = 0
    return slabs.wire_row(core.state, 2 * line)[1:]


def compared(cores: Cores) -> list[tuple[int, int]]:
    """What `verify` says at its end."""
    exchange = cores.room["s1/0"].exchange
    exchange.verify(0, "s2/0")
    cores.room.until(lambda: (found := exchange.compared(0, "s2/0")) is not None and found.done)
    found = exchange.compared(0, "s2/0")
    assert found is not None and not found.error
    return found.differing


def test_rows_that_only_the_copy_has_are_found() -> None:
    with Cores(6) as cores:
        for _ in range(BURSTS):
            cores.burst()
        cores.room.pair_up(0, "s1/0", "s2/0")
        cores.settle()
        line = int(known(cores.other)[0])
        free = slabs.new_line(cores.other.state, 0)  # of side 1: a class that the original may have no row in
        assert cores.other.state.sessions[line]["kind"] == NAT_SESSION
        cores.other.state.sessions[free] = cores.other.state.sessions[line]
        gather.ship(cores.other.state, 2 * free)
        assert compared(cores) == [slabs.wire_row(cores.other.state, 2 * free)[1:]]
