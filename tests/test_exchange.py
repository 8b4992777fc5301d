"""Copies follow their originals over real links, and are made anew whenever something was missed."""

from __future__ import annotations

import random

from replication.protocol import ALIVE, CLOSED, SILENT
from shards.state import MAPPING_0, MAPPING_1, SESSION_0, SESSION_1
from tests.exchanges import Room, ticks

KLASSES = MAPPING_0, MAPPING_1, SESSION_0, SESSION_1


def change(room: Room, name: str, shard: int, chance: random.Random, changes: int) -> None:
    """Rows begin, change and end."""
    tables = room[name].tables
    for _ in range(changes):
        klass, row = chance.choice(KLASSES), chance.randrange(400)
        if (shard, klass, row) in tables.rows and chance.random() < 0.4:
            tables.end(shard, klass, row)
        else:
            tables.put(shard, klass, row, chance.randrange(1 << 32))


def same(room: Room, shard: int, one: str = "s1/0", other: str = "s2/0") -> bool:
    """Whether both have the same rows of a shard."""
    return room[one].tables.of(shard) == room[other].tables.of(shard)


def test_a_copy_is_made_and_follows() -> None:
    chance = random.Random(1)
    with Room("s1/0", "s2/0") as room:
        change(room, "s1/0", 3, chance, 3000)
        room["s2/0"].tables.put(3, SESSION_0, 4711, 1)  # of an earlier life: not in the snapshot, so it goes
        room["s2/0"].tables.put(4, SESSION_0, 1, 1)  # of another shard: stays
        room.pair_up(3, "s1/0", "s2/0")
        assert same(room, 3) and room["s2/0"].tables.of(4)
        for _ in range(200):
            change(room, "s1/0", 3, chance, 20)
            room.turn()
        room.until(lambda: same(room, 3))
        assert room["s1/0"].refused() == room["s2/0"].refused() == {}
        status = room["s1/0"].exchange.status()
        assert status["streams"][0]["in_sync"] and status["streams"][0]["resyncs"] == 0
        assert status["links"]["s2/0"]["lag_ms"]["p50"] < 50


def test_changes_flow_while_the_snapshot_is_walked() -> None:
    chance = random.Random(2)
    with Room("s1/0", "s2/0") as room:
        for row in range(20_000):
            room["s1/0"].tables.put(3, SESSION_0, row, row)
        room["s2/0"].exchange.accept(3, "s1/0", 1)
        room["s1/0"].exchange.stream(3, "s2/0", True)
        while not room["s1/0"].exchange.synced(3, "s2/0"):
            change(room, "s1/0", 3, chance, 5)
            room.turn()
        room.until(lambda: same(room, 3))


def test_evidence() -> None:
    with Room("s1/0", "s2/0") as room:
        one, two = room["s1/0"].exchange, room["s2/0"].exchange
        assert one.evidence("s2/0", ticks()) == SILENT
        room.until(lambda: one.evidence("s2/0", ticks()) == two.evidence("s1/0", ticks()) == ALIVE)
        room.run(0.4)
        assert one.evidence("s2/0", ticks()) == ALIVE  # idle, but pings
        room.until(lambda: one.evidence("s2/0", ticks()) == SILENT, "s1/0")  # no turns: frozen
        room.until(lambda: one.evidence("s2/0", ticks()) == ALIVE)
        two.close()
        room.until(lambda: one.evidence("s2/0", ticks()) == CLOSED, "s1/0", patience_s=0.1)
        room.run(0.5, "s1/0")
        assert one.evidence("s2/0", ticks()) == CLOSED
