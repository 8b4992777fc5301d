"""Changes that compiled code takes: the same as Python does, or nothing at all.

Frames are put into the inlet's memory as if ZeroMQ had brought them; `test_exchange*` has real sockets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replication import inlet
from replication.frames import KINDS, Frame, decode, encode, parts_of
from replication.inlet import (
    ANY_REFUSED,
    BODY_LENGTH,
    BYTES,
    FRAMES,
    GOT,
    HEADER_LENGTH,
    HEARD,
    KEY,
    KEY_BYTES,
    LIFE,
    NEXT,
    OWED,
    PARTS,
    REFUSED,
    TOLD,
    WAY,
    WAY_LENGTH,
    WAYS,
    Inlet,
)
from replication.intake import new_inlet
from shards import invariants
from shards.jit import PURE, hot
from shards.records import TOMBSTONE
from shards.state import Array, State
from tests.frames import address
from tests.fuzz import RICH, Traffic, bed
from tests.twins import Twins, differences, mapped

NOW = 1_000_000
OURS, LIFE_NUMBER, EPOCH, SERIES = b"\0\x12\x34\x56\x78", 2**62 + 1, 5, 9
BURSTS = 12 if PURE else 100
PLACE = {"tombstones": 0, "mappings": 1, "sessions": 2}


@hot
def _is_applied(state: State, given: Inlet, now: int) -> bool:
    return inlet._is_applied(state, given, now)


def new(number: int = 1) -> Inlet:
    """An inlet that expects a number next, of shards 0 and 1, by one way."""
    made = new_inlet(np.zeros((3, inlet.WAY_COLUMNS), np.int64))
    made.columns[WAYS] = 2
    made.ways[1, [KEY, KEY_BYTES, LIFE, NEXT]] = int.from_bytes(OURS, "big"), len(OURS), LIFE_NUMBER, number
    made.copies[:2] = 1, EPOCH, SERIES, 0
    return made


def give(taker: Inlet, state: State, header: bytes, body: bytes, way: bytes = OURS, parts: int = 3) -> bool:
    """Whether a message is taken."""
    for memory, told in ((taker.way, way), (taker.header, header), (taker.body, body)):
        memory[: len(told)] = np.frombuffer(told, np.uint8)
    taker.columns[[WAY_LENGTH, HEADER_LENGTH, BODY_LENGTH, PARTS]] = len(way), len(header), len(body), parts
    return bool(_is_applied(state, taker, NOW))


def update(number: int, counts: tuple[int, ...], body: bytes, /, **other: Any) -> bytes:
    """Header of changes of shard 0."""
    told: dict[str, Any] = {"life": LIFE_NUMBER, "number": number, "epoch": EPOCH, "series": SERIES, "counts": counts}
    return encode(Frame("update", **(told | other)), body)


class Replica:
    """Twins, what one of them says in frames as peers send them, and the other's inlet."""

    def __init__(self, seed: int) -> None:
        self.twins = Twins(bed(RICH), NOW)
        self.twins.one.resolve(*range(address("192.0.2.0"), address("192.0.3.0")))
        self.traffic = Traffic(seed, self.twins.one.bed, lambda: mapped(self.twins.one.state))
        self.inlet, self.number = new(), 0

    def burst(self) -> list[tuple[tuple[int, ...], bytes]]:
        """Some packets; then the counts and the body of each piece of what has changed."""
        one = self.twins.one
        one.receive(self.traffic.burst(32), NOW)
        one.resolve()
        one.again(NOW)
        self.twins.sender.changes(NOW)
        said = [(each.kind, each.records) for each in self.twins.sender.way]
        self.twins.sender.way.clear()
        return [(tuple(len(records) if PLACE[kind] == k else 0 for k in range(3)), records.tobytes()) for kind, records in said]

    def take(self, header: bytes, body: bytes) -> None:
        """It is taken as the next one, which is what decides: `decode` agrees."""
        self.number += 1
        assert decode(header, body).number == self.number
        assert give(self.inlet, self.twins.other.state, header, body)
        assert self.inlet.ways[1, [NEXT, FRAMES, OWED, HEARD, GOT]].tolist() == [self.number + 1, self.number, 1, 1, NOW]

    def check(self) -> None:
        """Both have the same, and nothing was refused."""
        assert invariants.complaints(self.twins.other.state) == []
        assert differences(self.twins.one.state, self.twins.other.state) == []
        assert not self.inlet.columns[ANY_REFUSED] and not self.inlet.copies[:2, REFUSED].any()


@pytest.mark.parametrize("seed", range(2))
def test_a_copy_follows_by_frames_of_one_shard(seed: int) -> None:
    replica, told, size = Replica(seed), 0, 0
    for _ in range(BURSTS):
        for counts, body in replica.burst():
            replica.take(update(replica.number + 1, counts, body), body)
            told, size = told + sum(counts), size + len(body)
    replica.check()
    assert told > 100 and replica.inlet.columns[TOLD] == told and replica.inlet.ways[1, BYTES] == size


def test_a_copy_follows_by_frames_of_several_parts() -> None:
    replica, most = Replica(4), 0
    for _ in range(BURSTS):
        said = replica.burst()
        if not said:
            continue
        parts = [[0, EPOCH + 1, SERIES, *counts] for counts, _ in said]  # an epoch that is newer than ours is none to refuse
        body = b"".join(each for _, each in said)
        counts = tuple(map(sum, zip(*(each for each, _ in said), strict=True)))
        frame = Frame("updates", LIFE_NUMBER, replica.number + 1, counts=counts, fields={"p": parts})
        replica.take(encode(frame, body), body)
        most = max(most, len(parts))
    replica.check()
    assert most >= 2


def test_refused_records_are_counted_by_shard() -> None:
    taker, state = new(), Twins(bed(RICH), NOW).other.state
    nonsense = np.full(3, 0xFF, np.uint8).repeat(8).view(TOMBSTONE)
    assert give(taker, state, update(1, (3, 0, 0), nonsense.tobytes(), shard=1), nonsense.tobytes())
    assert taker.columns[[TOLD, ANY_REFUSED]].tolist() == [3, 1] and taker.copies[:3, REFUSED].tolist() == [0, 3, 0]


# --- what is not taken ----------------------------------------------------------------------------------------------------

BODY = bytes(8 * 2 + 32)
COUNTS = (2, 1, 0)
OTHERS: dict[str, dict[str, Any]] = {
    "another life": {"life": LIFE_NUMBER + 1},
    "no life": {"life": 0},
    "a number that was there": {"number": 6},
    "a number that is not next": {"number": 8},
    "a shard of which nothing is taken": {"shard": 2},
    "an old epoch": {"epoch": EPOCH - 1},
    "another copy": {"series": SERIES + 1},
    "counts that are not the body": {"counts": (2, 0, 0)},
    "more than there is": {"counts": (2**31, 1, 0)},
    "the version before": {"version": 1},
    "another field": {"fields": {"x": 1}},
}


@contextmanager
def unchanged(state: State, taker: Inlet) -> Iterator[None]:
    """Nothing was done, to the copy or to the accounts."""
    before = [np.array(each, copy=True) for each in (state.sessions, state.mappings, state.shards, taker.ways, taker.copies)]
    yield
    after = (state.sessions, state.mappings, state.shards, taker.ways, taker.copies)
    assert all(one.tobytes() == other.tobytes() for one, other in zip(before, after, strict=True))


@pytest.fixture(scope="module")
def state() -> State:
    """A replica's memory."""
    return Twins(bed(RICH), NOW).other.state


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())
def test_what_is_not_plainly_next_is_left(state: State, other: dict[str, Any]) -> None:
    taker = new(7)
    with unchanged(state, taker):
        assert not give(taker, state, update(7, COUNTS, BODY, **other), BODY)
    assert give(taker, state, update(7, COUNTS, BODY), BODY), "and nothing else was wrong with it"


@pytest.mark.parametrize("kind", [name for name in KINDS if name != "update"])
def test_other_kinds_are_left(state: State, kind: str) -> None:
    taker, counts = new(), (0,) * len(KINDS[kind].eighths)
    with unchanged(state, taker):
        assert not give(taker, state, encode(Frame(kind, LIFE_NUMBER, 1, 0, EPOCH, SERIES, counts)), b"")


def parted(parts: Any, counts: tuple[int, ...] = COUNTS) -> bytes:
    """Header of these parts."""
    return encode(Frame("updates", LIFE_NUMBER, 1, counts=counts, fields={"p": parts}), BODY)


GOOD = [[0, EPOCH, SERIES, 1, 0, 0], [1, EPOCH, SERIES, 1, 1, 0]]
PARTED: dict[str, Any] = {
    "no part": [],
    "not all": GOOD[:1],
    "one more": [*GOOD, [0, EPOCH, SERIES, 1, 0, 0]],
    "one foreign": [GOOD[0], [2, EPOCH, SERIES, 1, 1, 0]],
    "one old": [GOOD[0], [1, EPOCH - 1, SERIES, 1, 1, 0]],
    "one of another copy": [GOOD[0], [1, EPOCH, SERIES + 1, 1, 1, 0]],
    "too short": [GOOD[0], [1, EPOCH, SERIES, 1, 1]],
    "too long": [GOOD[0], [1, EPOCH, SERIES, 1, 1, 0, 0]],
    "beyond the last shard": [GOOD[0], [2**16, EPOCH, SERIES, 1, 1, 0]],
    "beyond all numbers": [GOOD[0], [2**64 - 1, EPOCH, SERIES, 1, 1, 0]],
    "no list": 3,
}


@pytest.mark.parametrize("parts", PARTED.values(), ids=PARTED.keys())
def test_parts_that_are_not_all_as_they_should_be_are_left(state: State, parts: Any) -> None:
    taker = new()
    with unchanged(state, taker):
        assert not give(taker, state, parted(parts), BODY)
    assert len(parts_of(decode(parted(GOOD), BODY))) == 2 and give(taker, state, parted(GOOD), BODY)


def _broken(taker: Inlet) -> None:
    taker.ways[1, LIFE] = 0


def _unknown(taker: Inlet) -> None:
    taker.copies[0, WAY] = 0


@pytest.mark.parametrize("spoil", [_broken, _unknown])
def test_a_way_or_a_copy_that_is_closed_takes_nothing(state: State, spoil: Callable[[Inlet], None]) -> None:
    taker = new()
    spoil(taker)
    with unchanged(state, taker):
        assert not give(taker, state, update(1, COUNTS, BODY), BODY)


@pytest.mark.parametrize(("way", "parts"), [(b"\0\x12\x34\x56\x79", 3), (OURS[1:], 3), (bytes(40), 3), (OURS, 2), (OURS, 4)])
def test_whose_way_is_another_or_whose_parts_are_more_is_left(state: State, way: bytes, parts: int) -> None:
    taker = new()
    with unchanged(state, taker):
        assert not give(taker, state, update(1, COUNTS, BODY), BODY, way, parts)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_frame_with_any_other_byte_or_end_is_left(state: State, data: st.DataObject) -> None:
    many = data.draw(st.booleans())
    header = bytearray(parted(GOOD) if many else update(1, COUNTS, BODY))
    body, taker = bytearray(BODY), new()
    memory = data.draw(st.sampled_from([header, body]))
    at = data.draw(st.integers(0, len(memory) - 1))
    if data.draw(st.booleans()):
        memory[at] ^= data.draw(st.integers(1, 255))
    else:
        del memory[at:]
    with unchanged(state, taker):
        assert not give(taker, state, bytes(header), bytes(body))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=120), st.binary(max_size=40), st.booleans())
def test_no_bytes_do_harm(state: State, header: bytes, body: bytes, seeded: bool) -> None:
    taker = new()
    begun = parted(GOOD)[: 40 + len(header) % 20] + header if seeded else header
    with unchanged(state, taker):
        assert not give(taker, state, begun, body)


def test_the_longest_frames_have_room() -> None:
    taker: Array = new().ended
    assert len(taker) * TOMBSTONE.itemsize == 1 << 16
