"""What is taken from whom: for each shard one peer at most, from a certain epoch on, one copy after another."""

from __future__ import annotations

from collections.abc import Callable

from replication.frames import Counts, Frame, Refused, parts_of, whole
from replication.protocol import Fields, age
from replication.receiver import Receiver
from replication.tables import BITMAP_ROWS, SESSIONS, Sink
from shards.state import Array

_ROW_AT_MOST = 2**32 - BITMAP_ROWS
ANEW_AFTER, ANEW_AT_MOST = 1000, 600_000  # ticks between two copies that are asked for since rows were refused; ever longer


class Copy:
    """A shard that is taken from a peer."""

    def __init__(self, shard: int, peer: str, epoch: int, union: bool) -> None:
        self.shard, self.peer, self.epoch, self.union = shard, peer, epoch, union
        self.series = 0  # of the copy that has begun, 0 none
        self.ending = False  # its end was read; what was not seen is being ended
        self.installed = 0  # series of the last one that is here to its end
        self.refused = 0  # records, since it began
        self.wrong = False  # one was refused though all that it needs was here: the copy is no true one
        self.asked = self.patience = 0  # tick at which a new one was asked for, and ticks until the next time

    @property
    def is_whole(self) -> bool:
        """Whether it is here to its end."""
        return bool(self.series) and self.installed == self.series


class Subscriber:
    """All copies of a core."""

    def __init__(self, sink: Sink) -> None:
        self.refused_records = 0  # that cannot be
        self.records = 0
        self._sink = sink
        self._copies: dict[int, Copy] = {}

    def accept(self, shard: int, peer: str | None, epoch: int, union: bool) -> None:
        """See `Exchange.accept`."""
        copy = self._copies.get(shard)
        if copy is not None and copy.peer == peer:
            copy.epoch, copy.union = epoch, union
            return
        if copy is not None:
            self._sink.finish(shard)
            del self._copies[shard]
        if peer is not None:
            self._copies[shard] = Copy(shard, peer, epoch, union)

    def part(self, peer: str) -> None:
        """Nothing is taken from this peer any more."""
        for shard in [copy.shard for copy in self._copies.values() if copy.peer == peer]:
            self.accept(shard, None, 0, False)

    def takes(self) -> bool:
        """Whether anything is taken from anybody."""
        return bool(self._copies)

    def get(self, shard: int) -> Copy | None:
        """Whose rows of a shard are taken."""
        return self._copies.get(shard)

    def began(self, peer: str) -> None:
        """A life of the peer's link has begun: its copies, whole or not, begin anew."""
        for copy in self._copies.values():
            if copy.peer == peer:
                self._forget(copy)

    def _forget(self, copy: Copy) -> None:
        if copy.series and copy.installed != copy.series:
            self._sink.finish(copy.shard)
        copy.series = copy.installed = copy.refused = 0
        copy.ending = copy.wrong = False

    def installed(self, peer: str) -> dict[int, int]:
        """Series, by shard, of the peer's copies that are here to their end."""
        return {copy.shard: copy.installed for copy in self._copies.values() if copy.peer == peer and copy.installed}

    def missing(self, receiver: Receiver, fields: Fields) -> None:
        """A ping tells what has begun; ask again for what we want of it and do not have."""
        told = fields.get("s", {})
        if not isinstance(told, dict):
            raise Refused("malformed")
        for copy in self._copies.values():
            if copy.peer != receiver.peer or copy.shard not in told:
                continue
            series, epoch = _two(told[copy.shard])
            if series != copy.series and epoch >= copy.epoch:
                receiver.answer(Frame("resync", shard=copy.shard, series=series))

    # --- frames -----------------------------------------------------------------------------------------------------------

    def copy_for(self, peer: str, frame: Frame) -> Copy:
        """The copy that a frame belongs to; `Refused` where there is none."""
        copy = self._copies.get(frame.shard)
        if copy is None or copy.peer != peer:
            raise Refused("foreign")
        if frame.epoch < copy.epoch:
            raise Refused("old_epoch")
        if not frame.series or (frame.kind != "begin" and frame.series != copy.series):
            raise Refused("early")
        return copy

    def apply(self, copy: Copy, frame: Frame, body: Array, now: int) -> None:
        """A frame of rows, or the begin or end of a copy."""
        if frame.kind == "begin":
            self._begin(copy, frame)
        elif frame.kind == "update":
            self._update(copy, frame, body, now)
        elif frame.kind == "holds":
            self._count(copy, frame.counts[0], self._sink.apply_holds(frame.shard, body, now))
        elif frame.kind == "bitmap":
            self._refresh(frame, body, now)
        elif frame.kind == "end":
            copy.ending = copy.installed != copy.series

    def apply_parts(self, peer: str, frame: Frame, body: Array, now: int, refused: Counts) -> None:
        """Changes of several shards: each is taken or refused for itself."""
        begin = 0
        for part, end in parts_of(frame):
            try:
                self._update(self.copy_for(peer, part), part, body[begin:end], now)
            except Refused as why:
                refused[why.reason] += 1
            begin = end

    def _begin(self, copy: Copy, frame: Frame) -> None:
        snapshot = whole(frame.fields, "w", 1)
        self._forget(copy)
        copy.series = frame.series
        if snapshot:
            self._sink.begin(copy.shard)
        else:
            copy.installed = copy.series

    def _update(self, copy: Copy, frame: Frame, body: Array, now: int) -> None:
        ended, mappings, sessions = frame.counts
        first, second = 8 * ended, 8 * ended + 32 * mappings
        before = copy.refused
        if ended:
            self._count(copy, ended, self._sink.apply_ended(frame.shard, body[:first], now))
        if mappings:
            self._count(copy, mappings, self._sink.apply_mappings(frame.shard, body[first:second], now))
        if sessions:
            self._count(copy, sessions, self._sink.apply_sessions(frame.shard, body[second:], now))
        copy.wrong |= copy.refused > before and copy.is_whole and not copy.union

    def _count(self, copy: Copy, told: int, taken: int) -> None:
        self.records += told
        self.refused_records += told - taken
        copy.refused += told - taken

    def refused_of(self, shard: int) -> int:
        """Records of a shard's copy that were refused since it began: it lacks them."""
        copy = self._copies.get(shard)
        return 0 if copy is None or copy.union else copy.refused

    def _refresh(self, frame: Frame, body: Array, now: int) -> None:
        klass, first = whole(frame.fields, "k", SESSIONS[-1]), whole(frame.fields, "r", _ROW_AT_MOST)
        if klass not in SESSIONS or frame.counts[0] != BITMAP_ROWS or first % BITMAP_ROWS:
            raise Refused("malformed")
        self._sink.refresh(frame.shard, klass, first, body, now)

    # --- the end of a copy ------------------------------------------------------------------------------------------------

    def turn(self, now: int, spare: Callable[[], bool], receivers: dict[str, Receiver]) -> bool:
        """End what copies did not have, a piece at a time. True: there is more to do."""
        for copy in self._copies.values():
            if copy.wrong:
                self._ask_anew(copy, receivers[copy.peer], now)
            while copy.ending:
                if copy.union or self._sink.end_unseen(copy.shard, now):
                    self._sink.finish(copy.shard)
                    copy.ending, copy.installed = False, copy.series
                    receivers[copy.peer].owe()
                elif not spare():
                    return True
        return False

    def _ask_anew(self, copy: Copy, receiver: Receiver, now: int) -> None:
        """Ask for a new copy. What is refused in that one, too, will be refused for ever, so less and less often."""
        if age(now, copy.asked) < copy.patience or not receiver.answer(Frame("resync", shard=copy.shard, series=copy.series)):
            return
        copy.wrong, copy.asked = False, now
        copy.patience = min(max(2 * copy.patience, ANEW_AFTER), ANEW_AT_MOST)


def _two(told: object) -> tuple[int, int]:
    if not isinstance(told, list) or len(told) != 2:
        raise Refused("malformed")
    fields = {"series": told[0], "epoch": told[1]}
    return whole(fields, "series"), whole(fields, "epoch")
