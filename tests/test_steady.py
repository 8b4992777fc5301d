"""A link's steady state in compiled code: what it writes is what `frames.encode` writes, and whatever is not plain is left."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replication import lanes, steady
from replication.checksum import crc32
from replication.frames import HEADER_AT_MOST, Frame, decode, encode
from replication.harvest import ENDED, MAPPINGS, SESSIONS, SHARD
from replication.lanes import Desk
from replication.steady import ACKNOWLEDGED, KNOWN, LIFE, NUMBER, SERIES, SOCKET, TRUSTED, Lane
from replication.tables import Part
from shards.jit import hot
from shards.state import TOMBSTONES, Array, Sizes, State, new_state
from tests.test_exchange_rows import BURSTS, Cores

WORDS = st.sampled_from([0, 1, 127, 128, 255, 256, 2**16 - 1, 2**16, 2**31, 2**32 - 1]) | st.integers(0, 2**32 - 1)
LIVES = st.sampled_from([1, 2**32, 2**63 - 1]) | st.integers(1, 2**63 - 1)
SHARDS = 40


@hot
def _crc32(memory: Array, length: int, before: int) -> int:
    return crc32(memory, length, before)


@given(st.binary(max_size=400) | st.integers(0, 70_000).map(bytes), st.integers(0, 2**32 - 1))
def test_the_checksum_is_zlib_s(data: bytes, before: int) -> None:
    memory = np.frombuffer(data + b"beyond", np.uint8).copy()
    assert _crc32(memory, len(data), before) == zlib.crc32(data, before)


def test_carry_less_multiplication_takes_any_number_of_blocks() -> None:
    memory = np.random.default_rng(3).integers(0, 256, 1 << 16).astype(np.uint8)
    for length in [*range(60, 200), 4095, 4096, 1 << 16]:
        assert _crc32(memory, length, 7) == zlib.crc32(memory[:length].data, 7)


# --- what is written ------------------------------------------------------------------------------------------------------


@cache
def _memory() -> State:
    sizes = {**dict.fromkeys(Sizes._fields, 1), "extents": 2, "buckets": 4, "neighbours": 4, "shards": SHARDS}
    return new_state(Sizes(**sizes))


def memory_of(epochs: list[int]) -> State:
    """A core with shards of these epochs."""
    state = _memory()
    state.shards["epoch"][: len(epochs)] = epochs
    return state


def lane_of(rows: list[tuple[int, ...]], life: int, number: int) -> Lane:
    """A lane whose harvest has found (series, tombstones, mappings, sessions) of each shard, filled with whatever."""
    streams = np.zeros((len(rows), steady.STREAM_COLUMNS), np.int64)
    for shard, told in enumerate(rows):
        streams[shard, SHARD] = shard
        streams[shard, [SERIES, ENDED, MAPPINGS, SESSIONS]] = told
    by_shard = tuple(np.zeros(SHARDS, np.int64) for _ in range(3))
    lane = Desk().lane(steady.new_book(), streams, by_shard)  # type: ignore[arg-type]
    lane.columns[[LIFE, NUMBER]] = life, number
    for seed, words in enumerate((lane.ended_words, lane.mapping_words, lane.session_words)):
        words[:] = np.random.default_rng(seed).integers(0, 1 << 63, len(words)).astype(np.uint64)
    return lane


def modelled(lane: Lane, epochs: list[int]) -> tuple[bytes, bytes]:
    """The same frame as `frames.encode` has it."""
    body, begin, parts = b"", [0, 0, 0], []
    for row in lane.streams.tolist():
        counts = row[ENDED], row[MAPPINGS], row[SESSIONS]
        for kind, (records, count) in enumerate(zip((lane.ended, lane.mappings, lane.sessions), counts, strict=True)):
            body += records[begin[kind] : begin[kind] + count].tobytes()
            begin[kind] += count
        if any(counts):
            parts.append([row[SHARD], epochs[row[SHARD]], row[SERIES], *counts])
    life, number = lane.columns[[LIFE, NUMBER]].tolist()
    if len(parts) == 1:
        shard, epoch, series, *counted = parts[0]
        return encode(Frame("update", life, number, shard, epoch, series, tuple(counted)), body), body
    total = tuple(map(sum, zip(*(part[3:] for part in parts), strict=True)))
    return encode(Frame("updates", life, number, counts=total, fields={"p": parts}), body), body


FOUND = st.tuples(WORDS, *(st.integers(0, most) for most in (30, 8, 8)))


@settings(max_examples=60)
@given(st.lists(FOUND, min_size=1, max_size=SHARDS), st.data(), LIVES, WORDS)
def test_a_frame_is_byte_by_byte_what_the_model_writes(
    rows: list[tuple[int, ...]], data: st.DataObject, life: int, number: int
) -> None:
    rows[0] = (rows[0][0], 1, *rows[0][2:])
    epochs = [data.draw(WORDS) for _ in rows]
    lane = lane_of(rows, life, number)
    size = steady.write_body(lane)
    parts = sum(any(row[1:]) for row in rows)
    head = steady.write_header(memory_of(epochs), lane, parts, size)
    header, body = modelled(lane, epochs)
    assert lane.body[:size].tobytes() == body and lane.header[:head].tobytes() == header
    assert decode(header, body).counts == tuple(sum(row[k] for row in rows) for k in (1, 2, 3))


def test_the_longest_frame_has_room() -> None:
    most = 9 + 3 + 5 + 5 + 3 * 3  # bytes of a row of `updates`, and more
    assert steady.PARTS_AT_MOST * most + 100 <= HEADER_AT_MOST


# --- what is read ---------------------------------------------------------------------------------------------------------


def hear(lane: Lane, header: bytes) -> bool:
    """Whether an answer is taken as a plain acknowledgement."""
    lane.answer[: len(header)] = np.frombuffer(header, np.uint8)
    return bool(steady._take_answer(lane, len(header), 1000))


COPIES = st.dictionaries(st.integers(0, 2**16 - 1), st.integers(1, 2**32 - 1), max_size=20)


@settings(max_examples=60)
@given(LIVES, st.integers(0, 600), st.integers(0, 255), COPIES, st.data())
def test_acknowledgements_are_read_if_they_tell_of_copies_what_was_told_before(
    life: int, number: int, waited: int, copies: dict[int, int], data: st.DataObject
) -> None:
    lane = lane_of([(1, 0, 0, 0)], life, 512)
    header = encode(Frame("ack", life, number, fields={"w": waited, "i": copies}))
    assert not hear(lane, header) and lane.columns[TRUSTED] == 0
    lane.columns[TRUSTED] = 1  # Python has taken it
    assert hear(lane, header) is (number <= 512)
    assert lane.columns[ACKNOWLEDGED] == (number if number <= 512 else 0)
    flipped = bytearray(header)
    flipped[data.draw(st.integers(0, len(header) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    before = lane.columns.copy()
    assert not hear(lane, bytes(flipped)) and (lane.columns[: KNOWN - 2] == before[: KNOWN - 2]).all()
    for other in ({**copies, 70_000: 1}, life + 1 if life < 2**63 - 1 else 1):
        told = (life, other) if isinstance(other, dict) else (other, copies)
        assert not hear(lane, encode(Frame("ack", told[0], 512, fields={"w": 0, "i": told[1]})))


@given(st.binary(max_size=120))
def test_nonsense_is_left_to_others(header: bytes) -> None:
    lane = lane_of([(1, 0, 0, 0)], 5, 5)
    assert not hear(lane, header) and not hear(lane, encode(Frame("ack", 5, 5))[: len(header)])


def test_what_is_in_flight_is_counted_out_again() -> None:
    book = steady.new_book()
    for number in range(1, 1201):
        book.columns[NUMBER] = number
        book.flights[number % steady.FLIGHTS] = 100 + number, 64, 0, 2
        book.columns[steady.FLIGHT_BYTES] += 64
        for shard in (1, 2):
            book.loads[book.columns[steady.LAST_LOAD] % steady.LOADS] = number, shard, 1, 32
            book.columns[steady.LAST_LOAD] += 1
        if number % 400 == 0:
            steady.acknowledge(*book, number - 3, 5, 150 + number)
            assert book.columns[steady.FLIGHT_BYTES] == 3 * 64
            assert book.columns[steady.LAST_LOAD] - book.columns[steady.FIRST_LOAD] == 6
    assert book.lags.sum() == 2 * 1197 and book.lags[45:448].sum() == 2 * 1197


# --- over real links ------------------------------------------------------------------------------------------------------


class Steady(Cores):
    """Two cores in the steady state, and how many lanes the first has taken a turn with."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.room.pair_up(0, "s1/0", "s2/0")
        self.exchange = self.room["s1/0"].exchange
        self.room.until(lambda: self.exchange._lanes.is_open and self.exchange._lanes._lanes)

    def work(self) -> None:
        """Bursts, one after another; then both are the same, nothing was refused, and no copy was made anew."""
        for _ in range(BURSTS):
            self.burst()
        self.settle()
        assert self.room["s1/0"].refused() == self.room["s2/0"].refused() == {}


@pytest.mark.alone
def test_compiled_code_sends_the_changes_of_the_steady_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for turns in which an answer was none that it reads: the first of a life, and after each new copy."""
    with Steady(5) as cores:
        source, before = cores.exchange._source, cores.exchange.status()["links"]["s2/0"]
        harvested: list[Part] = []
        harvest = source.harvest

        def note(wanted: Sequence[tuple[int, bool]], now: int) -> list[Part]:
            found: list[Part] = harvest(wanted, now)
            harvested.extend(part for part in found if part.rows)
            return found

        monkeypatch.setattr(source, "harvest", note)
        cores.work()
        after = cores.exchange.status()
        assert after["streams"][0]["resyncs"] == 0
        assert len(harvested) <= 2 < after["links"]["s2/0"]["frames_sent"] - before["frames_sent"]


@pytest.mark.alone
def test_a_frame_that_zeromq_does_not_take_is_sent_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its socket is none for compiled code, so each frame comes back."""
    with Steady(6) as cores:
        sender, kept = cores.exchange._senders["s2/0"], []
        keep = sender.keep

        def note(header: bytes, body: bytes) -> None:
            kept.append(header)
            keep(header, body)

        monkeypatch.setattr(sender, "keep", note)
        for _ in range(BURSTS):
            sender.book.columns[SOCKET] = 0
            cores.burst()
        cores.settle()
        assert kept and cores.exchange.status()["streams"][0]["resyncs"] == 0 and cores.room["s2/0"].refused() == {}


@pytest.mark.alone
def test_lost_tombstones_make_the_copy_begin_anew() -> None:
    with Steady(7) as cores:
        core = cores.one.state.core[0]
        core["tombstones"] = (int(core["tombstones"]) + TOMBSTONES + 1) & 0xFFFFFFFF
        cores.room.until(lambda: cores.exchange.status()["streams"][0]["resyncs"] == 1)
        cores.room.until(lambda: cores.exchange.synced(0, "s2/0"))
        assert cores.exchange.status()["lapped"] == 1
        cores.settle()


@pytest.mark.alone
def test_more_than_fits_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SESSIONS_AT_ONCE", "MAPPINGS_AT_ONCE", "TOMBSTONES_AT_ONCE"):
        monkeypatch.setattr(lanes, name, 2)
    with Steady(8) as cores:
        cores.work()
        assert cores.exchange.status()["streams"][0]["resyncs"] == 0
