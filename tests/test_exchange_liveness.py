"""Who lives is told without records: by sweeps, at the end of a copy, and at the end of a handover."""

from __future__ import annotations

from typing import Any

import pytest

from replication import publisher, sender
from replication.frames import Frame
from shards.state import SESSION_0, SESSION_1, Array
from tests.exchanges import Room

pytestmark = pytest.mark.alone

ROWS = (1, 9000, 20_000)  # of three pieces


def test_liveness_is_told_without_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "SWEEP", 50)
    with Room("s1/0", "s2/0") as room:
        for row in (1, 9000, 20_000):
            room["s1/0"].tables.put(3, SESSION_0, row, row)
        room.pair_up(3, "s1/0", "s2/0")
        sent = room["s1/0"].exchange.status()["links"]["s2/0"]["records_sent"]
        room.until(lambda: {row for _, _, row in room["s2/0"].tables.refreshed_rows} == {1, 9000, 20_000})
        assert room["s1/0"].exchange.status()["links"]["s2/0"]["records_sent"] == sent


def test_who_could_not_be_told_who_lives_is_told_with_the_next_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then of all the time since the sweep before the one that was missed, however many were."""
    monkeypatch.setattr(publisher, "SWEEP", 40)
    put, refusing = sender.Sender.put, [False]
    asked: list[int] = []

    def deaf(self: sender.Sender, frame: Frame, *given: Any, **named: Any) -> bool:
        return not (refusing[0] and frame.kind == "bitmap") and put(self, frame, *given, **named)

    monkeypatch.setattr(sender.Sender, "put", deaf)
    with Room("s1/0", "s2/0") as room:
        tables, told = room["s1/0"].tables, room["s2/0"].tables.refreshed_rows
        tables.put(3, SESSION_0, 1, 1)
        room.pair_up(3, "s1/0", "s2/0")
        refreshed = tables.refreshed

        def noted(*given: int) -> Array:
            asked.append(given[3])
            return refreshed(*given)

        monkeypatch.setattr(tables, "refreshed", noted)
        refusing[0] = True
        room.run(0.4)
        refusing[0] = False
        told.clear()
        missed = len(asked)
        room.until(lambda: told)
        assert missed > 4 and len(set(asked[: missed + 1])) <= 2


def test_who_has_a_whole_copy_knows_who_was_seen_alive_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, as it may be handed the shard at once; of the sweep it can have got one of these three pieces by now."""
    monkeypatch.setattr(publisher, "SWEEP", 1_000_000)
    with Room("s1/0", "s2/0") as room:
        for row in (1, 9000, 20_000):
            room["s1/0"].tables.put(3, SESSION_1, row, row)
        room.pair_up(3, "s1/0", "s2/0")
        assert room["s2/0"].tables.refreshed_rows == {(3, SESSION_1, row) for row in (1, 9000, 20_000)}


def test_the_last_words_are_of_all_that_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "SWEEP", 1_000_000)
    with Room("s1/0", "s2/0") as room:
        for row in (1, 9000, 20_000):
            room["s1/0"].tables.put(3, SESSION_1, row, row)
        room.pair_up(3, "s1/0", "s2/0")
        room["s2/0"].tables.refreshed_rows.clear()
        assert not room["s1/0"].exchange.last_words(3, "s2/0") and room["s1/0"].exchange.last_words(3, "s9/9")
        room.until(lambda: room["s1/0"].exchange.last_words(3, "s2/0"))
        room.run(0.05)
        assert room["s2/0"].tables.refreshed_rows == {(3, SESSION_1, row) for row in (1, 9000, 20_000)}
        room["s1/0"].exchange.resync(3, "s2/0")
        assert room["s1/0"].exchange.last_words(3, "s2/0"), "a copy tells of them anyway"
