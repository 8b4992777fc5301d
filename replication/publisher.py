"""What is sent to whom: copies, then changes, in one stream for each shard and peer.

    WAITING ── begin ──► ROWS ──► HOLDS ──► LIVING ── end ──► SENT ── the peer has it all ──► SYNCED
       ▲                                                                                        │
       └───────────────── a new life of the link, too much missed, or the peer asks ────────────┘

A copy is walked in pieces while changes flow in the same stream; what changes after its piece was sent follows as a change, so
the newer always comes later. A packet that only lets a session live on is no change. Of those since the copy began LIVING
tells, so that who is handed the shard as soon as he has all of it thinks nobody over who lives. Within one frame: what ended,
mappings, sessions. Rows are drained once for all peers of a shard. A peer that takes nothing is not waited for: its rows stay
marked, which costs nothing, or its copy begins anew.

Who has a copy and is to know half-open and young sessions from now on, as a shard is to move there, gets no other one: those
that were left out so far are looked for, in pieces, and count as changed; then it hears of all that live, as after a copy.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from replication import older
from replication.frames import BODY_AT_MOST, KINDS, VERSION, Frame
from replication.protocol import Fields, Lag, Settings, age
from replication.sender import Load, Sender
from replication.tables import BITMAP_ROWS, SESSIONS, Part, Source
from shards.state import Array

WAITING, ROWS, HOLDS, LIVING, SENT, SYNCED = range(6)
PHASES = ("waiting", "rows", "holds", "living", "sent", "synced")

_COPYING = (ROWS, HOLDS, LIVING)
_WIDENING = tuple((klass, said) for said in (False, True) for klass in SESSIONS)  # what was left out, then who lives

SWEEP = 10_000  # ticks in which every row's liveness is told once
SWEEP_EVERY = 8  # ticks between two pieces of that
SMALL_LAG_S = 0.1
SHARDS_AT_MOST = 1 << 16  # as frames name them


class Stream:
    """A shard on its way to one peer."""

    def __init__(self, shard: int, sender: Sender, everything: bool) -> None:
        self.shard, self.sender, self.everything = shard, sender, everything
        self.phase = WAITING
        self.series = 0  # names the copy
        self.life = 0  # of the link, when the copy began
        self.began = 0  # tick at which the copy began
        self.klass = self.cursor = 0
        self.alone = True  # since its copy no other peer was sent one: what has not been sent was not sent to this one
        self.untold: tuple[int, int] | None = None  # where looking for what was left out stands: which of _WIDENING, row
        self.ending = False  # whether who lives is told for the last time, as the shard was handed over to the peer
        self.resyncs = 0  # copies after the first one

    @property
    def begun(self) -> bool:
        """Whether changes go to it."""
        return self.phase != WAITING

    @property
    def is_current(self) -> bool:
        """Whether it goes to the life that its copy was begun in, and to somebody who knows all that we send."""
        return self.life == self.sender.life and self.sender.version == VERSION

    @property
    def is_steady(self) -> bool:
        """Whether nothing but changes is to be sent."""
        return self.phase in (SENT, SYNCED) and self.untold is None and self.is_current

    def widen(self) -> None:
        """Look for what was left out; with a copy where others may have been sent some of that (a row knows of no peer)."""
        if self.begun and self.alone:
            self.untold = (0, 0)
        elif self.begun:
            self.restart()

    def restart(self) -> None:
        """Begin anew with a copy."""
        if self.begun:
            self.resyncs += 1
        self.phase, self.untold, self.alone = WAITING, None, True


class Sweep:
    """Where the telling of liveness stands in a shard."""

    def __init__(self, now: int) -> None:
        self.klass, self.row = SESSIONS[0], 0
        self.began = self.at = now
        self.since = (now - SWEEP) & 0xFFFFFFFF  # who has just taken over has served for a moment before it tells anybody
        self.missed = False  # whether somebody could not be told a piece: the next sweep is of the same time as well


class Publisher:
    """All streams of a core. `spare`: whether the turn has time left."""

    def __init__(self, source: Source, settings: Settings) -> None:
        self.lapped = 0  # times that tombstones were overwritten unread
        self._source, self._settings = source, settings
        self._streams: dict[int, dict[str, Stream]] = {}
        self._all: list[Stream] = []
        self._sweeps: dict[int, Sweep] = {}
        self._cleaning: dict[int, int] = {}  # shards whose copy is about to begin: where making them clean stands
        self.emptied: Array = np.full(SHARDS_AT_MOST, -1, np.int64)  # by shard: tick at which nothing was left; -1: never
        self.whole: Array = np.zeros(SHARDS_AT_MOST, np.int64)  # by shard: number of the last turn that left nothing
        self.turns = 0
        self._body = np.zeros(BODY_AT_MOST, np.uint8)
        self._series = 0
        self.drained = self._swept = 0  # ticks of the last time

    # --- what is asked for ------------------------------------------------------------------------------------------------

    def stream(self, shard: int, sender: Sender, on: bool, everything: bool, snapshot: bool, now: int) -> None:
        """See `Exchange.stream`."""
        known = self.get(shard, sender.peer)
        if known is not None and on:
            if everything and not known.everything:
                known.widen()
            known.everything = everything
            return
        if known is not None:
            del self._streams[shard][sender.peer]
        self._cleaning.pop(shard, None)
        if not on:
            sender.has_all(shard)
        if on:
            self._streams.setdefault(shard, {})[sender.peer] = Stream(shard, sender, everything)
        self._streams = {shard: peers for shard, peers in self._streams.items() if peers}
        self._sweeps = {shard: sweep for shard, sweep in self._sweeps.items() if shard in self._streams}
        self._all = [stream for peers in self._streams.values() for stream in peers.values()]
        if on and not snapshot and sender.life:
            self._begin(self._streams[shard][sender.peer], now, snapshot=False)

    def get(self, shard: int, peer: str) -> Stream | None:
        """The stream, if there is one."""
        return self._streams.get(shard, {}).get(peer)

    def all(self) -> list[Stream]:
        """Every stream."""
        return self._all

    def quiet(self) -> bool:
        """Whether there is nothing to be sent, or nobody that it could be sent to."""
        return not any(self._can_drain(shard) and not self._source.quiet(shard) for shard in self._streams)

    def names(self) -> list[tuple[int, str]]:
        """Shard and peer of every stream."""
        return [(stream.shard, stream.sender.peer) for stream in self.all()]

    def ask(self, stream: Stream, question: tuple[Frame, Array] | None, now: int) -> None:
        """Send a question of `verify` in the stream, behind what was just sent."""
        if question is not None:
            frame, body = question
            told = self._frame("compare", stream, frame.counts, frame.fields)
            stream.sender.put(told, body.data, now, now, chunk=True)

    def asked(self, sender: Sender, shard: int, series: int) -> None:
        """A peer misses the copy of this series."""
        stream = self.get(shard, sender.peer)
        if stream is not None and stream.series == series:
            self.resync(shard, sender.peer)

    def resync(self, shard: int, peer: str) -> None:
        """Begin anew with a copy, where a stream has begun."""
        stream = self.get(shard, peer)
        if stream is not None and stream.begun:
            stream.restart()

    def installed(self, sender: Sender, shard: int, series: int) -> None:
        """A peer has the copy of this series, to its end."""
        stream = self.get(shard, sender.peer)
        if stream is not None and stream.phase == SENT and stream.series == series:
            stream.phase = SYNCED
            sender.has_all(shard)

    def told_in_pings(self, sender: Sender) -> dict[int, tuple[int, int]]:
        """Series and epoch of each shard whose copy the peer should have heard of."""
        mine = (stream for stream in self.all() if stream.sender is sender and stream.begun)
        return {stream.shard: (stream.series, self._source.epoch(stream.shard)) for stream in mine}

    def synced(self, shard: int, peer: str, now: int) -> bool:
        """See `Exchange.synced`."""
        stream = self.get(shard, peer)
        if stream is None or stream.phase != SYNCED or stream.life != stream.sender.life:
            return False
        return self.lag(shard, peer, now).seconds <= SMALL_LAG_S

    def is_wide(self, shard: int, peer: str) -> bool:
        """See `Exchange.is_wide`."""
        stream = self.get(shard, peer)
        return stream is not None and stream.everything and stream.untold is None

    def last_words(self, shard: int, peer: str) -> bool:
        """See `Exchange.last_words`."""
        stream = self.get(shard, peer)
        if stream is None or not stream.begun or not stream.is_current:
            return True
        if not stream.ending:
            stream.untold, stream.ending = (len(SESSIONS), 0), True
        return stream.untold is None

    def flushed(self, shard: int, peer: str) -> bool:
        """See `Exchange.flushed`. A change since the last turn counts."""
        stream = self.get(shard, peer)
        if stream is None or not stream.begun or self.whole[shard] != self.turns or not stream.sender.idle:
            return False
        return self._source.unsent(shard) == 0

    def lag(self, shard: int, peer: str, now: int) -> Lag:
        """See `Exchange.lag`; changes that wait to be drained count."""
        stream = self.get(shard, peer)
        if stream is None:
            return Lag(0, 0, 0.0)
        records, size, seconds = stream.sender.lag(shard, now)
        emptied = int(self.emptied[shard])
        late = age(now, emptied) if emptied >= 0 else 0
        if late > 2 * self._settings.batch + 2:
            records, seconds = records + self._source.unsent(shard), max(seconds, late / 1000)
        return Lag(records, size, seconds)

    # --- a turn -----------------------------------------------------------------------------------------------------------

    def begin_turn(self) -> None:
        """Nothing was found empty in it yet."""
        self.turns += 1

    def steady(self) -> dict[Sender, list[Stream]] | None:
        """Streams by sender, where nothing but changes is to be sent, each to one peer, in the newest version; else None."""
        found: dict[Sender, list[Stream]] = {}
        for peers in self._streams.values():
            begun = [stream for stream in peers.values() if stream.begun]
            if len(begun) > 1 or not all(stream.is_steady for stream in begun):
                return None
            for stream in begun:
                found.setdefault(stream.sender, []).append(stream)
        return found

    def swept_next(self, now: int) -> int:
        """Ticks until liveness is to be told."""
        sweeps = [self._sweeps.get(shard) for shard in self._streams]
        left = [(sweep.at - now) & 0xFFFFFFFF if sweep else 0 for sweep in sweeps]
        soonest = min((ticks if ticks < 1 << 31 else 0 for ticks in left), default=SWEEP)
        return max(soonest, SWEEP_EVERY - age(now, self._swept))

    def turn(self, now: int, spare: Callable[[], bool]) -> bool:
        """Begin, drain, copy, tell of liveness, as far as time and links allow. True: more could be done at once."""
        copying = more = False
        for stream in self.all():
            if stream.life != stream.sender.life and stream.begun:
                stream.restart()
            if not stream.begun and stream.sender.ready:
                if self._is_clean(stream.shard, spare):
                    self._begin(stream, now, snapshot=True)
                else:
                    more = True
            more |= self._widen(stream, now, spare)
            copying |= stream.phase in _COPYING
        if self._streams and age(now, self.drained) >= self._settings.batch:
            more |= self._drain(now, spare)
        if copying:
            more |= self._copy(now, spare)
        if age(now, self._swept) >= SWEEP_EVERY and (spare() or age(now, self._swept) >= 4 * SWEEP_EVERY):
            self._swept = now
            self._sweep(now)
        return more

    def _widen(self, stream: Stream, now: int, spare: Callable[[], bool]) -> bool:
        """Let what was left out have changed, piece by piece. True: time ran out before."""
        while stream.untold is not None:
            kind, row = stream.untold
            if _WIDENING[kind][1] and not stream.sender.ready_for_chunk:
                return False
            row = self._widen_piece(stream, *_WIDENING[kind], row, now)
            following = (kind, row) if row >= 0 else (kind + 1, 0)
            stream.untold = following if following[0] < len(_WIDENING) else None
            if not spare():
                return stream.untold is not None
        return False

    def _widen_piece(self, stream: Stream, klass: int, living: bool, row: int, now: int) -> int:
        """Where to go on, -1 where the class is done."""
        if not living:
            return self._source.widen(stream.shard, klass, row, now)
        if klass not in older.classes(stream.sender.version) or row >= self._source.extent(stream.shard, klass):
            return -1
        sweep = self._sweeps.setdefault(stream.shard, Sweep(now))
        bits = self._source.refreshed(stream.shard, klass, row, sweep.since, now)
        return row + BITMAP_ROWS if not bits.any() or self._tell_living([stream], klass, row, bits, now) else row

    def _is_clean(self, shard: int, spare: Callable[[], bool]) -> bool:
        """Whether a copy may begin, piece by piece made so: what changed before it is in it, and need not be told once more.

        Where a peer has a copy already, what changed is still to be told.
        """
        cursor = self._cleaning.pop(shard, 0)
        if any(stream.begun for stream in self._streams[shard].values()):
            return True
        while (cursor := self._source.clean(shard, cursor)) >= 0:
            if not spare():  # asked after a piece: on a crowded CPU a turn's time may be over before it begins
                self._cleaning[shard] = cursor
                return False
        return True

    def _begin(self, stream: Stream, now: int, snapshot: bool) -> None:
        """Let the stream have all changes from now on, and a copy of what is there."""
        shard = stream.shard
        if not any(other.begun for other in self._streams[shard].values()):
            self._source.mark(shard)
            self.emptied[shard] = now
        for other in self._streams[shard].values():
            other.alone &= other is stream or not snapshot
        self._series += 1
        stream.series, stream.life = self._series, stream.sender.life
        stream.klass, stream.cursor, stream.began = 0, 0, now
        stream.phase = ROWS if snapshot else SENT
        if not stream.sender.put(self._frame("begin", stream, fields={"w": int(snapshot)}), b"", now, now):
            stream.phase = WAITING

    def _frame(self, kind: str, stream: Stream, counts: tuple[int, ...] = (), fields: Fields | None = None) -> Frame:
        epoch = self._source.epoch(stream.shard)
        return Frame(kind, 0, 0, stream.shard, epoch, stream.series, counts, fields or {})

    # --- changes ----------------------------------------------------------------------------------------------------------

    def _drain(self, now: int, spare: Callable[[], bool]) -> bool:
        """All that changed, as far as it can be sent. True: time ran out before."""
        self.drained = now
        wanted = self._drainable()
        if self._settings.threshold:
            for shard, _ in wanted:
                self._source.ripen(shard, now)
        while wanted:
            left = self._drain_once(wanted, now)
            if not left:
                return False
            wanted = [each for each in self._drainable() if each[0] in left]
            if wanted and not spare():
                self.drained = age(now, self._settings.batch)  # go on in the next turn
                self._put_last(left)
                return True
        return False

    def _drainable(self) -> list[tuple[int, bool]]:
        """Shards that any peer can take, and whether one wants everything. In one loop: this is asked in each turn."""
        found = []
        for shard, peers in self._streams.items():
            ready = everything = False
            for stream in peers.values():
                if stream.phase != WAITING:
                    ready |= stream.sender.ready
                    everything |= stream.everything
            if ready:
                found.append((shard, everything))
        return found

    def _put_last(self, shards: list[int]) -> None:
        """Shards of which there is always more let the others go first next time."""
        first = {shard: peers for shard, peers in self._streams.items() if shard not in shards}
        self._streams = first | {shard: self._streams[shard] for shard in shards}

    def _can_drain(self, shard: int) -> bool:
        """Whether any peer can take it. One that cannot, while another can, begins anew if it misses too much."""
        return any(stream.begun and stream.sender.ready for stream in self._streams[shard].values())

    def _drain_once(self, wanted: list[tuple[int, bool]], now: int) -> list[int]:
        """A frame for each peer; shards of which there is more."""
        parts = self._source.harvest(wanted, now)
        self._ship([part for part in parts if part.rows], now)
        lapped, more = [part.shard for part in parts if part.lapped], [part.shard for part in parts if part.more]
        for shard in lapped:
            self.lap(shard)
        for shard, _ in wanted:
            if shard not in more and shard not in lapped:
                self.emptied[shard], self.whole[shard] = now, self.turns
        return more

    def lap(self, shard: int) -> None:
        """Some of what ended is not known any more."""
        self.lapped += 1
        for stream in self._streams[shard].values():
            stream.restart()

    def _ship(self, parts: list[Part], now: int) -> None:
        """To each peer that has a copy of some of these shards, or is getting one: in one frame if it understands that."""
        mine: dict[Sender, list[tuple[Stream, Part]]] = {}
        for part in parts:
            for stream in self._streams[part.shard].values():
                if stream.begun and stream.life == stream.sender.life:
                    known = older.known(part, stream.sender.version)
                    if known.rows:
                        mine.setdefault(stream.sender, []).append((stream, known))
        for sender, told in mine.items():
            groups = [told] if sender.version >= KINDS["updates"].since else [[one] for one in told]
            for group in groups:
                self._send(sender, group, now)

    def _send(self, sender: Sender, told: list[tuple[Stream, Part]], now: int) -> None:
        rows = [each for _, part in told for each in part.rows]
        body = np.concatenate(rows, out=self._body[: sum(map(len, rows))])
        birth = max((int(self.emptied[part.shard]) for _, part in told), key=lambda then: age(now, then))
        loads = {part.shard: Load(sum(part.counts), sum(map(len, part.rows))) for _, part in told}
        if not sender.put(self._updates(told), body.data, now, birth, loads):
            for stream, _ in told:
                stream.restart()

    def _updates(self, told: list[tuple[Stream, Part]]) -> Frame:
        if len(told) == 1:
            stream, part = told[0]
            return self._frame("update", stream, part.counts)
        rows = [[part.shard, self._source.epoch(part.shard), stream.series, *part.counts] for stream, part in told]
        counts = tuple(map(sum, zip(*(part.counts for _, part in told), strict=True)))
        return Frame("updates", counts=counts, fields={"p": rows})

    # --- copies -----------------------------------------------------------------------------------------------------------

    def _copy(self, now: int, spare: Callable[[], bool]) -> bool:
        """Pieces of copies, in turn for each peer. True: time ran out before."""
        copying, pieces = [stream for stream in self.all() if stream.phase in _COPYING], 0
        while copying:
            for stream in copying:
                if pieces and not spare():
                    return True
                if stream.sender.ready_for_chunk:
                    self._piece(stream, now)
                    pieces += 1
            copying = [stream for stream in copying if stream.phase in _COPYING and stream.sender.ready_for_chunk]
        return False

    def _piece(self, stream: Stream, now: int) -> None:
        if stream.phase == LIVING:
            return self._living_piece(stream, now)
        if stream.phase == HOLDS:
            piece = self._source.holds(stream.shard, stream.cursor, now)
            kind, size = "holds", len(piece.rows)
            counts: tuple[int, ...] = (size // 12,)
        else:
            klass = older.classes(stream.sender.version)[stream.klass]
            piece = self._source.living(stream.shard, klass, stream.cursor, stream.everything, now)
            kind, size = "update", len(piece.rows)
            counts = (0, 0, size // 64) if klass in SESSIONS else (0, size // 32, 0)
        if len(piece.rows) and not stream.sender.put(self._frame(kind, stream, counts), piece.rows.data, now, now, chunk=True):
            return stream.restart()
        stream.cursor = piece.row
        return None if piece.row >= 0 else self._next_part(stream, now)

    def _living_piece(self, stream: Stream, now: int) -> None:
        klass = older.classes(stream.sender.version)[stream.klass]
        if klass not in SESSIONS or stream.cursor >= self._source.extent(stream.shard, klass):
            return self._next_part(stream, now)
        bits = self._source.refreshed(stream.shard, klass, stream.cursor, stream.began, now)
        if bits.any() and not self._tell_living([stream], klass, stream.cursor, bits, now):
            return stream.restart()
        stream.cursor += BITMAP_ROWS
        return None

    def _next_part(self, stream: Stream, now: int) -> None:
        """A class was walked to its end, or the holds were."""
        stream.cursor = 0
        if stream.phase in (ROWS, LIVING):
            stream.klass += 1
            if stream.klass < len(older.classes(stream.sender.version)):
                return
        if stream.phase == ROWS and self._settings.holds:
            stream.phase = HOLDS
        elif stream.phase != LIVING:
            stream.phase, stream.klass = LIVING, 0
        else:
            self._end(stream, now)

    def _end(self, stream: Stream, now: int) -> None:
        stream.phase = SENT
        if not stream.sender.put(self._frame("end", stream), b"", now, now, chunk=True):
            stream.restart()

    # --- liveness ---------------------------------------------------------------------------------------------------------

    def _sweep(self, now: int) -> None:
        """Tell which sessions were seen alive, a piece at a time, so that no peer thinks them over."""
        for shard, peers in self._streams.items():
            synced = [stream for stream in peers.values() if stream.phase >= LIVING]
            sweep = self._sweeps.setdefault(shard, Sweep(now))
            if not any(stream.sender.ready for stream in synced) or age(sweep.at, now) - 1 < 1 << 31:
                continue
            spans = [self._source.extent(shard, klass) for klass in SESSIONS]
            self._tell(shard, sweep, spans, synced, now)

    def _tell(self, shard: int, sweep: Sweep, spans: list[int], synced: list[Stream], now: int) -> None:
        if sweep.row < spans[SESSIONS.index(sweep.klass)]:
            bits = self._source.refreshed(shard, sweep.klass, sweep.row, sweep.since, now)
            if bits.any():
                knowing = [each for each in synced if sweep.klass in older.classes(each.sender.version)]
                sweep.missed |= not self._tell_living(knowing, sweep.klass, sweep.row, bits, now)
            sweep.row += BITMAP_ROWS
            sweep.at = now + max(1, SWEEP * BITMAP_ROWS // (sum(spans) + BITMAP_ROWS))
        elif sweep.klass != SESSIONS[-1]:
            sweep.klass, sweep.row = SESSIONS[SESSIONS.index(sweep.klass) + 1], 0
        else:
            sweep.klass, sweep.row = SESSIONS[0], 0
            sweep.at = max(now + 1, sweep.began + SWEEP)
            sweep.since, sweep.began, sweep.missed = sweep.since if sweep.missed else sweep.began, now, False

    def _tell_living(self, streams: list[Stream], klass: int, row: int, bits: Array, now: int) -> bool:
        """Whether all of them were told."""
        frames = [(each, self._frame("bitmap", each, (BITMAP_ROWS,), {"k": klass, "r": row})) for each in streams]
        return all([each.sender.ready and each.sender.put(frame, bits.data, now, now, chunk=True) for each, frame in frames])
