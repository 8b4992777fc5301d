"""Who is sent changes, or acknowledgements, hears that we live: beside them pings are rare, without them as often as ever."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable
from typing import cast

import pytest

from replication import exchange, sender
from replication.frames import Body, Frame, decode
from replication.link import Link
from replication.protocol import ALIVE, Settings
from replication.sender import SELDOM, Sender
from tests.exchanges import Room, ticks
from tests.test_exchange_rows import Cores

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


def pings(changes: Iterable[int], for_ticks: int, alive: bool = True) -> list[int]:
    """When pings are sent, of so many ticks, if changes are sent at these; a turn each tick."""
    link, at = Noting(), set(changes)
    one, found = Sender("s2/0", cast(Link, link), START, PING), []
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
        heard = sorted({*range(0, last + 1, 4), *pings(range(0, last + 1, 4), 600)})
        assert max(gaps(heard)) <= PING


def test_a_peer_is_heard_often_enough_to_be_told_from_another_of_its_name() -> None:
    assert 2 * SELDOM < exchange.TALKS_WITHIN


@pytest.mark.alone
def test_changes_and_acknowledgements_alone_show_that_both_live(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pings that are put off for ever are missed by nobody while they flow, and come when they end."""
    monkeypatch.setattr(sender, "SELDOM", 1_000_000)
    with Cores(9) as cores:
        cores.room.pair_up(0, "s1/0", "s2/0")
        sent = counted(cores.room, monkeypatch)
        last = time.monotonic() + 30 * PING / 1000
        while time.monotonic() < last:
            cores.burst()
            assert alive(cores.room)
        assert max(sent.values()) < 10, sent  # not each burst changes anything
        cores.settle()
        flowing = dict(sent)
        cores.room.until(lambda: all(sent[name] - flowing[name] > 3 for name in sent))
        assert alive(cores.room)


def alive(room: Room) -> bool:
    """Whether each takes the other for alive."""
    one, two = room["s1/0"].exchange, room["s2/0"].exchange
    return one.evidence("s2/0", ticks()) == two.evidence("s1/0", ticks()) == ALIVE


def counted(room: Room, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Pings that each sends from now on."""
    sent = dict.fromkeys(room.nodes, 0)

    def noting(one: Sender, name: str) -> None:
        ping = one._ping

        def note(now: int, streams: dict[int, tuple[int, int]]) -> None:
            sent[name] += 1
            ping(now, streams)

        monkeypatch.setattr(one, "_ping", note)

    for name, node in room.nodes.items():
        for one in node.exchange._senders.values():
            noting(one, name)
    return sent
