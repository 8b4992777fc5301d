"""The steady state of a link, compiled: acknowledgements read, changes harvested, framed, summed up and handed to ZeroMQ.

Most turns of a core that replicates are this and nothing else; in Python such a turn took longer than four bursts of packets,
since nothing of an interpreter is in the caches after them. What a frame's header is, `frames.encode` says; what is written
here is the same, byte by byte. Whatever is not quite as it always is (an answer of another kind, a queue that is full,
tombstones that were overwritten, more changes than fit) is not decided here: `pump` says what it was, and the turn goes on in
Python.

*The book* of a link (`Book`), whole numbers in the columns below, is what `sender.Sender` keeps its accounts in, too.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import zmq

from replication import calls, harvest
from replication.checksum import crc32
from replication.harvest import ENDED, MAPPINGS, MORE, NEXT, SESSIONS, SHARD
from shards.gather import LAPPED
from shards.jit import PURE, hot, whole
from shards.native import write16, write32, write64
from shards.state import Array, State
from shards.timers import age

FRAMES_AT_MOST, BYTES_AT_MOST = 256, 4 << 20  # in flight, before changes wait
FLIGHTS = 2 * FRAMES_AT_MOST  # in flight at all
LOADS = 1 << 14  # of shards in frames in flight
PARTS_AT_MOST = 2048  # shards in a frame: its header has to end
LAGS = 1024  # ticks; the histogram's last bin has all above
ROUNDS = 4  # frames in one call

# Columns of a book. Numbers count the frames of a life from 1 on; loads are counted ever, and lie where their number says.
(
    NUMBER, ACKNOWLEDGED, FLIGHT_BYTES, CHUNKS, PROGRESS, FRAMES, RECORDS, SENT_BYTES, FIRST_LOAD, LAST_LOAD,  # of the sender
    LIFE, SOCKET, KNOWN, TRUSTED,  # of a life: its number; what of copies the last acknowledgement told, and that it was taken
    HEADER_LENGTH, BODY_LENGTH, PARTS, ANSWERS,  # of a call: what it leaves behind, acknowledgements read
    SAID,  # tick at which the peer was last sent anything that shows that we live
) = range(19)  # fmt: skip
COLUMNS = 19
BIRTH, BYTES, CHUNK, CHANGES = range(4)  # of a frame in flight; it lies where its number says
LOAD_NUMBER, LOAD_SHARD, LOAD_RECORDS, LOAD_BYTES = range(4)
SERIES = harvest.COLUMNS  # the column behind those of the harvest
STREAM_COLUMNS = SERIES + 1

# What `pump` found, bits: an answer that it cannot read; a frame not taken; tombstones lost; more changes than it could send.
ASIDE, UNSENT, LAPPED_SOME, MORE_LEFT = 1, 2, 4, 8

_ANSWERS_AT_ONCE = 64  # then changes are sent, and packets handled
_AT_ONCE, _MORE_FOLLOWS, _RCVMORE = int(zmq.DONTWAIT), int(zmq.DONTWAIT | zmq.SNDMORE), int(zmq.RCVMORE)
_TOMBSTONE_WORDS, _MAPPING_WORDS, _SESSION_WORDS = 1, 4, 8  # of 64 bits

# Addresses that ZeroMQ is given, in `Lane.places`.
HEADER_AT, BODY_AT, ANSWER_AT, WORD_AT, SIZE_AT = range(5)


def _text(*words: str) -> Array:
    """Keys and what else in a header never changes, as msgpack has it: short texts, and bytes in hexadecimal."""
    parts = (bytes.fromhex(word[1:]) if word[0] == "#" else bytes([0xA0 | len(word)]) + word.encode() for word in words)
    return np.frombuffer(b"".join(parts), np.uint8)


_UPDATE = _text("#89", "v", "#02", "k", "update", "l")
_UPDATES = _text("#8a", "v", "#02", "k", "updates", "l")
_NUMBER, _SHARD, _EPOCH, _SERIES = _text("q"), _text("s"), _text("e"), _text("i")
_COUNTS, _FIELDS, _CHECKSUM = _text("n", "#93"), _text("f", "#81", "p"), _text("c", "#ce")
_ACK, _WAITED, _INSTALLED = _text("#8a", "v", "#02", "k", "ack", "l"), _text("w"), _text("i")
_NOTHING_ELSE = _text("s", "#00", "e", "#00", "i", "#00", "n", "#90", "f", "#82", "w")


class Book(NamedTuple):
    """Accounts of a link: COLUMNS; FLIGHTS and LOADS rows of their columns; LAGS; all int64."""

    columns: Array
    flights: Array
    loads: Array
    lags: Array


def new_book() -> Book:
    """Nothing was ever sent."""
    return Book(*(np.zeros(shape, np.int64) for shape in (COLUMNS, (FLIGHTS, 4), (LOADS, 4), LAGS)))


class Lane(NamedTuple):
    """All that `pump` needs of one link. `streams`: what goes that way, STREAM_COLUMNS each.

    By shard: `read` (number of the next tombstone), `drained` (tick at which nothing was left), `whole` (last turn of which
    that is true). The same memory as bytes or words, where both are needed.
    """

    columns: Array
    flights: Array
    loads: Array
    lags: Array
    streams: Array
    read: Array
    drained: Array
    whole: Array
    installed: Array
    answer: Array
    header: Array
    body: Array
    body_words: Array
    ended: Array
    ended_words: Array
    mappings: Array
    mapping_words: Array
    sessions: Array
    session_words: Array
    words: Array
    places: Array


if not PURE:
    from shards import passing

    passing.by_reference(Lane)


# --- acknowledgements -----------------------------------------------------------------------------------------------------


@hot
def acknowledge(columns: Array, flights: Array, loads: Array, lags: Array, number: int, waited: int, now: int) -> None:
    """All up to a number was applied, `waited` ticks before that was said. `number`: no less than ACKNOWLEDGED."""
    if number > columns[ACKNOWLEDGED]:
        columns[PROGRESS] = now
    for done in range(columns[ACKNOWLEDGED] + 1, number + 1):
        flight = flights[done & (FLIGHTS - 1)]
        columns[FLIGHT_BYTES] -= flight[BYTES]
        columns[CHUNKS] -= flight[CHUNK]
        late = age(now, flight[BIRTH]) - waited
        lags[min(max(late, 0), LAGS - 1)] += flight[CHANGES]
    columns[ACKNOWLEDGED] = number
    while columns[FIRST_LOAD] < columns[LAST_LOAD]:
        if loads[columns[FIRST_LOAD] & (LOADS - 1), LOAD_NUMBER] > number:
            return
        columns[FIRST_LOAD] += 1


@hot
def _hear(lane: Lane, now: int) -> bool:
    """Read all that the peer has answered. False: the last one, which lies in `answer` and `body`, is not what it always is."""
    columns, places = lane.columns, lane.places
    for _ in range(_ANSWERS_AT_ONCE):
        size = calls.receive(columns[SOCKET], places[ANSWER_AT], len(lane.answer), _AT_ONCE)
        if size < 0:
            return True
        columns[HEADER_LENGTH], columns[BODY_LENGTH], columns[PARTS] = size, 0, 1
        if _has_more(lane):
            columns[BODY_LENGTH] = calls.receive(columns[SOCKET], places[BODY_AT], len(lane.body), _AT_ONCE)
            columns[PARTS] = 3 if _has_more(lane) else 2
        if columns[PARTS] != 2 or columns[BODY_LENGTH] != 0 or not _take_answer(lane, size, now):
            return False
        columns[ANSWERS] += 1
    return True  # the rest in the next turn


@hot
def _has_more(lane: Lane) -> bool:
    """Whether the message has another part."""
    lane.words[0], lane.words[1] = 0, 4
    calls.option(lane.columns[SOCKET], _RCVMORE, lane.places[WORD_AT], lane.places[SIZE_AT])
    return bool(lane.words[0] != 0)


@hot
def _take_answer(lane: Lane, length: int, now: int) -> bool:
    """Take an acknowledgement of this life that tells of the copies what the one before did; whether it is one."""
    columns, answer = lane.columns, lane.answer
    if length > len(answer) or length < 7:
        return False
    life, at = _read_whole(answer, _read_text(answer, 0, length, _ACK), length)
    number, at = _read_whole(answer, _read_text(answer, at, length, _NUMBER), length)
    waited, at = _read_whole(answer, _read_text(answer, at, length, _NOTHING_ELSE), length)
    at, end = _read_text(answer, at, length, _INSTALLED), length - 7
    if at < 0 or _read_text(answer, end, length, _CHECKSUM) < 0 or life != columns[LIFE]:
        return False
    if _read_big(answer, length - 4, 4) != crc32(answer, length - 4, 0):
        return False
    if number < columns[ACKNOWLEDGED] or number > columns[NUMBER] or not _is_known(lane, at, end):
        return False
    acknowledge(columns, lane.flights, lane.loads, lane.lags, number, waited, now)
    return True


@hot
def _is_known(lane: Lane, at: int, end: int) -> bool:
    """Whether what is told of the copies was told, and taken, before; it is remembered, if not."""
    columns, known = lane.columns, lane.installed
    same = columns[TRUSTED] != 0 and columns[KNOWN] == end - at
    for k in range(max(end - at, 0)):
        same = same and known[k] == lane.answer[at + k]
    if same:
        return True
    columns[TRUSTED], columns[KNOWN] = 0, end - at
    for k in range(max(end - at, 0)):
        known[k] = lane.answer[at + k]
    return False


# --- msgpack --------------------------------------------------------------------------------------------------------------


@hot
def _read_text(memory: Array, at: int, end: int, text: Array) -> int:
    """Where it goes on behind a text that stands here; -1 where none does, or `at` is that already."""
    if at < 0 or at + len(text) > end:
        return -1
    for k in range(len(text)):
        if memory[at + k] != text[k]:
            return -1
    return at + len(text)


@hot
def _read_big(memory: Array, at: int, size: int) -> int:
    value = 0
    for k in range(size):
        value = value << 8 | whole(memory[at + k])
    return value


@hot
def _read_whole(memory: Array, at: int, end: int) -> tuple[int, int]:
    """A whole number below 2**63, and where it goes on; -1 where none stands here. (msgpack spec, int format family.)"""
    if at < 0 or at + 9 > end:  # there is a checksum behind: no number of ours ends so late
        return 0, -1
    first = whole(memory[at])
    if first < 0x80:
        return first, at + 1
    if first < 0xCC or first > 0xCF:
        return 0, -1
    size = 1 << (first - 0xCC)
    value = _read_big(memory, at + 1, size)
    return (value, at + 1 + size) if value >= 0 else (0, -1)


@hot
def _write_text(memory: Array, at: int, text: Array) -> int:
    for k in range(len(text)):
        memory[at + k] = text[k]
    return at + len(text)


@hot
def _write_whole(memory: Array, at: int, value: int) -> int:
    """A whole number in its shortest form; where it goes on."""
    if value < 0x80:
        memory[at] = value
        return at + 1
    if value < 0x100:
        memory[at], memory[at + 1] = 0xCC, value
        return at + 2
    if value < 0x10000:
        memory[at] = 0xCD
        write16(memory, at + 1, value)
        return at + 3
    if value < 0x100000000:
        memory[at] = 0xCE
        write32(memory, at + 1, value)
        return at + 5
    memory[at] = 0xCF
    write64(memory, at + 1, value)
    return at + 9


@hot
def _write_length(memory: Array, at: int, count: int) -> int:
    """Of an array."""
    if count < 16:
        memory[at] = 0x90 | count
        return at + 1
    memory[at] = 0xDC
    write16(memory, at + 1, count)
    return at + 3


# --- frames ---------------------------------------------------------------------------------------------------------------


@hot
def _is_part(row: Array) -> bool:
    """Whether the harvest found something of this stream's shard."""
    return bool(row[ENDED] > 0 or row[MAPPINGS] > 0 or row[SESSIONS] > 0)


@hot
def write_header(state: State, lane: Lane, parts: int, length: int) -> int:
    """Header of a frame with what was harvested, which lies in `body`; its length. `parts`: how many shards it is of."""
    memory, life, number = lane.header, lane.columns[LIFE], lane.columns[NUMBER]
    at = _write_whole(memory, _write_text(memory, 0, _UPDATE if parts == 1 else _UPDATES), life)
    at = _write_whole(memory, _write_text(memory, at, _NUMBER), number)
    shard, epoch, series, stones, mapped, found = _sums(state, lane, parts)
    at = _write_whole(memory, _write_text(memory, at, _SHARD), shard)
    at = _write_whole(memory, _write_text(memory, at, _EPOCH), epoch)
    at = _write_whole(memory, _write_text(memory, at, _SERIES), series)
    at = _write_text(memory, at, _COUNTS)
    at = _write_whole(memory, _write_whole(memory, _write_whole(memory, at, stones), mapped), found)
    if parts > 1:
        at = _write_parts(state, lane, parts, at)
    at = _write_text(memory, at, _CHECKSUM)
    write32(memory, at, crc32(lane.body, length, crc32(memory, at, 0)))
    return at + 4


@hot
def _sums(state: State, lane: Lane, parts: int) -> tuple[int, int, int, int, int, int]:
    """Shard, epoch and series, of a frame that is of one shard; and how many records of each kind there are."""
    shard, epoch, series, stones, mapped, found = 0, 0, 0, 0, 0, 0
    for k in range(len(lane.streams)):
        row = lane.streams[k]
        if _is_part(row):
            stones, mapped, found = stones + row[ENDED], mapped + row[MAPPINGS], found + row[SESSIONS]
            if parts == 1:
                shard, series = row[SHARD], row[SERIES]
                epoch = whole(state.shards[shard]["epoch"])
    return shard, epoch, series, stones, mapped, found


@hot
def _write_parts(state: State, lane: Lane, parts: int, at: int) -> int:
    memory = lane.header
    at = _write_length(memory, _write_text(memory, at, _FIELDS), parts)
    for k in range(len(lane.streams)):
        row = lane.streams[k]
        if _is_part(row):
            memory[at] = 0x96
            at = _write_whole(memory, at + 1, row[SHARD])
            at = _write_whole(memory, at, whole(state.shards[row[SHARD]]["epoch"]))
            at = _write_whole(memory, at, row[SERIES])
            at = _write_whole(memory, at, row[ENDED])
            at = _write_whole(memory, at, row[MAPPINGS])
            at = _write_whole(memory, at, row[SESSIONS])
    return at


@hot
def _copy(target: Array, at: int, source: Array, first: int, count: int) -> int:
    for k in range(count):
        target[at + k] = source[first + k]
    return at + count


@hot
def write_body(lane: Lane) -> int:
    """What was harvested, shard by shard; its length in bytes."""
    at, stones, mapped, found = 0, 0, 0, 0
    for k in range(len(lane.streams)):
        row = lane.streams[k]
        if _is_part(row):
            at = _copy(lane.body_words, at, lane.ended_words, stones, row[ENDED] * _TOMBSTONE_WORDS)
            at = _copy(lane.body_words, at, lane.mapping_words, mapped, row[MAPPINGS] * _MAPPING_WORDS)
            at = _copy(lane.body_words, at, lane.session_words, found, row[SESSIONS] * _SESSION_WORDS)
            stones += row[ENDED] * _TOMBSTONE_WORDS
            mapped += row[MAPPINGS] * _MAPPING_WORDS
            found += row[SESSIONS] * _SESSION_WORDS
    return 8 * at


@hot
def _note(lane: Lane, length: int, now: int) -> None:
    """Enter the frame into the book: what is in flight, and how old the oldest change in it may be."""
    columns, oldest, records = lane.columns, 0, 0
    for k in range(len(lane.streams)):
        row = lane.streams[k]
        if _is_part(row):
            count = row[ENDED] + row[MAPPINGS] + row[SESSIONS]
            load = lane.loads[columns[LAST_LOAD] & (LOADS - 1)]
            load[LOAD_NUMBER], load[LOAD_SHARD], load[LOAD_RECORDS] = columns[NUMBER], row[SHARD], count
            load[LOAD_BYTES] = 8 * (row[ENDED] + row[MAPPINGS] * _MAPPING_WORDS + row[SESSIONS] * _SESSION_WORDS)
            columns[LAST_LOAD] += 1
            records += count
            oldest = max(oldest, age(now, lane.drained[row[SHARD]]))
    flight = lane.flights[columns[NUMBER] & (FLIGHTS - 1)]
    flight[BIRTH], flight[BYTES], flight[CHUNK], flight[CHANGES] = age(now, oldest), length, 0, records
    if columns[NUMBER] == columns[ACKNOWLEDGED] + 1:
        columns[PROGRESS] = now
    columns[FLIGHT_BYTES] += length
    columns[FRAMES] += 1
    columns[RECORDS] += records
    columns[SENT_BYTES] += length + columns[HEADER_LENGTH]


@hot
def _send(lane: Lane) -> bool:
    """Hand header and body to ZeroMQ; False where it does not take them now."""
    columns, places = lane.columns, lane.places
    if calls.send(columns[SOCKET], places[HEADER_AT], columns[HEADER_LENGTH], _MORE_FOLLOWS) < 0:
        return False
    return bool(calls.send(columns[SOCKET], places[BODY_AT], columns[BODY_LENGTH], _AT_ONCE) >= 0)


# --- a turn ---------------------------------------------------------------------------------------------------------------


@hot
def has_room(columns: Array) -> bool:
    """Whether another frame of changes may be in flight."""
    frames, loads = columns[NUMBER] - columns[ACKNOWLEDGED], columns[LAST_LOAD] - columns[FIRST_LOAD]
    return bool(frames < FRAMES_AT_MOST and columns[FLIGHT_BYTES] < BYTES_AT_MOST and loads <= LOADS - PARTS_AT_MOST)


@hot
def pump(state: State, lane: Lane, is_due: bool, turn: int, now: int) -> int:
    """Read answers and, where it `is_due`, send what ended and changed; what is left for others to do, bits, or 0.

    ANSWERS of the book is how many were read. After ASIDE nothing was harvested: HEADER_LENGTH and BODY_LENGTH of `answer` and
    `body` are the message, PARTS is 3 where it has more than two. After UNSENT a frame lies in `header` and `body`.
    """
    lane.columns[ANSWERS] = 0
    if not _hear(lane, now):
        return ASIDE
    for _ in range(ROUNDS if is_due else 0):
        if not has_room(lane.columns):
            return 0
        _harvest(state, lane, now)
        parts = 0
        for k in range(len(lane.streams)):
            parts += _is_part(lane.streams[k])
        sent = parts == 0 or _ship(state, lane, parts, now)
        left = _close(lane, turn, now)
        if not sent or left & LAPPED_SOME:
            return left if sent else left | UNSENT
        if left == 0:
            return 0
    return MORE_LEFT if is_due else 0


@hot
def _harvest(state: State, lane: Lane, now: int) -> None:
    for k in range(len(lane.streams)):
        lane.streams[k, NEXT] = lane.read[lane.streams[k, SHARD]]
    harvest.harvest(state, lane.streams, 0, now, lane.ended, lane.mappings, lane.sessions)
    for k in range(len(lane.streams)):
        lane.read[lane.streams[k, SHARD]] = lane.streams[k, NEXT]


@hot
def _ship(state: State, lane: Lane, parts: int, now: int) -> bool:
    """Number, write and send a frame; False where ZeroMQ does not take it now, though it is on its way by the book."""
    columns = lane.columns
    columns[NUMBER] += 1
    columns[BODY_LENGTH] = write_body(lane)
    columns[HEADER_LENGTH] = write_header(state, lane, parts, columns[BODY_LENGTH])
    _note(lane, columns[BODY_LENGTH], now)
    if not _send(lane):
        return False
    columns[SAID] = now
    return True


@hot
def _close(lane: Lane, turn: int, now: int) -> int:
    """Note of which shards nothing is left; LAPPED_SOME and MORE_LEFT of the others."""
    left = 0
    for k in range(len(lane.streams)):
        row = lane.streams[k]
        if row[ENDED] == LAPPED:
            left |= LAPPED_SOME
        elif row[MORE] != 0:
            left |= MORE_LEFT
        else:
            lane.drained[row[SHARD]], lane.whole[row[SHARD]] = now, turn
    return left
