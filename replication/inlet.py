"""Changes that peers tell of, read and applied in compiled code: the other end of `steady`.

Most of what a core reads from its peers are frames of changes of copies that are whole. `take` reads them from ZeroMQ, checks
them as `frames.decode`, `receiver.Receiver.admit` and `subscriber.Subscriber.copy_for` do, each of which is its model, and
applies them. All of a frame is checked before anything of it is applied. Whatever is not plainly as it should be (another kind,
another life, a number that does not come next, a copy that has not come to its end, a checksum) is not decided here: the
message is left behind, and taken in Python as if it had been read there.

*Ways* are connections, one row for each peer; *copies* are shards that are taken from a peer, one row for each shard.
"""

from __future__ import annotations

from typing import NamedTuple

import zmq

from replication import calls
from replication.checksum import crc32
from replication.frames import BODY_AT_MOST
from replication.packed import read_big, read_length, read_text, read_whole
from replication.steady import (
    CHECKSUM,
    COUNTS,
    EPOCH_KEY,
    FIELDS,
    MAPPING_WORDS,
    NUMBER_KEY,
    SERIES_KEY,
    SESSION_WORDS,
    SHARD_KEY,
    TOMBSTONE_WORDS,
    UPDATE,
    UPDATES,
)
from shards import apply, doubt
from shards.jit import PURE, hot, whole
from shards.state import Array, State

# Columns of `ways`. KEY: the connection, as ZeroMQ names it, KEY_BYTES of it; LIFE: 0 where nothing is to be taken by it.
KEY, KEY_BYTES, LIFE, NEXT, FRAMES, BYTES, OWED, GOT, HEARD = range(9)
WAY_COLUMNS = 9
KEY_AT_MOST = 7  # bytes: ZeroMQ names connections by five, unless a peer wants another name

# Columns of `copies`. WAY: row of the peer; -1: nothing is taken of this shard. REFUSED: records, since that was last seen.
WAY, EPOCH_FROM, SERIES, REFUSED = range(4)
COPY_COLUMNS = 4

# Of a call. WAYS: rows that are in use; RESTED: ticks, see `rows.StateSink`; then what a call leaves behind: lengths of the
# message's first three parts, how many it has (4: more than three), records that were told of, and whether any was refused.
SOCKET, WAYS, RESTED, WAY_LENGTH, HEADER_LENGTH, BODY_LENGTH, PARTS, TOLD, ANY_REFUSED = range(9)
COLUMNS = 9

NOTHING, MORE, ASIDE = range(3)  # what a call has found: no message is left; some may be; one was left behind

_FRAMES_AT_ONCE, _BYTES_AT_ONCE = 32, 1 << 15  # then packets are handled, if the turn's time is over
_AT_ONCE, _RCVMORE = int(zmq.DONTWAIT), int(zmq.RCVMORE)
MESSAGE_AT, WAY_AT, HEADER_AT, BODY_AT, WORD_AT, SIZE_AT = range(6)  # addresses, in `places`
_EPOCH_AT_MOST = 2**32 - 1
_NO_PART = (0, 0, 0, 0, 0, 0)


class Inlet(NamedTuple):
    """Columns above, all int64; memory of a message and its parts; records of each kind, and the same memory as words."""

    columns: Array
    ways: Array
    copies: Array
    way: Array
    header: Array
    body: Array
    body_words: Array
    ended: Array
    ended_words: Array
    mappings: Array
    mapping_words: Array
    sessions: Array
    session_words: Array
    unseen: Array
    words: Array
    places: Array
    message: Array


if not PURE:
    from shards import passing

    passing.by_reference(Inlet)


# --- a message ------------------------------------------------------------------------------------------------------------


@hot
def take(state: State, inlet: Inlet, now: int) -> int:
    """Read and apply frames of changes until there is none, or another message, or enough has been done: see above."""
    columns, done = inlet.columns, 0
    for _ in range(_FRAMES_AT_ONCE):
        if not _read(inlet):
            return NOTHING
        if not _is_applied(state, inlet, now):
            return ASIDE
        done += columns[BODY_LENGTH]
        if done >= _BYTES_AT_ONCE:
            return MORE
    return MORE


@hot
def _read(inlet: Inlet) -> bool:
    """The next message's first three parts: from whom, header, body. False: there is none."""
    columns, places = inlet.columns, inlet.places
    size = calls.take(places[MESSAGE_AT], columns[SOCKET], _AT_ONCE)
    if size < 0:
        return False
    columns[WAY_LENGTH], columns[HEADER_LENGTH], columns[BODY_LENGTH], columns[PARTS] = size, 0, 0, 1
    calls.copy(places[WAY_AT], calls.data(places[MESSAGE_AT]), min(size, len(inlet.way)))
    if _has_more(inlet):
        columns[HEADER_LENGTH] = calls.receive(columns[SOCKET], places[HEADER_AT], len(inlet.header), _AT_ONCE)
        columns[PARTS] = 2
    if columns[PARTS] == 2 and _has_more(inlet):
        columns[BODY_LENGTH] = calls.receive(columns[SOCKET], places[BODY_AT], len(inlet.body), _AT_ONCE)
        columns[PARTS] = 4 if _has_more(inlet) else 3
    return True


@hot
def _has_more(inlet: Inlet) -> bool:
    """Whether the message has another part."""
    inlet.words[0], inlet.words[1] = 0, 4
    calls.option(inlet.columns[SOCKET], _RCVMORE, inlet.places[WORD_AT], inlet.places[SIZE_AT])
    return bool(inlet.words[0] != 0)


@hot
def _way(inlet: Inlet) -> int:
    """The row of whom the message comes from; -1 where it is of nobody from whom anything is taken here."""
    length = inlet.columns[WAY_LENGTH]
    if length > KEY_AT_MOST:
        return -1
    key = read_big(inlet.way, 0, length)
    for row in range(inlet.columns[WAYS]):
        if inlet.ways[row, KEY] == key and inlet.ways[row, KEY_BYTES] == length and inlet.ways[row, LIFE] != 0:
            return row
    return -1


# --- a frame --------------------------------------------------------------------------------------------------------------


@hot
def _is_applied(state: State, inlet: Inlet, now: int) -> bool:
    """Check all, then apply all; False where it is not as it should be, and nothing was done."""
    row, length = _way(inlet), inlet.columns[HEADER_LENGTH]
    if row < 0 or inlet.columns[PARTS] != 3 or length > len(inlet.header) or inlet.columns[BODY_LENGTH] > BODY_AT_MOST:
        return False
    shard, series, epoch, counted, at, parts = _head(inlet, row, length)
    if at < 0 or not _is_sound(inlet, length):
        return False
    if parts < 0:
        if not _is_expected(inlet, row, shard, epoch, series):
            return False
        _admit(inlet, row, now)
        _apply(state, inlet, shard, 0, counted[0], counted[1], counted[2], now)
        return True
    if not _are_expected(inlet, row, at, parts, counted, length):
        return False
    _admit(inlet, row, now)
    _apply_parts(state, inlet, at, parts, length, now)
    return True


@hot
def _head(inlet: Inlet, row: int, length: int) -> tuple[int, int, int, tuple[int, int, int], int, int]:
    """Shard, series and epoch of a frame of this way's, its counts, where it goes on, and how many parts follow there.

    Where it goes on: -1 if it is not the next frame of this way. Parts: -1 where it is of one shard.
    """
    header, way, nothing = inlet.header, inlet.ways[row], (0, 0, 0)
    at, is_many = read_text(header, 0, length, UPDATE), False
    if at < 0:
        at, is_many = read_text(header, 0, length, UPDATES), True
    life, at = read_whole(header, at, length)
    number, at = read_whole(header, read_text(header, at, length, NUMBER_KEY), length)
    shard, at = read_whole(header, read_text(header, at, length, SHARD_KEY), length)
    epoch, at = read_whole(header, read_text(header, at, length, EPOCH_KEY), length)
    series, at = read_whole(header, read_text(header, at, length, SERIES_KEY), length)
    ended, at = read_whole(header, read_text(header, at, length, COUNTS), length)
    mapped, at = read_whole(header, at, length)
    found, at = read_whole(header, at, length)
    if at < 0 or life != way[LIFE] or number != way[NEXT] or not _fits(inlet, ended, mapped, found):
        return 0, 0, 0, nothing, -1, 0
    if not is_many:
        return shard, series, epoch, (ended, mapped, found), read_text(header, at, length, CHECKSUM), -1
    parts, at = read_length(header, read_text(header, at, length, FIELDS), length)
    return shard, series, epoch, (ended, mapped, found), at, parts


@hot
def _fits(inlet: Inlet, ended: int, mapped: int, found: int) -> bool:
    """Whether so many records are all of the body."""
    if ended > len(inlet.ended) or mapped > len(inlet.mappings) or found > len(inlet.sessions):
        return False
    return bool(8 * (ended * TOMBSTONE_WORDS + mapped * MAPPING_WORDS + found * SESSION_WORDS) == inlet.columns[BODY_LENGTH])


@hot
def _is_sound(inlet: Inlet, length: int) -> bool:
    """Whether the checksum, with which a header ends, is right."""
    told = read_big(inlet.header, length - 4, 4)
    return bool(told == crc32(inlet.body, inlet.columns[BODY_LENGTH], crc32(inlet.header, length - 4, 0)))


@hot
def _is_expected(inlet: Inlet, row: int, shard: int, epoch: int, series: int) -> bool:
    """Whether changes of this copy are taken by this way."""
    if shard >= len(inlet.copies):
        return False
    copy = inlet.copies[shard]
    return bool(copy[WAY] == row and copy[EPOCH_FROM] <= epoch <= _EPOCH_AT_MOST and series == copy[SERIES])


@hot
def _part(inlet: Inlet, at: int, length: int) -> tuple[tuple[int, int, int, int, int, int], int]:
    """Shard, epoch, series and counts of the part that stands here, and where it goes on; -1 where none does."""
    header = inlet.header
    if at < 0 or at >= length or header[at] != 0x96:
        return _NO_PART, -1
    shard, at = read_whole(header, at + 1, length)
    epoch, at = read_whole(header, at, length)
    series, at = read_whole(header, at, length)
    ended, at = read_whole(header, at, length)
    mapped, at = read_whole(header, at, length)
    found, at = read_whole(header, at, length)
    return (shard, epoch, series, ended, mapped, found), at


@hot
def _are_expected(inlet: Inlet, row: int, at: int, parts: int, counted: tuple[int, int, int], length: int) -> bool:
    """Whether all parts, of which there are some, are taken by this way, and are together what was counted."""
    if parts == 0:
        return False
    ended, mapped, found = counted
    for _ in range(parts):
        part, at = _part(inlet, at, length)
        if at < 0 or not _is_expected(inlet, row, part[0], part[1], part[2]):
            return False
        if part[3] > ended or part[4] > mapped or part[5] > found:
            return False
        ended, mapped, found = ended - part[3], mapped - part[4], found - part[5]
    return ended == 0 and mapped == 0 and found == 0 and read_text(inlet.header, at, length, CHECKSUM) == length - 4


@hot
def _admit(inlet: Inlet, row: int, now: int) -> None:
    """The frame is the next one of its life: what is to be acknowledged, and what is told of the link."""
    way = inlet.ways[row]
    way[NEXT] += 1
    way[OWED], way[HEARD], way[GOT] = 1, 1, now
    way[FRAMES] += 1
    way[BYTES] += inlet.columns[BODY_LENGTH]


# --- rows -----------------------------------------------------------------------------------------------------------------


@hot
def _apply_parts(state: State, inlet: Inlet, at: int, parts: int, length: int, now: int) -> None:
    word = 0
    for _ in range(parts):
        part, at = _part(inlet, at, length)
        word = _apply(state, inlet, part[0], word, part[3], part[4], part[5], now)


@hot
def _apply(state: State, inlet: Inlet, shard: int, word: int, ended: int, mapped: int, found: int, now: int) -> int:
    """Records of one shard, which begin at this word of the body; where the next ones do."""
    word = _copy(inlet.ended_words, inlet.body_words, word, ended * TOMBSTONE_WORDS)
    word = _copy(inlet.mapping_words, inlet.body_words, word, mapped * MAPPING_WORDS)
    word = _copy(inlet.session_words, inlet.body_words, word, found * SESSION_WORDS)
    columns, taken = inlet.columns, 0
    doubt.begin(state)
    taken += apply.tombstones(state, shard, inlet.ended, ended, inlet.unseen, now - columns[RESTED])
    taken += apply.mappings(state, shard, inlet.mappings, mapped, inlet.unseen, now)
    taken += apply.sessions(state, shard, inlet.sessions, found, inlet.unseen, now)
    doubt.end(state)
    told = ended + mapped + found
    columns[TOLD] += told
    if taken < told:
        inlet.copies[shard, REFUSED] += told - taken
        columns[ANY_REFUSED] = 1
    return word


@hot
def _copy(target: Array, source: Array, first: int, count: int) -> int:
    for k in range(whole(count)):
        target[k] = source[first + k]
    return first + count
