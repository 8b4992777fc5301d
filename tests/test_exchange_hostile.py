"""What a peer may do wrong, by accident or on purpose: it is counted, nothing of it is applied, and no one is stopped by it."""

from __future__ import annotations

import contextlib
import random
import resource
import time
import zlib
from collections.abc import Callable, Iterator

import msgpack
import numpy as np
import pytest
import zmq

from replication import keys
from replication.frames import BODY_AT_MOST, HEADER_AT_MOST, KINDS, REASONS, VERSION, Frame, decode, encode
from replication.keys import Key
from replication.protocol import ALIVE, Fields, Peer
from replication.tables import BITMAP_ROWS, COMPARED_ROWS
from shards.records import MAPPING_RECORD, SESSION_RECORD
from shards.state import MAPPING_0, SESSION_0
from tests.exchanges import Node, Room, ticks

pytestmark = pytest.mark.alone

SHARD = 3


def session(row: int, value: int = 7) -> bytes:
    """A record of a session."""
    record = np.zeros(1, SESSION_RECORD)
    record["row"], record["klass"], record["internal_address"], record["generation"] = row, SESSION_0, value, 1
    return record.tobytes()


class Stranger:
    """A peer by its key, with a mind of its own: it opens a life like any other, and then says what the test wants."""

    def __init__(self, node: Node, key: Key) -> None:
        self.node, self.key = node, key
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self.connect(key)
        self.life = self.number = 0

    def connect(self, key: Key | None) -> zmq.Socket[bytes]:
        """One more connection."""
        socket = self.context.socket(zmq.DEALER)
        socket.set(zmq.LINGER, 0)
        if key:
            socket.set(zmq.CURVE_SERVERKEY, self.node.key.public)
            socket.set(zmq.CURVE_PUBLICKEY, key.public)
            socket.set(zmq.CURVE_SECRETKEY, key.secret)
        socket.connect(self.node.exchange.endpoint)
        return socket

    def say(self, frame: Frame, body: bytes = b"", again: int = 1) -> list[bytes]:
        """Send a frame as it is."""
        parts = [encode(frame, body), body]
        for _ in range(again):
            self.socket.send_multipart(parts)
        return parts

    def tell(self, kind: str, body: bytes = b"", counts: tuple[int, ...] = (), **told: object) -> list[bytes]:
        """Send the next frame of the life."""
        self.number += 1
        frame = Frame(kind, self.life, self.number, SHARD, 1, 1, counts)
        return self.say(frame._replace(**told), body)  # type: ignore[arg-type]

    def hear(self, kind: str) -> Frame:
        """Wait for an answer of a kind."""
        while True:
            self.until(lambda: self.socket.poll(0))
            header, body = self.socket.recv_multipart()
            frame = decode(header, body)
            if frame.kind == kind:
                return frame

    def until(self, happened: Callable[[], object]) -> None:
        """Let the other take turns until it has happened."""
        Room.until(_AsRoom(self.node), happened)  # type: ignore[arg-type]

    def open(self, versions: tuple[int, ...] = (VERSION,)) -> None:
        """Begin a life; ask again where the question went down with a connection."""
        asked, heard = 0.0, Frame("ping")

        def answered() -> bool:
            nonlocal asked, heard
            if time.monotonic() - asked > 0.3:
                asked = time.monotonic()
                self.say(Frame("open", fields={"v": list(versions)}, version=versions[-1]))
            if self.socket.poll(0):
                heard = decode(*self.socket.recv_multipart())
            return heard.kind == "opened"

        self.until(answered)
        self.life, self.number = heard.life, 0

    def begin(self) -> None:
        """Begin a life and a copy."""
        self.open()
        self.tell("begin", fields={"w": 1})

    def ping(self, **told: object) -> None:
        """Say what the last number was."""
        self.say(Frame("ping", self.life, self.number)._replace(**told))  # type: ignore[arg-type]


class _AsRoom:
    """One node whose turns a stranger waits for."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def turn(self, *_: str) -> None:
        self.node.exchange.turn(ticks())

    def story(self) -> str:
        return str(self.node.exchange.status())


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    """A node that takes shard 3 from the stranger, whose key it knows."""
    node, key = Node("s1/0"), keys.generate()
    node.exchange.meet(Peer("s2/0", "tcp://127.0.0.1:1", key.public), ticks())
    node.exchange.accept(SHARD, "s2/0", 1)
    stranger = Stranger(node, key)
    yield stranger
    stranger.context.destroy(0)
    node.exchange.close()


def rows(stranger: Stranger) -> set[int]:
    """Rows that were applied."""
    return {name[2] for name in stranger.node.tables.rows}


def expect(stranger: Stranger, reason: str, count: int = 1) -> None:
    """Wait until so many were refused for that reason."""
    stranger.until(lambda: stranger.node.exchange.refused[reason] >= count)
    assert stranger.node.exchange.refused[reason] == count, stranger.node.refused()


def test_what_is_right_is_applied(stranger: Stranger) -> None:
    stranger.begin()
    stranger.tell("update", session(1) + session(2), (0, 0, 2))
    stranger.until(lambda: rows(stranger) == {1, 2})
    assert stranger.hear("ack").life == stranger.life
    assert stranger.node.refused() == {}


def test_a_lost_frame_breaks_the_life_and_a_late_one_is_not_applied(stranger: Stranger) -> None:
    stranger.begin()
    stranger.number += 2
    stranger.tell("update", session(1), (0, 0, 1))
    expect(stranger, "lost", 2)
    expect(stranger, "after_gap")
    assert stranger.hear("broken").life == stranger.life
    stranger.number = 2
    stranger.tell("update", session(2), (0, 0, 1))  # one of the two that were missed
    expect(stranger, "reordered")
    assert stranger.node.exchange.refused["lost"] == 1
    stranger.number = 6
    stranger.tell("update", session(3), (0, 0, 1))
    expect(stranger, "after_gap", 2)
    assert rows(stranger) == set()
    stranger.begin()  # the way out
    stranger.tell("update", session(4), (0, 0, 1))
    stranger.until(lambda: rows(stranger) == {4})
    assert stranger.node.exchange.status()["links"]["s2/0"]["gaps"] == 1


def test_a_frame_lost_at_the_end_is_missed_by_the_next_ping(stranger: Stranger) -> None:
    stranger.begin()
    stranger.number += 1
    stranger.ping()
    expect(stranger, "lost")
    assert stranger.hear("broken").life == stranger.life


def test_a_frame_twice_is_applied_once(stranger: Stranger) -> None:
    stranger.begin()
    stranger.tell("update", session(1), (0, 0, 1))
    parts = stranger.tell("update", session(2), (0, 0, 1))
    stranger.until(lambda: rows(stranger) == {1, 2})
    applied = stranger.node.tables.applied
    stranger.socket.send_multipart(parts)
    stranger.tell("update", session(3), (0, 0, 1))
    stranger.until(lambda: rows(stranger) == {1, 2, 3})
    expect(stranger, "duplicated")
    assert stranger.node.tables.applied == applied + 1


@pytest.mark.parametrize("part", [0, 1])
def test_any_flipped_bit_is_seen(stranger: Stranger, part: int) -> None:
    stranger.begin()
    frame = Frame("update", stranger.life, 2, SHARD, 1, 1, (0, 0, 1))
    good = [encode(frame, session(1)), session(1)]
    for bit in range(8 * len(good[part])):
        parts = [bytearray(good[0]), bytearray(good[1])]
        parts[part][bit // 8] ^= 1 << bit % 8
        stranger.socket.send_multipart([bytes(parts[0]), bytes(parts[1])])
    expect(stranger, "corrupted", 8 * len(good[part]))
    assert rows(stranger) == set()
    stranger.socket.send_multipart(good)
    stranger.until(lambda: rows(stranger) == {1})


def test_an_old_epoch_a_foreign_shard_a_copy_that_has_not_begun(stranger: Stranger) -> None:
    stranger.node.exchange.accept(SHARD, "s2/0", 5)
    stranger.open()
    stranger.tell("update", session(1), (0, 0, 1), epoch=5)
    expect(stranger, "early")
    stranger.tell("begin", epoch=4, fields={"w": 1})
    stranger.tell("update", session(1), (0, 0, 1), epoch=4)
    expect(stranger, "old_epoch", 2)
    stranger.tell("update", session(1), (0, 0, 1), shard=SHARD + 1, epoch=9)
    expect(stranger, "foreign")
    stranger.ping(fields={"s": {SHARD: [1, 4]}})
    stranger.tell("begin", epoch=6, fields={"w": 1})
    stranger.tell("update", session(2), (0, 0, 1), epoch=6)
    stranger.until(lambda: rows(stranger) == {2})
    stranger.node.exchange.accept(SHARD, None)
    stranger.tell("update", session(3), (0, 0, 1), epoch=6)
    expect(stranger, "foreign", 2)
    assert rows(stranger) == {2}


def test_a_copy_that_was_missed_is_asked_for(stranger: Stranger) -> None:
    stranger.open()
    stranger.ping(fields={"s": {SHARD: [9, 1]}})
    asked = stranger.hear("resync")
    assert (asked.shard, asked.series) == (SHARD, 9)


def test_what_was_once_right_is_refused_on_another_connection_and_in_another_life(stranger: Stranger) -> None:
    stranger.begin()
    once = [stranger.tell("update", session(row), (0, 0, 1)) for row in range(1, 6)]
    stranger.until(lambda: rows(stranger) == {1, 2, 3, 4, 5})
    applied = stranger.node.tables.applied
    other = stranger.connect(stranger.key)  # with the key of the peer itself
    other.send_multipart([encode(Frame("open", fields={"v": [VERSION]})), b""])
    for parts in once:
        other.send_multipart(parts)
    expect(stranger, "stale", 5)
    stranger.tell("update", session(6), (0, 0, 1))  # the life goes on
    stranger.until(lambda: 6 in rows(stranger))
    assert stranger.node.tables.applied == applied + 1
    stranger.begin()  # another life
    stranger.tell("update", session(7), (0, 0, 1))
    stranger.until(lambda: 7 in rows(stranger))
    for parts in once:
        stranger.socket.send_multipart(parts)
    expect(stranger, "stale", 10)


@pytest.mark.parametrize("which", ["another", "none"])
def test_a_key_that_the_map_does_not_have_does_not_come_in(stranger: Stranger, which: str) -> None:
    stranger.begin()
    other = stranger.connect(keys.generate() if which == "another" else None)
    refused = stranger.node.exchange.refused
    stranger.until(lambda: refused["key"] + refused["handshake"] >= 1)  # without a key either side may hang up first
    with contextlib.suppress(zmq.Again):
        other.send_multipart([encode(Frame("open", fields={"v": [VERSION]})), b""], zmq.DONTWAIT)
    stranger.tell("update", session(1), (0, 0, 1))
    stranger.until(lambda: rows(stranger) == {1})
    assert not other.poll(0)
    assert set(stranger.node.refused()) <= ({"key"} if which == "another" else {"key", "handshake"})


def test_the_version_before_is_spoken_and_no_other(stranger: Stranger) -> None:
    stranger.open((VERSION - 1,))
    stranger.tell("begin", fields={"w": 1}, version=VERSION - 1)
    stranger.tell("update", session(1), (0, 0, 1), version=VERSION - 1)
    assert stranger.hear("ack").version == VERSION - 1
    stranger.tell("update", session(2), (0, 0, 1), version=VERSION + 1)
    expect(stranger, "version")
    stranger.say(Frame("open", fields={"v": [VERSION + 1]}))
    expect(stranger, "version", 2)
    assert rows(stranger) == {1}


MALFORMED: list[tuple[str, Fields]] = [
    ("a kind that is none", {"k": "upgrade"}),
    ("a kind that is no text", {"k": 7}),
    ("no counts", {"n": []}),
    ("counts that do not fit the body", {"n": [0, 0, 2]}),
    ("counts below zero", {"n": [-8, 0, 2]}),
    ("counts that are no numbers", {"n": ["", 0, 1]}),
    ("a shard beyond all", {"s": 1 << 16}),
    ("a number below zero", {"q": -1}),
    ("an epoch that is true", {"e": True}),
    ("fields that are no map", {"f": [1]}),
]


@pytest.mark.parametrize("told", [told for _, told in MALFORMED], ids=[name for name, _ in MALFORMED])
def test_a_header_that_cannot_be(stranger: Stranger, told: Fields) -> None:
    stranger.begin()
    frame: Fields = {"v": VERSION, "k": "update", "l": stranger.life, "q": 2, "s": SHARD, "e": 1, "i": 1, "n": [0, 0, 1]}
    stranger.socket.send_multipart(signed(msgpack.packb({**frame, **told}), session(1)))
    expect(stranger, "malformed")
    assert rows(stranger) == set()


def signed(header: bytes, body: bytes) -> list[bytes]:
    """Any header with the checksum that belongs to it."""
    return [header + zlib.crc32(body, zlib.crc32(header)).to_bytes(4, "big"), body]


@pytest.mark.parametrize(
    "fields", [{}, {"k": 2, "r": 0}, {"k": 0, "r": 1}, {"k": 0, "r": 2**32}, {"k": -1, "r": 0}, {"k": "0", "r": 0}]
)
def test_a_bitmap_of_rows_that_cannot_be(stranger: Stranger, fields: Fields) -> None:
    stranger.begin()
    stranger.tell("bitmap", b"\xff" * (BITMAP_ROWS // 8), (BITMAP_ROWS,), fields=fields)
    expect(stranger, "malformed")
    assert not stranger.node.tables.refreshed_rows


@pytest.mark.parametrize("told", [{"k": 4}, {"k": 0, "r": 1}, {"a": -1}, {"a": 2**64 - 1, "b": ""}, {"n": None}, {"d": "x"}])
def test_a_question_about_rows_that_cannot_be(stranger: Stranger, told: Fields) -> None:
    stranger.begin()
    fields: Fields = {"n": 1, "k": 0, "r": 0, "a": 1, "b": 2, "d": 0, **told}
    stranger.tell("compare", bytes(COMPARED_ROWS // 8), (0, COMPARED_ROWS), fields=fields)
    expect(stranger, "malformed")


def test_messages_of_any_number_of_parts_and_any_size(stranger: Stranger) -> None:
    stranger.begin()
    stranger.socket.send(b"alone")
    stranger.socket.send_multipart([b"x"] * 1000)
    stranger.socket.send_multipart([b"", b""])
    stranger.socket.send_multipart([b"y" * (HEADER_AT_MOST + 9), b"z"])
    stranger.tell("update", session(1), (0, 0, 1))
    expect(stranger, "malformed", 4)
    stranger.until(lambda: rows(stranger) == {1})
    stranger.socket.send_multipart([b"", bytes(BODY_AT_MOST * 2)])  # too long: ZeroMQ hangs up
    stranger.begin()
    stranger.tell("update", session(2), (0, 0, 1))
    stranger.until(lambda: rows(stranger) == {2} or rows(stranger) == {1, 2})


def test_fuzzed_frames_change_nothing_and_cost_nothing(stranger: Stranger) -> None:
    """Random bytes; right frames with random parts; right checksums over nonsense. In each the peer is alive and goes on."""
    chance = random.Random(4)
    stranger.begin()
    stranger.tell("update", session(1), (0, 0, 1))
    stranger.until(lambda: rows(stranger) == {1})
    before = stranger.node.tables.rows.copy()
    begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(40):
        for _ in range(100):
            stranger.socket.send_multipart(nonsense(chance, stranger))
        stranger.node.exchange.turn(ticks())
    stranger.until(lambda: sum(stranger.node.exchange.refused.values()) > 3000)
    assert stranger.node.tables.rows == before
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - begun < 64 << 10  # KiB
    assert set(stranger.node.refused()) <= set(REASONS)
    stranger.begin()
    stranger.tell("update", session(2), (0, 0, 1))
    stranger.until(lambda: 2 in rows(stranger))
    assert stranger.node.exchange.evidence("s2/0", ticks()) == ALIVE


def nonsense(chance: random.Random, stranger: Stranger) -> list[bytes]:
    """A message that is wrong in one of many ways; never a right one of rows."""
    way = chance.randrange(4)
    if way == 0:
        return [chance.randbytes(chance.randrange(80)), chance.randbytes(chance.randrange(200))]
    if way == 1:
        return signed(chance.randbytes(chance.randrange(5, 80)), b"")
    told = {key: thing(chance) for key in chance.sample(["v", "l", "q", "s", "e", "i", "n", "f"], 4)}
    frame = {"v": VERSION, "k": chance.choice(list(KINDS)), "l": stranger.life, "q": 2**40, "s": SHARD, "n": [], "f": {}}
    return signed(msgpack.packb({**frame, **told}), b"")


def thing(chance: random.Random, depth: int = 0) -> object:
    """Anything that msgpack has."""
    leaves: list[object] = [0, 1, -1, 2**32, 2**63, True, None, 1.5, "s", b"b", "x" * 2000]
    if depth > 3 or chance.random() < 0.6:
        return chance.choice(leaves)
    if chance.random() < 0.5:
        return [thing(chance, depth + 1) for _ in range(chance.randrange(4))]
    return {chance.choice(["s", "k", "r", "a", "n", 3, 1.5]): thing(chance, depth + 1) for _ in range(chance.randrange(4))}


def test_rows_that_cannot_be_are_refused_and_the_others_of_the_frame_taken(stranger: Stranger) -> None:
    stranger.begin()
    mapping = np.zeros(1, MAPPING_RECORD)
    mapping["row"], mapping["klass"] = 2**31, MAPPING_0
    stranger.tell("update", mapping.tobytes() + session(1) + session(2**31), (0, 1, 2))
    stranger.until(lambda: rows(stranger) == {1})
    assert stranger.node.exchange.status()["refused_records"] == 2


def test_a_key_that_is_taken_out_of_the_map_is_out(stranger: Stranger) -> None:
    stranger.begin()
    stranger.tell("update", session(1), (0, 0, 1))
    stranger.until(lambda: rows(stranger) == {1})
    stranger.node.exchange.part("s2/0")
    stranger.tell("update", session(2), (0, 0, 1))
    expect(stranger, "foreign")
    assert rows(stranger) == {1}


def test_an_endpoint_that_is_taken_says_so() -> None:
    node = Node("s1/0")
    with pytest.raises(OSError, match="cannot listen for replication at tcp://127"):
        Node("s2/0", endpoint=node.exchange.endpoint)
    node.exchange.close()


def test_a_handshake_that_was_too_slow_is_no_wrong_key() -> None:
    """Nobody answers for longer than a handshake may take: the other side tries again, and comes in."""
    one, two = Node("s1/0"), Node("s2/0")
    one.exchange.meet(two.peer, ticks())
    two.exchange.meet(one.peer, ticks())
    time.sleep(2.3)
    with Room() as room:
        room.nodes.update({"s1/0": one, "s2/0": two})
        room.until(lambda: one.exchange.evidence("s2/0", ticks()) == two.exchange.evidence("s1/0", ticks()) == ALIVE)
        assert {*one.refused(), *two.refused()} <= {"handshake"}


def test_rows_refused_after_the_copy_lead_to_another_copy_less_and_less_often(stranger: Stranger) -> None:
    stranger.begin()
    stranger.tell("end")
    assert stranger.hear("ack").life == stranger.life
    copy = stranger.node.exchange._subscriber.get(SHARD)
    assert copy
    for patience in (1000, 2000, 4000):
        copy.asked -= copy.patience
        stranger.until(lambda: copy.is_whole)
        stranger.tell("update", session(2**31), (0, 0, 1))
        assert stranger.hear("resync").series == 1
        assert copy.patience == patience and stranger.node.exchange.refused_of(SHARD) == 1
        stranger.tell("begin", fields={"w": 1})
        stranger.tell("end")
        stranger.until(lambda: copy.is_whole and not copy.refused)
    stranger.tell("update", session(2**31), (0, 0, 1))
    stranger.until(lambda: copy.wrong)


def test_a_copy_without_a_number_is_none(stranger: Stranger) -> None:
    stranger.open()
    stranger.tell("update", session(1), (0, 0, 1), series=0)
    stranger.tell("begin", series=0, fields={"w": 1})
    expect(stranger, "early", 2)
    assert rows(stranger) == set()


# --- several shards in one frame ------------------------------------------------------------------------------------------


def parts(*told: tuple[int, int]) -> Fields:
    """The field of `updates` that has so many sessions of each shard."""
    return {"p": [[shard, 1, 1, 0, 0, sessions] for shard, sessions in told]}


def test_of_several_shards_in_a_frame_each_is_taken_or_refused_for_itself(stranger: Stranger) -> None:
    stranger.begin()
    stranger.tell("updates", session(1) + session(2) + session(3), (0, 0, 3), fields=parts((SHARD + 1, 1), (SHARD, 2)))
    expect(stranger, "foreign")
    assert rows(stranger) == {2, 3}
    assert stranger.node.refused() == {"foreign": 1}


@pytest.mark.parametrize(
    "fields",
    [{}, {"p": []}, {"p": 7}, {"p": [7]}, parts((SHARD, 1)), parts((SHARD, 3)), parts((SHARD, -1), (SHARD, 3)),
     {"p": [[SHARD, 1, 1, 0, 0]]}, {"p": [[SHARD, 1, 1, 0, 0, True], [SHARD, 1, 1, 0, 0, 1]]},
     {"p": [[1 << 16, 1, 1, 0, 0, 2]]}],
)  # fmt: skip
def test_parts_that_are_not_what_the_body_has_are_refused_before_any_is_taken(stranger: Stranger, fields: Fields) -> None:
    stranger.begin()
    stranger.tell("updates", session(1) + session(2), (0, 0, 2), fields=fields)
    expect(stranger, "malformed")
    assert rows(stranger) == set()


def test_the_version_before_has_no_such_frame(stranger: Stranger) -> None:
    stranger.open((VERSION - 1,))
    stranger.tell("begin", fields={"w": 1}, version=VERSION - 1)
    stranger.tell("updates", session(1), (0, 0, 1), fields=parts((SHARD, 1)), version=VERSION - 1)
    expect(stranger, "malformed")
    assert rows(stranger) == set()
