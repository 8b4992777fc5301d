"""Copies follow their originals over real links, and are made anew whenever something was missed."""

from __future__ import annotations

import random
import select
import socket
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from replication import exchange, keys, older, roles, sender, verify
from replication.conduct import Times
from replication.frames import VERSION, Body, Frame
from replication.inquest import Inquest
from replication.link import Message
from replication.protocol import ALIVE, CLOSED, SILENT, Heard, Peer, Settings
from replication.tables import Part
from shards.records import CONTINUED, SESSION_RECORD, TOMBSTONE
from shards.state import MAPPING_0, MAPPING_1, SESSION6_0, SESSION_0, SESSION_1
from tests.exchanges import Node, Room, ticks

pytestmark = pytest.mark.alone

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
        room.until(lambda: room["s1/0"].exchange.synced(3, "s2/0"))
        assert room["s1/0"].refused() == room["s2/0"].refused() == {}
        status = room["s1/0"].exchange.status()
        assert status["streams"][0]["in_sync"] and status["streams"][0]["resyncs"] == 0
        assert status["links"]["s2/0"]["lag_ms"]["p50"] < 500  # how long it takes is the bench's affair


def test_either_end_may_have_the_copy_made_anew() -> None:
    with Room("s1/0", "s2/0") as room:
        change(room, "s1/0", 3, random.Random(7), 500)
        room.pair_up(3, "s1/0", "s2/0")
        for number, (who, whose) in enumerate((("s1/0", "s2/0"), ("s2/0", "s1/0")), 1):
            room["s2/0"].tables.put(3, SESSION_0, 4711, 1)  # a divergence
            room[who].exchange.resync(3, whose)
            room.until(lambda: same(room, 3) and room["s1/0"].exchange.synced(3, "s2/0"))
            assert room["s1/0"].exchange.status()["streams"][0]["resyncs"] == number


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


def test_a_copy_is_made_a_piece_a_turn_where_turns_have_no_time_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a crowded CPU: others have had it since the turn began."""
    chance, cleaned = random.Random(3), [0]
    with Room("s1/0", "s2/0") as room:
        exchange, tables = room["s1/0"].exchange, room["s1/0"].tables
        change(room, "s1/0", 3, chance, 3000)
        clean = tables.clean

        def count(shard: int, cursor: int) -> int:
            cleaned[-1] += 1
            return clean(shard, cursor)

        def begin(begin: Callable[[], None] = exchange._publisher.begin_turn) -> None:
            begin()
            cleaned.append(0)

        monkeypatch.setattr(exchange, "_spare", lambda: False)
        monkeypatch.setattr(tables, "clean", count)
        monkeypatch.setattr(exchange._publisher, "begin_turn", begin)
        room.pair_up(3, "s1/0", "s2/0")
        assert max(cleaned) == 1 and sum(cleaned) > 10
        room.until(lambda: same(room, 3))


def test_that_time_ran_out_is_no_more_to_do_where_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is called for more at once does not sleep: six such cores filled two CPUs, so that time always ran out."""
    with Room("s1/0", "s2/0") as room:
        one, two = room["s1/0"].exchange, room["s2/0"].exchange
        room.until(lambda: one.evidence("s2/0", ticks()) == two.evidence("s1/0", ticks()) == ALIVE)
        fetch, came, more = two._link.fetch, 0, 0

        def count() -> Message | None:
            nonlocal came
            message = fetch()
            came += message is not None
            return message

        monkeypatch.setattr(two._link, "fetch", count)
        monkeypatch.setattr(two, "_spare", lambda: False)
        until = time.monotonic() + 10
        while came < 10 and time.monotonic() < until:
            one.turn(ticks())
            more += two.turn(ticks())
            time.sleep(0.002)
        assert came >= 10 and more < came  # pings come one by one


@pytest.mark.parametrize("dead_after", [10, 150, 400, 5000])
def test_what_is_late_is_waited_for_longer_than_the_living_are_silent(dead_after: int) -> None:
    settings = Settings(dead_after)
    assert 4 * settings.ping < dead_after and settings.ping < settings.late
    assert 2 * settings.ping < exchange.TALKS_WITHIN  # or two of one name were never seen to talk side by side
    assert 2 * settings.tell < min(Times().resume_after, roles.Facts("", 0).lapse_after)


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


class Chaos:
    """Stands in the way of what one node sends: loses, repeats, delays and changes messages."""

    def __init__(self, room: Room, name: str, chance: random.Random) -> None:
        self.link = room[name].exchange._link
        self.chance, self.send = chance, self.link.send
        self.late: list[tuple[str, bytes, bytes]] = []
        self.link.send = self.harm  # type: ignore[method-assign]

    def harm(self, peer: str, header: bytes, body: Body = b"") -> bool:
        """What becomes of a message."""
        what, sent = self.chance.random(), (peer, header, bytes(body))
        if what < 0.02:
            return True  # lost
        if what < 0.04:
            self.late.append(sent)
            return True
        if what < 0.06:
            self.send(*sent)
        if what < 0.08:
            flipped = bytearray(header)
            flipped[self.chance.randrange(len(flipped))] ^= 1 << self.chance.randrange(8)
            return self.send(peer, bytes(flipped), body)
        while self.late and self.chance.random() < 0.5:
            self.send(*self.late.pop())
        return self.send(*sent)

    def end(self) -> None:
        """Stand in the way no longer."""
        self.link.send = self.send  # type: ignore[method-assign]


def test_whatever_the_way_does_the_copy_is_right_in_the_end_and_each_harm_is_seen() -> None:
    chance = random.Random(5)
    with Room("s1/0", "s2/0") as room:
        change(room, "s1/0", 3, chance, 2000)
        room.pair_up(3, "s1/0", "s2/0")
        chaos = Chaos(room, "s1/0", chance)
        harms = {"lost", "reordered", "duplicated", "corrupted", "after_gap"}

        def harmed() -> bool:
            change(room, "s1/0", 3, chance, 3)
            return harms <= set(room["s2/0"].refused()) and room["s2/0"].exchange.status()["links"]["s1/0"]["gaps"] > 3

        room.until(harmed)
        chaos.end()
        room.until(lambda: room["s1/0"].exchange.synced(3, "s2/0") and same(room, 3))
        status = room["s1/0"].exchange.status()
        assert status["streams"][0]["resyncs"] > 3 and status["links"]["s2/0"]["broken"] > 3


def test_overwritten_tombstones_make_the_copy_begin_anew() -> None:
    with Room("s1/0", "s2/0") as room:
        room["s1/0"].tables.put(3, SESSION_0, 1, 1)
        room.pair_up(3, "s1/0", "s2/0")
        room["s1/0"].tables.rows.clear()
        room["s1/0"].tables.lap = True
        room.until(lambda: same(room, 3) and room["s1/0"].exchange.synced(3, "s2/0"))
        assert room["s1/0"].exchange.status()["lapped"] == 1


def test_two_peers_get_one_shard_and_the_slow_one_does_not_hold_the_other_back() -> None:
    chance = random.Random(6)
    with Room("s1/0", "s2/0", "s3/0") as room:
        change(room, "s1/0", 3, chance, 500)
        room.pair_up(3, "s1/0", "s2/0")
        room.pair_up(3, "s1/0", "s3/0")
        for _ in range(300):
            change(room, "s1/0", 3, chance, 3)
            room.run(0.001, "s1/0", "s2/0")  # s3 takes no turns
        room.until(lambda: same(room, 3), "s1/0", "s2/0")
        assert not same(room, 3, "s1/0", "s3/0")
        room.until(lambda: same(room, 3, "s1/0", "s3/0") and room["s1/0"].exchange.synced(3, "s3/0"))


def test_messages_keep_their_place_among_the_rows() -> None:
    """What was changed before a message is there when it is heard."""
    with Room("s1/0", "s2/0") as room:
        room.pair_up(3, "s1/0", "s2/0")
        one, two = room["s1/0"], room["s2/0"]
        for n in range(50):
            one.tables.put(3, SESSION_0, n, n)
            room.until(lambda: one.exchange.flushed(3, "s2/0"), "s1/0")
            assert one.exchange.tell("s2/0", "handover", {"shard": 3, "epoch": n})
            heard: list[Heard] = []
            while not heard:
                room.turn()
                heard = two.exchange.heard()
            assert heard == [("s1/0", "handover", {"shard": 3, "epoch": n})]
            assert (3, SESSION_0, n) in two.tables.rows


def test_who_has_all_rows_already_gets_no_snapshot() -> None:
    with Room("s1/0", "s2/0") as room:
        for row in range(500):
            room["s1/0"].tables.put(3, SESSION_0, row, row)
        room.pair_up(3, "s1/0", "s2/0")
        one, two = room["s1/0"], room["s2/0"]
        one.exchange.accept(3, "s2/0", 1, union=True)
        two.tables.changes.clear()
        two.exchange.stream(3, "s1/0", True, snapshot=False)
        two.tables.put(3, SESSION_0, 1000, 1)
        two.tables.end(3, SESSION_0, 7)
        room.until(lambda: two.exchange.synced(3, "s1/0") and same(room, 3))
        assert two.exchange.status()["links"]["s1/0"]["records_sent"] == 2
        assert one.exchange.complete(3, "s2/0")


def test_a_union_ends_nothing() -> None:
    with Room("s1/0", "s2/0") as room:
        room["s1/0"].tables.put(3, SESSION_0, 1, 1)
        room["s2/0"].tables.put(3, SESSION_1, 2, 2)
        room.pair_up(3, "s1/0", "s2/0", union=True)
        assert set(room["s2/0"].tables.of(3)) == {(3, SESSION_0, 1), (3, SESSION_1, 2)}


def test_who_accepts_late_gets_its_copy_all_the_same() -> None:
    with Room("s1/0", "s2/0") as room:
        room["s1/0"].tables.put(3, SESSION_0, 1, 1)
        room["s1/0"].exchange.stream(3, "s2/0", True)
        room.until(lambda: room["s2/0"].refused().get("foreign"))
        assert not room["s2/0"].tables.rows
        room["s2/0"].exchange.accept(3, "s1/0", 1)
        room.until(lambda: room["s1/0"].exchange.synced(3, "s2/0") and same(room, 3))


def test_a_peer_that_the_other_learns_of_later_comes_in_then() -> None:
    one, two = Node("s1/0"), Node("s2/0")
    one.exchange.meet(two.peer, ticks())
    with Room() as room:
        room.nodes.update({"s1/0": one, "s2/0": two})
        room.until(lambda: two.exchange.refused["key"])
        two.exchange.meet(one.peer, ticks())
        room.until(lambda: one.exchange.evidence("s2/0", ticks()) == two.exchange.evidence("s1/0", ticks()) == ALIVE)
        one.tables.put(3, SESSION_0, 1, 1)
        room.pair_up(3, "s1/0", "s2/0")


def test_verify_finds_what_differs_while_rows_change() -> None:
    chance = random.Random(7)
    with Room("s1/0", "s2/0") as room:
        for row in range(0, 9000, 3):
            room["s1/0"].tables.put(3, SESSION_0, row, row)
        room.pair_up(3, "s1/0", "s2/0")
        assert compare(room, chance) == []
        two = room["s2/0"].tables.rows
        del two[3, SESSION_0, 6000]
        two[3, SESSION_0, 3] = two[3, SESSION_0, 9]
        two[3, SESSION_1, 77] = two[3, SESSION_0, 9]  # a row that the original does not have, nor others near it
        assert compare(room, chance) == [(SESSION_0, 3), (SESSION_0, 6000), (SESSION_1, 77)]


def compare(room: Room, chance: random.Random) -> list[tuple[int, int]]:
    """What `verify` finds, while rows of one class change."""
    one, tables = room["s1/0"].exchange, room["s1/0"].tables
    one.verify(3, "s2/0")
    while True:
        tables.put(3, MAPPING_0, chance.randrange(500), chance.randrange(1 << 32))
        room.run(0.001)
        found = one.compared(3, "s2/0")
        assert found is not None and not found.error
        if found.done:
            assert found.rows >= 3 * 4096
            return found.differing


def test_verify_says_why_it_cannot_and_why_it_ended() -> None:
    with Room("s1/0", "s2/0") as room:
        with pytest.raises(ValueError, match="shard 3 has no copy in sync at s2/0"):
            room["s1/0"].exchange.verify(3, "s2/0")
        room.pair_up(3, "s1/0", "s2/0")
        room["s1/0"].exchange.verify(3, "s2/0")
        room["s2/0"].exchange.close()
        room.until(lambda: (found := room["s1/0"].exchange.compared(3, "s2/0")) and found.error, "s1/0")


def test_who_sleeps_is_woken_though_sockets_were_made_anew() -> None:
    """Peers that cannot be reached get new sockets every second; what the worker sleeps by was told it once."""
    with Room("s1/0") as room:
        link, stranger = room["s1/0"].exchange._link, keys.generate()
        for number in range(3):
            link.meet(Peer(f"s{number + 5}/0", f"tcp://127.0.0.1:{number + 1}", stranger.public), ticks())
        descriptors, sleeper = link.descriptors(), select.poll()
        for descriptor in descriptors:
            sleeper.register(descriptor, select.POLLIN)
        for _ in range(3):
            link._remake(ticks() + 2000)
            time.sleep(0.02)
        assert link.descriptors() == descriptors
        assert all(event == select.POLLIN for _, event in sleeper.poll(0))
        room.add(Node("s2/0"))
        room.until(lambda: sleeper.poll(0), "s2/0")


class Relay:
    """Stands between a core and its peer's listening socket, and can cut the connections that go through it."""

    def __init__(self, endpoint: str) -> None:
        self._there = ("127.0.0.1", int(endpoint.rpartition(":")[2]))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._joined: dict[socket.socket, socket.socket] = {}
        self.accepted = 0

    def turn(self) -> None:
        """Let in who knocks, hand on what has come."""
        ends = {each.fileno(): each for each in (self._listener, *self._joined)}
        waiting = select.poll()
        for number in ends:
            waiting.register(number, select.POLLIN)
        for ready in [ends[number] for number, _ in waiting.poll(0)]:
            if ready is self._listener:
                self._join(ready.accept()[0])
            elif ready in self._joined:
                self._hand_on(ready)

    def _join(self, near: socket.socket) -> None:
        self.accepted += 1
        far = socket.create_connection(self._there)
        self._joined |= {near: far, far: near}

    def _hand_on(self, ready: socket.socket) -> None:
        if came := ready.recv(1 << 16):
            self._joined[ready].sendall(came)
        else:
            for end in (self._joined.pop(ready), ready):
                self._joined.pop(end, None)
                end.close()

    def cut(self) -> None:
        """End all connections; whoever knocks is still let in."""
        while self._joined:
            self._joined.popitem()[0].close()

    def close(self) -> None:
        """Nobody listens any more."""
        self.cut()
        self._listener.close()


def test_a_connection_that_ends_is_no_death_and_a_refusal_is() -> None:
    """ZeroMQ ends connections by itself where a machine is busy; whoever is dead by mistake loses its ports."""
    one, two = Node("s1/0"), Node("s2/0")
    with Room() as room, closing(Relay(two.peer.endpoint)) as relay:
        room.nodes |= {"s1/0": one, "s2/0": two}
        one.exchange.meet(two.peer._replace(endpoint=relay.endpoint), ticks())
        two.exchange.meet(one.peer, ticks())

        seen: set[str] = set()

        def lives() -> int:
            relay.turn()
            seen.add(one.exchange.evidence("s2/0", ticks()))
            return int(one.exchange.status()["links"]["s2/0"]["lives"])

        room.until(lives)
        room.until(lambda: one.exchange.evidence("s2/0", ticks()) == ALIVE)
        seen.clear()
        for life in range(1, 4):
            known = relay.accepted
            relay.cut()
            room.until(lambda life=life: lives() > life)  # type: ignore[misc]
            assert seen == {ALIVE} and relay.accepted >= known + 2  # who asked, and the new connection
        relay.close()
        room.until(lambda: one.exchange.evidence("s2/0", ticks()) == CLOSED, "s1/0", patience_s=0.1)


def test_who_is_let_in_by_somebody_who_is_about_to_end_asks_again() -> None:
    """A kernel ends what a process has one by one: what it listens at may be the last."""
    with closing(select.epoll()) as poll, socket.create_server(("127.0.0.1", 0)) as ending:
        inquest = Inquest(poll)
        inquest.ask("s2/0", f"tcp://127.0.0.1:{ending.getsockname()[1]}", 1000)
        for now in range(1000, 1010):
            assert inquest.dead(now) == []
        ending.close()
        assert inquest.dead(1010) == []  # not yet
        assert [dead for now in range(1050, 1400) for dead in inquest.dead(now)] == ["s2/0"]


def test_who_is_cut_off_while_it_is_asked_after_is_silent_and_not_dead() -> None:
    """Nothing answers at an address that is nobody's: the question is given up."""
    with Room("s1/0", "s2/0") as room:
        one = room["s1/0"].exchange
        room.until(lambda: one.evidence("s2/0", ticks()) == ALIVE and one.status()["links"]["s2/0"]["lives"])
        inquest = one._link._inquest
        full = socket.create_server(("127.0.0.1", 0), backlog=0)
        with full, socket.create_connection(full.getsockname()):  # its queue is full: the kernel answers no more
            inquest.ask("s2/0", f"tcp://127.0.0.1:{full.getsockname()[1]}", ticks())
            room.run(0.2)
            assert one.evidence("s2/0", ticks()) != CLOSED and inquest._questions
            assert inquest.dead(ticks() + 2000) == [] and not inquest._questions


def test_answers_to_a_comparison_that_was_given_up_are_refused() -> None:
    with Room("s1/0", "s2/0") as room:
        for row in range(0, 40_000, 7):
            room["s1/0"].tables.put(3, SESSION_0, row, row)
        room.pair_up(3, "s1/0", "s2/0")
        one = room["s1/0"].exchange
        one.verify(3, "s2/0")
        verification = one._verifications[3, "s2/0"]
        room.until(lambda: verification._asked, "s1/0")
        one.stream(3, "s2/0", False)  # the shard gets another backup meanwhile
        room.until(lambda: verification.done, "s1/0")
        room.run(0.2)
        assert one.refused["malformed"] > 0 and one.evidence("s2/0", ticks()) == ALIVE


def test_of_a_copy_that_differs_everywhere_a_part_is_told() -> None:
    with Room("s1/0", "s2/0") as room:
        room.pair_up(3, "s1/0", "s2/0")
        for row in range(40_000):
            room["s1/0"].tables.rows[3, SESSION_0, row] = room["s1/0"].tables.rows.get((3, SESSION_0, 0)) or record()
        one = room["s1/0"].exchange
        one.verify(3, "s2/0")
        room.until(lambda: (found := one.compared(3, "s2/0")) and found.done)
        found = one.compared(3, "s2/0")
        assert found and verify.FOUND_AT_MOST <= len(found.differing) < 2 * verify.FOUND_AT_MOST


def record() -> bytes:
    """Any session."""
    return np.ones(1, SESSION_RECORD).tobytes()


def test_a_connection_whose_end_nobody_told_of_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """The monitor has missed it, and ZeroMQ tries no more: only that the peer never answers shows it."""
    monkeypatch.setattr("replication.exchange.LIFELESS_AT_MOST", 1 << 30)
    with Room("s1/0", "s2/0") as room:
        change(room, "s1/0", 3, random.Random(8), 100)
        room.pair_up(3, "s1/0", "s2/0")
        link, far = room["s1/0"].exchange._link, room["s2/0"].exchange
        events, deaf = link._events, link._monitors["s2/0"]
        monkeypatch.setattr(link, "_events", lambda monitor: [] if monitor is deaf else events(monitor))
        link._dealers["s2/0"].disconnect(far.endpoint)  # ZeroMQ does it when it comes to that
        room.until(lambda: far.evidence("s1/0", ticks()) != ALIVE)
        change(room, "s1/0", 3, random.Random(9), 100)
        room.until(lambda: room["s1/0"].exchange.status()["links"]["s2/0"]["stale"] == 1)
        assert link._connected == {"s2/0"} and not same(room, 3)  # as it believes
        monkeypatch.setattr("replication.exchange.LIFELESS_AT_MOST", 300)
        room.until(lambda: room["s1/0"].exchange.synced(3, "s2/0") and same(room, 3))


def test_who_is_of_the_version_before_is_sent_no_row_of_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in a copy nor as a change, an end, or a question; all else he gets, and refuses nothing."""
    opened = sender.Sender.opened

    def as_before(one: sender.Sender, frame: Frame, now: int) -> None:
        opened(one, frame._replace(version=VERSION - 1), now)

    monkeypatch.setattr(sender.Sender, "opened", as_before)
    with Room("s1/0", "s2/0") as room:
        one, other = room["s1/0"], room["s2/0"]
        for row in (1, 2):
            one.tables.put(3, MAPPING_0, row, row)
            one.tables.put(3, SESSION_0, row, row)
            one.tables.put(3, SESSION6_0, row, row)
        room.pair_up(3, "s1/0", "s2/0")
        for klass in (MAPPING_0, SESSION_0, SESSION6_0):
            one.tables.put(3, klass, 3, 3)
            one.tables.end(3, klass, 1)
        room.until(lambda: other.tables.of(3) == {name: row for name, row in one.tables.of(3).items() if name[1] != SESSION6_0})
        one.exchange.verify(3, "s2/0")
        room.until(lambda: (found := one.exchange.compared(3, "s2/0")) and found.done)
        found = one.exchange.compared(3, "s2/0")
        assert found and (found.error, found.differing) == ("", []) and len(other.tables.of(3)) == 4
        assert other.refused() == {} and not one.exchange.speaks_ipv6("s2/0") and other.exchange.speaks_ipv6("s3/0")


def test_what_ended_and_changed_is_cut_to_what_the_version_before_knows() -> None:
    """A session of IPv6 takes two records, of which the second is of no class."""
    stones, sessions = np.zeros(3, TOMBSTONE), np.zeros(4, SESSION_RECORD)
    stones["klass"], stones["row"] = (SESSION6_0, SESSION_0, SESSION6_0), (1, 2, 3)
    sessions["klass"], sessions["row"] = (SESSION6_0, CONTINUED, SESSION_1, SESSION_0), (5, 6, 7, 8)
    part = Part(3, (3, 0, 4), [stones.view(np.uint8), sessions.view(np.uint8)], more=True, lapped=False)
    assert older.known(part, older.SINCE_IPV6) is part
    known = older.known(part, older.SINCE_IPV6 - 1)
    assert known.counts == (1, 0, 2) and known.more
    assert known.rows[0].view(TOMBSTONE)["row"].tolist() == [2] and known.rows[1].view(SESSION_RECORD)["row"].tolist() == [7, 8]
    assert older.known(part._replace(counts=(2, 0, 0), rows=[stones[::2].copy().view(np.uint8)]), 1).rows == []


@pytest.mark.parametrize(("version", "kinds"), [(VERSION, {"updates"}), (VERSION - 1, {"update"})])
def test_all_shards_of_a_link_travel_in_one_frame_to_who_understands_it(
    monkeypatch: pytest.MonkeyPatch, version: int, kinds: set[str]
) -> None:
    with Room("s1/0", "s2/0") as room:
        for shard in (3, 4, 5):
            room["s1/0"].tables.put(shard, SESSION_0, 1, 1)
            room.pair_up(shard, "s1/0", "s2/0")
        sender, sent = room["s1/0"].exchange._senders["s2/0"], []
        sender.version, put = version, sender.put

        def note(frame: Frame, body: Body, *more: Any, **named: Any) -> bool:
            sent.append(frame)
            return put(frame, body, *more, **named)

        monkeypatch.setattr(sender, "put", note)
        for shard in (3, 4, 5):
            room["s1/0"].tables.put(shard, SESSION_0, 2, 2)
            room["s1/0"].tables.end(shard, SESSION_0, 1)
        room.until(lambda: all(same(room, shard) for shard in (3, 4, 5)))
        changes = [frame for frame in sent if frame.kind.startswith("update")]
        assert {frame.kind for frame in changes} == kinds and len(changes) == (1 if version == VERSION else 3)
        assert sum(sum(frame.counts) for frame in changes) == 6
        room.until(lambda: all(room["s1/0"].exchange.lag(shard, "s2/0") == (0, 0, 0.0) for shard in (3, 4, 5)))
        assert room["s2/0"].refused() == {}


@pytest.mark.parametrize("guest", [False, True])
def test_who_is_to_know_everything_gets_another_copy_only_where_somebody_else_got_one_meanwhile(guest: bool) -> None:
    """What a guest's copy has taken along counts as sent, and the backup has never seen it."""
    with Room("s1/0", "s2/0", "s3/0") as room:
        room.pair_up(3, "s1/0", "s2/0")
        exchange = room["s1/0"].exchange
        if guest:
            room["s3/0"].exchange.accept(3, "s1/0", 1)
            exchange.stream(3, "s3/0", True, everything=True)
            room.until(lambda: exchange.synced(3, "s3/0"))
            exchange.stream(3, "s3/0", False)
        exchange.stream(3, "s2/0", True, everything=True)
        room.until(lambda: exchange.is_wide(3, "s2/0") and exchange.synced(3, "s2/0"))
        assert [(told["peer"], told["resyncs"]) for told in exchange.status()["streams"]] == [("s2/0", int(guest))]
        exchange.stream(3, "s2/0", True, everything=False)
        exchange.stream(3, "s2/0", True, everything=True)  # the copy that it got has mended that
        room.until(lambda: exchange.is_wide(3, "s2/0") and exchange.synced(3, "s2/0"))
        assert exchange.status()["streams"][0]["resyncs"] == int(guest)
