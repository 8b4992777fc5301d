"""Whether two copies are the same: digests of ranges, asked about in the order of the stream.

Whoever streams a shard asks. Right after it has drained all changes it digests a range and sends the sum; the question travels
behind those changes, so the peer answers about the same instant, while packets go on changing both. Rows that were not sent as
they are (half-open, young) are left out by both. A range that differs is asked about row by row, twice, with another key each
time: a row that differs both times does.

    ranges ── of those that differ: rows ── of those that differ: the same rows again ── what differs still
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

import numpy as np

from replication.frames import Frame, Refused, whole
from replication.protocol import Comparison, Fields, age
from replication.tables import COMPARED_ROWS, ORDER, Sink, Source
from shards.state import CLASSES, Array

ASKED_AT_MOST = 4  # questions on their way
AGAIN_AFTER = 20  # ticks between the two times that rows are asked about
DIFFERING_AT_MOST = 512  # rows of a range that an answer names
FOUND_AT_MOST = 4096  # rows of a shard that differ; who has more has no copy, and to name them all takes time and memory
GIVE_UP_AFTER = 5000  # ticks without an answer

_RANGES, _ROWS, _AGAIN, _DONE = range(4)
_ROW_AT_MOST = 2**32 - COMPARED_ROWS

Range = tuple[int, int]  # class, first row


class Verification:
    """One comparison, from the side that streams."""

    def __init__(self, shard: int, life: int, source: Source, now: int, classes: tuple[int, ...] = ORDER) -> None:
        self.shard, self.life, self._classes = shard, life, classes
        self._source = source
        self._key = _new_key()
        self._pass = _RANGES
        self._extents = {klass: max(source.extent(shard, klass), COMPARED_ROWS) for klass in classes}  # ours or the peer's
        self._walked = dict.fromkeys(classes, 0)
        self._left: list[Range] = []  # of the passes after the first
        self._asked: dict[int, Range] = {}
        self._number = self._rows = 0
        self._suspects: list[Range] = []
        self._found: tuple[set[tuple[int, int]], set[tuple[int, int]]] = set(), set()
        self._began = self._heard = now
        self._error = ""

    @property
    def done(self) -> bool:
        """Whether it has come to its end."""
        return self._pass == _DONE

    def result(self) -> Comparison:
        """What is known so far."""
        return Comparison(self.done, self._rows, sorted(self._found[0] & self._found[1]), self._error)

    def give_up(self, why: str) -> None:
        """End it without a result."""
        if not self.done:
            self._error, self._pass = why, _DONE
            self._asked.clear()  # answers that come all the same belong to nothing

    def question(self, now: int) -> tuple[Frame, Array] | None:
        """What to ask now; the caller has just sent all changes. None: nothing, for now or at all."""
        if age(now, self._heard) > GIVE_UP_AFTER:
            self.give_up("the peer does not answer")
        if self._pass == _AGAIN and age(now, self._began) < AGAIN_AFTER:
            return None
        picked = None if self.done or len(self._asked) >= ASKED_AT_MOST else self._pick()
        if picked is None:
            return None
        self._number += 1
        self._asked[self._number] = picked
        return self._ask(*picked)

    def _pick(self) -> Range | None:
        """The next range to ask about."""
        if self._pass != _RANGES:
            return self._left.pop(0) if self._left else None
        for klass in self._classes:
            first = self._walked[klass]
            if first < self._extents[klass]:
                self._walked[klass] += COMPARED_ROWS
                return klass, first
        return None

    def _ask(self, klass: int, first: int) -> tuple[Frame, Array]:
        digests, left_out = self._source.compared(self.shard, klass, first, self._key)
        bits = np.packbits(left_out, bitorder="little")
        fields: Fields = {"n": self._number, "k": klass, "r": first, "a": self._key[0], "b": self._key[1]}
        if self._pass == _RANGES:
            fields["d"] = _sum(digests, left_out)
            return Frame("compare", shard=self.shard, counts=(0, COMPARED_ROWS), fields=fields), bits
        body = np.concatenate([digests.view(np.uint8), bits])
        return Frame("compare", shard=self.shard, counts=(COMPARED_ROWS, COMPARED_ROWS), fields=fields), body

    def answered(self, fields: Fields, now: int) -> None:
        """An answer: offsets of the rows that differ; of a whole range, any one."""
        number, rows = whole(fields, "n"), fields.get("d")
        if number not in self._asked or not isinstance(rows, list):
            raise Refused("malformed")
        offsets = [whole({"row": row}, "row", COMPARED_ROWS - 1) for row in rows]
        klass, first = self._asked.pop(number)
        self._extents[klass] = max(self._extents[klass], whole(fields, "x"))
        self._heard = now
        if self._pass == _RANGES:
            self._rows += COMPARED_ROWS
            self._suspects += [(klass, first)] if offsets else []
        else:
            self._found[self._pass - _ROWS].update((klass, first + offset) for offset in offsets)
            if len(self._found[self._pass - _ROWS]) >= FOUND_AT_MOST:
                self._left.clear()
        if not self._asked and not self._more():
            self._next_pass(now)

    def _more(self) -> bool:
        return bool(self._left) or any(self._walked[klass] < self._extents[klass] for klass in self._classes)

    def _next_pass(self, now: int) -> None:
        self._pass = self._pass + 1 if self._suspects else _DONE
        self._left = list(self._suspects)
        self._key, self._began, self._heard = _new_key(), now, now


def answer(sink: Sink, frame: Frame, body: Array, extent: Callable[[int, int], int]) -> Fields:
    """The answer to a question about our copy; `extent`: rows that a class of a shard spans in it."""
    fields = frame.fields
    klass, first = whole(fields, "k", CLASSES - 1), whole(fields, "r", _ROW_AT_MOST)
    key = whole(fields, "a", 2**64 - 1), whole(fields, "b", 2**64 - 1)
    if klass not in ORDER or first % COMPARED_ROWS or frame.counts not in ((0, COMPARED_ROWS), (COMPARED_ROWS, COMPARED_ROWS)):
        raise Refused("malformed")
    left_out = np.unpackbits(body[8 * frame.counts[0] :], bitorder="little")
    digests = sink.digests(frame.shard, klass, first, key)
    told: Fields = {"n": whole(fields, "n"), "x": extent(frame.shard, klass)}
    if frame.counts[0] == 0:
        differs = _sum(digests, left_out) != whole(fields, "d", 2**64 - 1)
        return {**told, "d": [0] if differs else []}
    theirs = body[: 8 * COMPARED_ROWS].view(np.uint64)
    differing = np.flatnonzero((digests != theirs) & (left_out == 0))
    return {**told, "d": differing[:DIFFERING_AT_MOST].tolist()}


def _sum(digests: Array, left_out: Array) -> int:
    return int(digests[left_out == 0].sum(dtype=np.uint64))


def _new_key() -> tuple[int, int]:
    return secrets.randbits(64), secrets.randbits(64)
