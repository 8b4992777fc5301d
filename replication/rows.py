"""Source and sink over a core's memory: the compiled walks of `shards.gather` and `shards.apply`, with room made beforehand.

Bitmaps with a bit per half-line are looked at by extent, since all rows of an extent are of one shard and class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from replication import harvest
from replication.frames import BODY_AT_MOST
from replication.tables import BITMAP_ROWS, COMPARED_ROWS, MAPPINGS, ORDER, SESSIONS, Part, Piece
from shards import apply, digest, doubt, gather, slabs
from shards.bound import bound
from shards.records import HOLD, MAPPING_RECORD, SESSION_RECORD, TOMBSTONE
from shards.state import EXTENT_LINES, SESSION6_0, Array, State

SESSIONS_AT_ONCE, MAPPINGS_AT_ONCE, TOMBSTONES_AT_ONCE, HOLDS_AT_ONCE = 512, 512, 2048, 1024
_FRAME = SESSIONS_AT_ONCE * 64 + MAPPINGS_AT_ONCE * 32 + TOMBSTONES_AT_ONCE * 8
assert max(_FRAME, HOLDS_AT_ONCE * HOLD.itemsize) <= BODY_AT_MOST

LOOKED_AT_ONCE = 8192  # sessions, for those that were not sent yet
ENDED_AT_ONCE = 2048  # rows looked at
CLEANED_AT_ONCE = 16  # extents, 2048 words of bits each

_DIRTY_EACH = 2 * EXTENT_LINES // 64  # words for an extent
_ENDED, _NO_CLASS = sorted(ORDER), 99  # classes that end what a snapshot did not tell of, in this order; after the last
_NONE: Array = np.zeros(0, np.uint64)
_ALL: Array = np.zeros(COMPARED_ROWS // 64, np.uint64)


class StateSource:
    """The rows of a core, to be sent. `threshold`: ticks, whole seconds of them."""

    def __init__(self, state: State, threshold: int) -> None:
        self._state, self._threshold = state, threshold // 1000  # seconds, as `gather` has it
        self._sessions, self._mappings = np.zeros(SESSIONS_AT_ONCE, SESSION_RECORD), np.zeros(MAPPINGS_AT_ONCE, MAPPING_RECORD)
        self._tombstones, self._holds = np.zeros(TOMBSTONES_AT_ONCE, TOMBSTONE), np.zeros(HOLDS_AT_ONCE, HOLD)
        self._bits, self._digests = np.zeros(BITMAP_ROWS // 64, np.uint64), np.zeros(COMPARED_ROWS, np.uint64)
        self._asked = np.zeros((len(state.shards), harvest.COLUMNS), np.int64)
        self.read: Array = np.zeros(len(state.shards), np.int64)  # number of the next tombstone, by shard
        self._harvest = bound(
            harvest.harvest, state, asked=self._asked, ended=self._tombstones, mappings=self._mappings, sessions=self._sessions
        )
        self._is_dirty, self._unsent = bound(harvest.is_dirty, state), bound(gather.unsent, state)
        self._rows, self._refreshed = bound(gather.rows, state), bound(gather.refreshed, state, bits=self._bits)
        self._ripe: dict[int, tuple[int, int]] = {}  # where the look for old enough sessions stands: class, row

    @property
    def state(self) -> State:
        """The core's memory."""
        return self._state

    def epoch(self, shard: int) -> int:
        """See `Source`."""
        return int(self._state.shards[shard]["epoch"])

    def mark(self, shard: int) -> None:
        """See `Source`."""
        self.read[shard] = int(self._state.core[0]["tombstones"])

    def clean(self, shard: int, cursor: int) -> int:
        """See `Source`."""
        return int(gather.clean(self._state, shard, cursor, CLEANED_AT_ONCE))

    def harvest(self, wanted: Sequence[tuple[int, bool]], now: int) -> list[Part]:
        """See `Source`."""
        asked = self._asked[: len(wanted)]
        asked[:, : harvest.ENDED] = [(shard, everything, self.read[shard]) for shard, everything in wanted]
        self._harvest(asked, self._threshold, now, self._tombstones, self._mappings, self._sessions)
        parts, at = [], (0, 0, 0)
        for shard, _, self.read[shard], *counts, more in asked.tolist():
            if counts[0] == gather.LAPPED:
                parts.append(Part(shard, (0, 0, 0), [], more=False, lapped=True))
            elif more or any(counts):
                parts.append(Part(shard, tuple(counts), self._cut(at, counts), bool(more), lapped=False))
                at = tuple(first + count for first, count in zip(at, counts, strict=True))
        return parts

    def _cut(self, first: Sequence[int], counts: Sequence[int]) -> list[Array]:
        """Tombstones, mappings and sessions of one shard, as bytes."""
        all_of = zip((self._tombstones, self._mappings, self._sessions), first, counts, strict=True)
        return [records[begin : begin + count].view(np.uint8) for records, begin, count in all_of if count]

    def quiet(self, shard: int) -> bool:
        """See `Source`."""
        return int(self._state.core[0]["tombstones"]) == int(self.read[shard]) and not self._is_dirty(shard)

    def unsent(self, shard: int) -> int:
        """See `Source`."""
        ended = (int(self._state.core[0]["tombstones"]) - int(self.read[shard])) & 0xFFFFFFFF  # of any shard
        return ended + int(self._unsent(shard))

    def ripen(self, shard: int, now: int) -> None:
        """See `Source`."""
        klass, row = self._ripe.get(shard, (SESSIONS[0], 0))
        row = gather.sweep_untold(self._state, shard, klass, row, False, self._threshold, now, LOOKED_AT_ONCE)
        following = SESSIONS[(SESSIONS.index(klass) + 1) % len(SESSIONS)]
        self._ripe[shard] = (klass, row) if row != gather.END else (following, 0)

    def widen(self, shard: int, klass: int, row: int, now: int) -> int:
        """See `Source`."""
        return int(gather.sweep_untold(self._state, shard, klass, row, True, 0, now, LOOKED_AT_ONCE))

    def living(self, shard: int, klass: int, row: int, everything: bool, now: int) -> Piece:
        """See `Source`."""
        out = self._mappings if klass in MAPPINGS else self._sessions
        count, row = gather.snapshot(self._state, shard, klass, row, everything, now, out)
        return Piece(flat(out, count), row)

    def holds(self, shard: int, cursor: int, now: int) -> Piece:
        """See `Source`."""
        count, cursor = gather.holds(self._state, shard, cursor, now, self._holds)
        return Piece(flat(self._holds, count), cursor)

    def extent(self, shard: int, klass: int) -> int:
        """See `Source`."""
        return int(self._rows(shard, klass))

    def refreshed(self, shard: int, klass: int, first: int, since: int, now: int) -> Array:
        """See `Source`."""
        self._refreshed(shard, klass, first, since, now, self._bits)
        return self._bits.view(np.uint8)

    def compared(self, shard: int, klass: int, first: int, key: tuple[int, int]) -> tuple[Array, Array]:
        """See `Source`. Rows that others are not told of have no digest, on either side; so only changes are left out."""
        digests = _digests(self._state, shard, klass, first, key, self._digests)
        return digests, self._changes(shard, klass, first)

    def _changes(self, shard: int, klass: int, first: int) -> Array:
        """A byte for each of COMPARED_ROWS rows: 1 where it is dirty."""
        if first >= self.extent(shard, klass):
            return np.zeros(COMPARED_ROWS, np.uint8)
        step = 1 if klass in MAPPINGS else 4 if klass >= SESSION6_0 else 2  # half-lines of a row
        word = int(slabs.local_row(self._state, shard, klass, first)) * (1 if klass in MAPPINGS else 2) // 64
        words = self._state.dirty[word : word + COMPARED_ROWS * step // 64]
        return np.unpackbits(words.view(np.uint8), bitorder="little")[::step]


class StateSink:
    """The replica of a core. `holds`: a port whose mapping ends here rests as it does at its owner.

    Of rows seen there is one bitmap for all shards: their extents are never shared.
    """

    def __init__(self, state: State, holds: bool = True) -> None:
        self._state = state
        self._rested = 0 if holds else 1000 * int(state.settings[0]["hold_down_s"]) + 1000  # ticks since a port's use ended
        self._seen = np.zeros(len(state.dirty), np.uint64)
        self._walks: dict[int, tuple[int, int]] = {}  # of shards that get a snapshot: where `end_unseen` stands, class and row
        self._digests = np.zeros(COMPARED_ROWS, np.uint64)
        self._begin, self._end = bound(doubt.begin, state), bound(doubt.end, state)
        ended, mappings, sessions = (np.zeros(0, kind) for kind in (TOMBSTONE, MAPPING_RECORD, SESSION_RECORD))
        self._tombstones = bound(apply.tombstones, state, records=ended, seen=_NONE)
        self._mappings = bound(apply.mappings, state, records=mappings, seen=_NONE)
        self._sessions = bound(apply.sessions, state, records=sessions, seen=_NONE)
        self._refresh = bound(apply.refresh, state, bits=_NONE)

    def begin(self, shard: int) -> None:
        """See `Sink`."""
        self._seen.reshape(-1, _DIRTY_EACH)[extents(self._state, shard)] = 0
        self._walks[shard] = _ENDED[0], 0

    def end_unseen(self, shard: int, now: int) -> bool:
        """See `Sink`."""
        klass, row = self._walks[shard]
        with in_doubt(self._state):
            row = apply.end_unseen(self._state, shard, klass, row, self._seen, now - self._rested, ENDED_AT_ONCE)
        if row == apply.END:
            klass, row = next((each for each in _ENDED if each > klass), _NO_CLASS), 0
        self._walks[shard] = klass, row
        return klass == _NO_CLASS

    def finish(self, shard: int) -> None:
        """See `Sink`."""
        self._walks.pop(shard, None)

    def _do(self, change: Callable[..., int], *given: Any) -> int:
        """As `in_doubt`, of what comes in every frame."""
        self._begin()
        taken = int(change(*given))
        self._end()
        return taken

    def _seen_of(self, shard: int) -> Array:
        return self._seen if shard in self._walks else _NONE

    def apply_ended(self, shard: int, rows: Array, now: int) -> int:
        """See `Sink`."""
        records = rows.view(TOMBSTONE)
        return self._do(self._tombstones, shard, records, len(records), self._seen_of(shard), now - self._rested)

    def apply_mappings(self, shard: int, rows: Array, now: int) -> int:
        """See `Sink`."""
        records = rows.view(MAPPING_RECORD)
        return self._do(self._mappings, shard, records, len(records), self._seen_of(shard), now)

    def apply_sessions(self, shard: int, rows: Array, now: int) -> int:
        """See `Sink`."""
        records = rows.view(SESSION_RECORD)
        return self._do(self._sessions, shard, records, len(records), self._seen_of(shard), now)

    def apply_holds(self, shard: int, rows: Array, now: int) -> int:
        """See `Sink`."""
        records = rows.view(HOLD)
        with in_doubt(self._state):
            return int(apply.holds(self._state, shard, records, len(records), now))

    def refresh(self, shard: int, klass: int, first: int, bits: Array, now: int) -> None:
        """See `Sink`."""
        self._do(self._refresh, shard, klass, first, bits.view(np.uint64), now)

    def digests(self, shard: int, klass: int, first: int, key: tuple[int, int]) -> Array:
        """See `Sink`."""
        return _digests(self._state, shard, klass, first, key, self._digests)


@contextmanager
def in_doubt(state: State) -> Iterator[None]:
    """A worker that is killed meanwhile leaves something half done: its successor must rebuild (see `shards.doubt`)."""
    doubt.begin(state)
    yield
    doubt.end(state)


def extents(state: State, shard: int) -> Array:
    """The extents of a shard's sessions and mappings."""
    return np.concatenate([state.extent_of[shard, klass, : state.slabs[shard, klass]["extents"]] for klass in sorted(ORDER)])


def flat(records: Array, count: int) -> Array:
    """The first records, as bytes."""
    return records[:count].view(np.uint8)


def _digests(state: State, shard: int, klass: int, first: int, key: tuple[int, int], rows: Array) -> Array:
    digest.digest(state, shard, klass, np.uint64(key[0]), np.uint64(key[1]), first, first + COMPARED_ROWS, _ALL, rows)
    return rows
