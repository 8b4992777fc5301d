"""A core's rows as plain dictionaries, both to be sent and to be taken: the obvious twin of `replication.rows`.

Rows are numbered within (shard, class); what a row says is its record. Beginning, end and change are calls; everything else is
what `Source` and `Sink` ask for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from replication.tables import BITMAP_ROWS, COMPARED_ROWS, Part, Piece
from shards.records import HOLD, MAPPING_RECORD, SESSION_RECORD, TOMBSTONE
from shards.state import MAPPING_0, MAPPING_1, Array

AT_ONCE = 100  # records of a kind in a frame

Name = tuple[int, int, int]  # shard, class, row


def is_mapping(klass: int) -> bool:
    """Whether rows of the class are mappings."""
    return klass in (MAPPING_0, MAPPING_1)


class Tables:
    """One core's."""

    def __init__(self) -> None:
        self.rows: dict[Name, bytes] = {}
        self.changes: set[Name] = set()
        self.ends: list[tuple[Name, int]] = []
        self.rests: dict[int, list[bytes]] = {}  # held ports, by shard
        self.epochs: dict[int, int] = {}
        self.seen: dict[int, set[Name]] = {}
        self.refreshed_rows: set[Name] = set()
        self.lap = False
        self.applied = 0
        self._generation = 0

    # --- what happens to rows ---------------------------------------------------------------------------------------------

    def put(self, shard: int, klass: int, row: int, value: int) -> None:
        """A row begins, or changes."""
        name, dtype = (shard, klass, row), MAPPING_RECORD if is_mapping(klass) else SESSION_RECORD
        if name in self.rows:
            record = np.frombuffer(self.rows[name], dtype).copy()
        else:
            record = np.zeros(1, dtype)
            self._generation += 1  # of its life
            record["row"], record["klass"], record["generation"] = row, klass, self._generation & 0xFFFF
        record["internal_address"] = value
        self.rows[name] = record.tobytes()
        self.changes.add(name)

    def end(self, shard: int, klass: int, row: int) -> None:
        """A row ends."""
        name = shard, klass, row
        record = np.frombuffer(self.rows.pop(name), MAPPING_RECORD if is_mapping(klass) else SESSION_RECORD)
        self.changes.discard(name)
        self.ends.append((name, int(record["generation"][0])))

    def of(self, shard: int) -> dict[Name, bytes]:
        """The rows of a shard."""
        return {name: record for name, record in self.rows.items() if name[0] == shard}

    # --- Source -----------------------------------------------------------------------------------------------------------

    def epoch(self, shard: int) -> int:  # noqa: D102 - see Source, as are those below
        return self.epochs.get(shard, 1)

    def mark(self, shard: int) -> None:  # noqa: D102
        self.ends = [end for end in self.ends if end[0][0] != shard]

    def clean(self, shard: int, cursor: int) -> int:  # noqa: D102
        mine = sorted(name for name in self.changes if name[0] == shard)
        self.changes -= set(mine[:AT_ONCE])
        return cursor + 1 if len(mine) > AT_ONCE else -1

    def quiet(self, shard: int) -> bool:  # noqa: D102
        return not self.lap and self.unsent(shard) == 0

    def harvest(self, wanted: Sequence[tuple[int, bool]], now: int) -> list[Part]:  # noqa: D102
        return [part for shard, _ in wanted if (part := self._part(shard)).counts != (0, 0, 0) or part.lapped]

    def _part(self, shard: int) -> Part:
        if self.lap:
            self.lap = False
            return Part(shard, (0, 0, 0), [], False, True)
        mine = [end for end in self.ends if end[0][0] == shard]
        taken = mine[:AT_ONCE]
        self.ends = [end for end in self.ends if end not in taken]
        stones = np.zeros(len(taken), TOMBSTONE)
        for stone, ((_, klass, row), generation) in zip(stones, taken, strict=True):
            stone["row"], stone["klass"], stone["generation"] = row, klass, generation
        mappings, sessions = self._changed(shard) if len(mine) <= AT_ONCE else ([], [])
        rows = [stones.view(np.uint8), *(_bytes([self.rows[name] for name in names]) for names in (mappings, sessions))]
        counts = len(taken), len(mappings), len(sessions)
        return Part(shard, counts, [some for some in rows if len(some)], self.unsent(shard) > 0, False)

    def _changed(self, shard: int) -> tuple[list[Name], list[Name]]:
        mappings = sorted(name for name in self.changes if name[0] == shard and is_mapping(name[1]))[:AT_ONCE]
        sessions = sorted(name for name in self.changes if name[0] == shard and not is_mapping(name[1]))[:AT_ONCE]
        if len(mappings) == AT_ONCE:
            sessions = []
        self.changes -= {*mappings, *sessions}
        return mappings, sessions

    def unsent(self, shard: int) -> int:  # noqa: D102
        return sum(name[0] == shard for name in self.changes) + sum(name[0] == shard for name, _ in self.ends)

    def ripen(self, shard: int, now: int) -> None:  # noqa: D102
        return

    def widen(self, shard: int, klass: int, row: int, now: int) -> int:  # noqa: D102
        return -1

    def living(self, shard: int, klass: int, row: int, everything: bool, now: int) -> Piece:  # noqa: D102
        names = sorted(name for name in self.rows if name[:2] == (shard, klass) and name[2] >= row)
        taken = names[:AT_ONCE]
        return Piece(_bytes([self.rows[name] for name in taken]), taken[-1][2] + 1 if len(names) > AT_ONCE else -1)

    def holds(self, shard: int, cursor: int, now: int) -> Piece:  # noqa: D102
        rests = self.rests.get(shard, [])
        end = cursor + AT_ONCE
        return Piece(_bytes(rests[cursor:end]), end if end < len(rests) else -1)

    def extent(self, shard: int, klass: int) -> int:  # noqa: D102
        return 1 + max((name[2] for name in self.rows if name[:2] == (shard, klass)), default=-1)

    def refreshed(self, shard: int, klass: int, first: int, since: int, now: int) -> Array:  # noqa: D102
        bits = np.zeros(BITMAP_ROWS, np.uint8)
        for _, _, row in (name for name in self.rows if name[:2] == (shard, klass)):
            if first <= row < first + BITMAP_ROWS:
                bits[row - first] = 1
        return np.packbits(bits, bitorder="little")

    def compared(self, shard: int, klass: int, first: int, key: tuple[int, int]) -> tuple[Array, Array]:  # noqa: D102
        left_out = np.zeros(COMPARED_ROWS, np.uint8)
        for name in self.changes:
            if name[:2] == (shard, klass) and 0 <= name[2] - first < COMPARED_ROWS:
                left_out[name[2] - first] = 1
        return self.digests(shard, klass, first, key), left_out

    # --- Sink -------------------------------------------------------------------------------------------------------------

    def begin(self, shard: int) -> None:  # noqa: D102
        self.seen[shard] = set()

    def end_unseen(self, shard: int, now: int) -> bool:  # noqa: D102
        unseen = sorted(set(self.of(shard)) - self.seen[shard])
        for name in unseen[:AT_ONCE]:
            del self.rows[name]
        return len(unseen) <= AT_ONCE

    def finish(self, shard: int) -> None:  # noqa: D102
        self.seen.pop(shard, None)

    def apply_ended(self, shard: int, rows: Array, now: int) -> int:  # noqa: D102
        for stone in rows.view(TOMBSTONE):
            name = shard, int(stone["klass"]), int(stone["row"])
            record = self.rows.get(name)
            dtype = MAPPING_RECORD if is_mapping(name[1]) else SESSION_RECORD
            if record is not None and np.frombuffer(record, dtype)["generation"][0] == stone["generation"]:
                del self.rows[name]
        return len(rows) // TOMBSTONE.itemsize

    def apply_mappings(self, shard: int, rows: Array, now: int) -> int:  # noqa: D102
        return self._apply(shard, rows.view(MAPPING_RECORD))

    def apply_sessions(self, shard: int, rows: Array, now: int) -> int:  # noqa: D102
        return self._apply(shard, rows.view(SESSION_RECORD))

    def _apply(self, shard: int, records: Array) -> int:
        taken = 0
        for record in records:
            name = shard, int(record["klass"]), int(record["row"])
            if record["row"] > 1 << 24 or is_mapping(name[1]) != (records.dtype == MAPPING_RECORD) or name[1] > MAPPING_1:
                continue  # cannot be
            self.rows[name] = record.tobytes()
            self.seen.get(shard, set()).add(name)
            taken += 1
        self.applied += taken
        return taken

    def apply_holds(self, shard: int, rows: Array, now: int) -> int:  # noqa: D102
        raw = rows.tobytes()
        size = HOLD.itemsize
        self.rests.setdefault(shard, []).extend(raw[at : at + size] for at in range(0, len(raw), size))
        return len(raw) // size

    def refresh(self, shard: int, klass: int, first: int, bits: Array, now: int) -> None:  # noqa: D102
        rows = np.flatnonzero(np.unpackbits(bits, bitorder="little")) + first
        self.refreshed_rows |= {(shard, klass, int(row)) for row in rows}

    def digests(self, shard: int, klass: int, first: int, key: tuple[int, int]) -> Array:  # noqa: D102
        found = np.zeros(COMPARED_ROWS, np.uint64)
        for name, record in self.rows.items():
            if name[:2] == (shard, klass) and 0 <= name[2] - first < COMPARED_ROWS:
                told = record + b"".join(half.to_bytes(8, "little") for half in key)
                found[name[2] - first] = int.from_bytes(hashlib.blake2b(told, digest_size=8).digest(), "little")
        return found


def _bytes(records: list[bytes]) -> Array:
    return np.frombuffer(b"".join(records), np.uint8).copy()
