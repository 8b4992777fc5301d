"""Who is sent changes, or acknowledgements, hears that we live: beside them pings are rare, without them as often as ever."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import cast

import pytest

from replication import exchange, steady
from replication.frames import Body, Frame, decode
from replication.link import Link
from replication.protocol import ALIVE, Settings, age
from replication.sender import SELDOM, Sender
from tests.exchanges import Room, ticks
from tests.test_exchange_rows import BURSTS, Cores

PING = Settings().ping
START = (1 << 32) - 100  # ticks wrap


class Noting:
    """A link that takes all, and notes what kind it was."""

    def __init__(self) -> None:
        self.kinds: list[str] = []

    def send(self, _: str, header: bytes, body: Body = b"") -> bool:
        """As `Link.send`."""
        self.kinds.append(decode(header, bytes(body)).kind)
        return True


def pings(changes: Iterable[int], for_ticks: int, alive: bool = True, ping: int = PING) -> list[int]:
    """When pings are sent, of so many ticks, if changes are sent at these; a turn each tick.

    1,000 ticks at most: nobody acknowledges.
    """
    link, at = Noting(), set(changes)
    one, found = Sender("s2/0", cast(Link, link), START, ping), []
    if alive:
        one.opened(Frame("opened", 5), START)
    for tick in range(for_ticks):
        now, before = (START + tick) & 0xFFFFFFFF, link.kinds.count("ping")
        if tick in at:
            assert one.put(Frame("update", counts=(0, 0, 0)), b"", now, now) == alive
        due = one.next_ping(now)
        one.turn(now, lambda _: {})
        if link.kinds.count("ping") > before:
            found.append(tick)
        assert (due == 0) <= (found[-1:] == [tick])  # who sleeps until it is due finds it so
    return found


def gaps(found: list[int]) -> list[int]:
    """Ticks between one and the next."""
    return [after - before for before, after in itertools.pairwise(found)]


def test_who_is_sent_nothing_else_gets_pings() -> None:
    assert set(gaps(pings([], 1000))) == {2 * PING // 3}
    assert set(gaps(pings(range(0, 1000, 4), 1000, alive=False))) == {2 * PING // 3}  # nobody takes changes without a life


def test_who_is_sent_changes_gets_pings_now_and_then() -> None:
    found = pings(range(0, 1000, 4), 1000)
    assert all(SELDOM - PING // 3 <= gap <= SELDOM for gap in gaps(found)) and len(found) >= 1000 // SELDOM


def test_after_the_last_change_there_is_a_ping_as_soon_as_ever() -> None:
    for last in range(0, 300, 7):
        heard = sorted({*range(0, last + 1, 4), *pings(range(0, last + 1, 4), 600), 600})
        assert max(gaps(heard)) <= PING


@pytest.mark.parametrize("dead_after", [10, 30, 60, 150, 400, 5000])
def test_pings_alone_come_before_a_peer_is_taken_for_dead(dead_after: int) -> None:
    """What else is sent may be lost where they are not: acknowledgements go by the peer's connection, pings by ours."""
    found = pings(range(0, 1000, 4), 1000, ping=Settings(dead_after).ping)
    assert max(gaps(found)) <= max(0.6 * dead_after, 3)


def test_a_peer_is_heard_often_enough_to_be_told_from_another_of_its_name() -> None:
    assert 2 * SELDOM < exchange.TALKS_WITHIN


@pytest.mark.alone
def test_changes_and_acknowledgements_show_that_both_live_and_pings_fill_the_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that stands still shows nothing: only of turns that follow each other soon it is asked who lives."""
    with Cores(9) as cores:
        for _ in range(BURSTS):
            cores.burst()
        cores.room.pair_up(0, "s1/0", "s2/0")
        quiet_for = watched(cores.room, monkeypatch)
        last, asked = ticks(), 0
        for _ in range(4 * BURSTS):
            cores.burst()
            last, before = ticks(), last
            if age(last, before) < PING:
                assert alive(cores.room)
                asked += 1
        cores.settle()
        flowing = {name: len(quiet) for name, quiet in quiet_for.items()}
        cores.room.until(lambda: all(len(quiet_for[name]) - flowing[name] > 3 for name in flowing))
        assert asked and min(ticks for quiet in quiet_for.values() for ticks in quiet) >= 2 * PING // 3


def alive(room: Room) -> bool:
    """Whether each takes the other for alive."""
    one, two = room["s1/0"].exchange, room["s2/0"].exchange
    return one.evidence("s2/0", ticks()) == two.evidence("s1/0", ticks()) == ALIVE


def watched(room: Room, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """For how long each had said nothing else, at each of its pings from now on, of which none is sent beside what is said."""
    quiet_for: dict[str, list[int]] = {name: [] for name in room.nodes}

    def noting(one: Sender, name: str) -> None:
        ping = one._ping

        def note(now: int, streams: dict[int, tuple[int, int]]) -> None:
            quiet_for[name].append(age(now, int(one.book.columns[steady.SAID])))
            ping(now, streams)

        monkeypatch.setattr(one, "_ping", note)
        monkeypatch.setattr(one, "_seldom", 1_000_000)

    for name, node in room.nodes.items():
        for one in node.exchange._senders.values():
            noting(one, name)
    return quiet_for
