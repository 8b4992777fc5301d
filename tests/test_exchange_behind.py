"""Who could not read all that peers said, and had to wait for the CPU since, reads longer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from replication import exchange
from replication.exchange import LONGER_AT_MOST, READ_NS, TURN_NS, reading_ns
from tests.exchanges import Room, ticks

pytestmark = pytest.mark.alone

MS = 1_000_000


def test_as_much_longer_as_more_time_has_passed_than_was_on_the_cpu() -> None:
    most = LONGER_AT_MOST * READ_NS
    told = [reading_ns(passed, 1000) for passed in (-5, 0, 900, 1000, 2000, 3000, 4000, 90_000)]
    assert told == [READ_NS, READ_NS, READ_NS, READ_NS, 2 * READ_NS, 3 * READ_NS, most, most]
    assert reading_ns(5, 0) == most


@pytest.mark.parametrize(("behind", "times"), [(True, 3), (False, 1)])
def test_a_turn_reads_for_so_long_and_has_as_long_for_the_rest_as_ever(
    behind: bool, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """10 of 30 ms on the CPU since the last one, by clocks that stand still."""
    clock, spent = 1_000 * MS, 500 * MS
    with Room("s1/0", "s2/0") as room:
        mine = room["s2/0"].exchange
        ends: list[int] = []

        def note(*_: object) -> bool:
            ends.append(mine._until)
            return False

        monkeypatch.setattr(mine._link, "listen", lambda: True)
        monkeypatch.setattr(mine, "_read", note)
        monkeypatch.setattr(mine._publisher, "turn", note)
        mine._lanes.close()
        mine._behind, mine._read_at = behind, (clock - 30 * MS, spent - 10 * MS)
        monkeypatch.setattr(exchange, "time", SimpleNamespace(monotonic_ns=lambda: clock, thread_time_ns=lambda: spent))
        mine.turn(ticks())
        assert ends == [spent + times * READ_NS, spent + times * READ_NS - READ_NS + TURN_NS]
        assert mine._read_at == (clock, spent) and not mine._behind


def test_it_is_behind_as_long_as_not_all_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with Room("s1/0", "s2/0") as room:
        theirs, mine = room["s1/0"].exchange, room["s2/0"].exchange
        room.until(lambda: theirs.tell("s2/0", "posts", {}))

        def is_behind() -> bool:
            return theirs.tell("s2/0", "posts", {}) and theirs.tell("s2/0", "posts", {}) and mine._behind

        with monkeypatch.context() as patched:
            patched.setattr(exchange, "READ_NS", 0)
            room.until(is_behind)
        room.until(lambda: not mine._behind)
