"""The way out to one peer: numbers, what is in flight, what waits, how late the peer is.

A *life* of the link begins when the peer has answered `open` with a random number, and ends with the connection, with a frame
that the peer misses, or when it acknowledges nothing for a second. Within a life every frame arrives, once and in order, or the
life is over; then all copies begin anew with a snapshot. So nobody has to repair a stream, and an old frame is worth nothing.

    CLOSED ── connected, or now and then ──► OPENING ── opened ──► OPEN ── broken, stale, disconnected ──► CLOSED

What is in flight is bounded here, not only by ZeroMQ's queues and the kernel's: a peer that has stopped costs a fixed amount.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from replication import steady
from replication.frames import UNDERSTOOD, VERSION, Body, Frame, Refused, encode, whole
from replication.link import Link
from replication.protocol import Fields, Lag, age
from replication.steady import (
    ACKNOWLEDGED,
    BIRTH,
    CHUNKS,
    FIRST_LOAD,
    FLIGHT_BYTES,
    FLIGHTS,
    FRAMES,
    LAST_LOAD,
    LOADS,
    NUMBER,
    PROGRESS,
    RECORDS,
    SAID,
    SENT_BYTES,
    TRUSTED,
)

CHUNKS_AT_MOST = 16  # of snapshots in flight: updates wait behind no more than that
WAITING_AT_MOST = 64  # frames that ZeroMQ did not take yet
STALE_AFTER = 1000  # ticks without an acknowledgement
OPEN_EVERY = 100
# Ticks between two pings to who is sent other things all the time, where silence is 150; less where that is less. So
# soon it hears what only they tell (the last number, and copies that have begun), and that we live, if those others are lost.
SELDOM = 80
_RECORDS = ("update", "updates", "holds")  # kinds whose counts are of records


class Load(NamedTuple):
    """What a frame has of a shard."""

    records: int
    bytes: int


Loads = Mapping[int, Load]  # by shard
_NO_LOADS: Loads = {}


class Sender:
    """One peer's. Times are ticks. What compiled code counts with, too, stands in its book (see `steady`)."""

    def __init__(self, peer: str, link: Link, now: int, ping: int) -> None:
        self.peer, self._ping_each = peer, ping
        self._seldom = max(ping, min(SELDOM, 8 * ping // 3))
        self.life = 0  # 0: none
        self.lives = 0
        self.version = VERSION
        self.broken, self.stale = 0, 0  # lives that ended so
        self.book = steady.new_book()
        self.lags = self.book.lags  # records by how late they were acknowledged
        self._columns = self.book.columns
        self._columns[[PROGRESS, SAID]] = now
        self._link = link
        self._lost: dict[int, int] = {}  # by shard: birth of the oldest change that was lost with a life
        self._waiting: deque[tuple[bytes, bytes]] = deque()
        self._pinged = now
        self.lifeless = now  # tick of the last turn with a life
        self._asked = age(now, OPEN_EVERY)

    # --- life -------------------------------------------------------------------------------------------------------------

    def connected(self, now: int) -> None:
        """There is a connection: ask for a life at once."""
        self._asked = age(now, OPEN_EVERY)

    def opened(self, frame: Frame, now: int) -> None:
        """The peer has begun a life."""
        if self.life or frame.life == 0:
            return  # a late answer to a question asked twice
        self.life, self.version = frame.life, frame.version
        self.lives += 1
        self._columns[PROGRESS] = now

    def over(self) -> None:
        """The life has ended; what was in flight is as good as lost."""
        self.life = 0
        for load in self._loads():
            self._lost.setdefault(load[steady.LOAD_SHARD], self._birth(load))
        self._waiting.clear()
        self._columns[[NUMBER, ACKNOWLEDGED, FLIGHT_BYTES, CHUNKS, TRUSTED]] = 0
        self._columns[FIRST_LOAD] = self._columns[LAST_LOAD]

    def missed(self, frame: Frame) -> None:
        """The peer says that it misses a frame of a life."""
        if frame.life and frame.life == self.life:
            self.broken += 1
            self.over()

    def turn(self, now: int, streams: Callable[[Sender], dict[int, tuple[int, int]]]) -> None:
        """Hand over what waits, ask for a life where there is none, show that we live. `streams`: series and epoch by shard."""
        if self._waiting:
            self._flush(now)
        if self.life and self._is_stale(now):
            self.stale += 1
            self.over()
        if self.life:
            self.lifeless = now
        elif age(now, self._asked) >= OPEN_EVERY:
            self._asked = now
            self._link.send(self.peer, encode(Frame("open", fields={"v": list(UNDERSTOOD)}, version=UNDERSTOOD[-1])))
        if 3 * self.next_ping(now) <= self._ping_each:  # with the peer's, which this turn may be about: one turn, not two
            self._ping(now, streams(self))

    def next_ping(self, now: int) -> int:
        """Ticks until one is due; 0: it is. Changes and acknowledgements show as well that we live: pings are rare then."""
        left = self._ping_each - age(now, self._pinged)
        if self.life:
            unheard = self._ping_each - age(now, int(self._columns[SAID]))
            left = max(left, min(unheard, left + self._seldom - self._ping_each))
        return max(0, left)

    def said(self, now: int) -> None:
        """The peer was sent something that shows that we live."""
        self._columns[SAID] = now

    def _is_stale(self, now: int) -> bool:
        return self._in_flight > 0 and age(now, int(self._columns[PROGRESS])) > STALE_AFTER

    def _ping(self, now: int, streams: dict[int, tuple[int, int]]) -> None:
        """It tells the last number, too: a frame lost at the end is missed soon, not when another one follows."""
        if self._waiting:
            return
        fields: Fields = {"s": {shard: list(told) for shard, told in streams.items()}} if self.life else {}
        told = Frame("ping", self.life, int(self._columns[NUMBER]), fields=fields, version=self.version)
        self._link.send(self.peer, encode(told))
        self._pinged = now

    # --- sending ----------------------------------------------------------------------------------------------------------

    @property
    def _in_flight(self) -> int:
        """Frames that are not acknowledged yet."""
        return int(self._columns[NUMBER] - self._columns[ACKNOWLEDGED])

    @property
    def ready(self) -> bool:
        """Whether rows may be drained for this peer: what is sent now is not behind anything that waits."""
        return self.idle and bool(steady.has_room(self._columns))

    @property
    def ready_for_chunk(self) -> bool:
        """Whether a piece of a snapshot may follow."""
        return self.ready and int(self._columns[CHUNKS]) < CHUNKS_AT_MOST

    @property
    def sent(self) -> tuple[int, int, int]:
        """Frames, records and bytes, ever."""
        frames, records, size = self._columns[[FRAMES, RECORDS, SENT_BYTES]].tolist()
        return frames, records, size

    @property
    def waits(self) -> bool:
        """Whether anything that was put waits for ZeroMQ."""
        return bool(self._waiting)

    @property
    def idle(self) -> bool:
        """Whether all that was put was handed to ZeroMQ."""
        return bool(self.life) and not self._waiting

    def put(self, frame: Frame, body: Body, now: int, birth: int, loads: Loads = _NO_LOADS, chunk: bool = False) -> bool:
        """Number a frame and send it, or keep it until it can be sent. False: no life, or too many are on their way already.

        `loads`: changes in it; `chunk`: it is a piece of a snapshot.
        """
        if not self.life or len(self._waiting) >= WAITING_AT_MOST or self._in_flight >= FLIGHTS:
            return False
        columns = self._columns
        if columns[LAST_LOAD] - columns[FIRST_LOAD] + len(loads) > LOADS:
            return False
        columns[NUMBER] += 1
        number = int(columns[NUMBER])
        header = encode(frame._replace(life=self.life, number=number, version=self.version), body)
        if self._waiting or not self._link.send(self.peer, header, body):
            self.keep(header, bytes(body))
        else:
            self.said(now)
        if self._in_flight == 1:
            columns[PROGRESS] = now
        self._note(number, birth, loads, len(body), chunk)
        columns[FRAMES] += 1
        columns[RECORDS] += sum(frame.counts) if frame.kind in _RECORDS else 0
        columns[SENT_BYTES] += len(header) + len(body)
        return True

    def _note(self, number: int, birth: int, loads: Loads, size: int, chunk: bool) -> None:
        """Enter what is in flight into the book; `birth`: when the oldest change in it may have happened."""
        columns = self._columns
        for shard, load in loads.items():
            self.book.loads[columns[LAST_LOAD] % LOADS] = number, shard, *load
            columns[LAST_LOAD] += 1
        self.book.flights[number % FLIGHTS] = birth, size, chunk, sum(load.records for load in loads.values())
        columns[FLIGHT_BYTES] += size
        columns[CHUNKS] += chunk

    def keep(self, header: bytes, body: bytes) -> None:
        """A frame that ZeroMQ did not take: the next turn tries again."""
        self._waiting.append((header, body))

    def _flush(self, now: int) -> None:
        while self._waiting and self._link.send(self.peer, *self._waiting[0]):
            self._waiting.popleft()
            self.said(now)

    # --- acknowledgements -------------------------------------------------------------------------------------------------

    def acknowledge(self, frame: Frame, now: int) -> bool:
        """Everything up to a number was applied, `w` ticks before this was sent. False: of another life."""
        if not self.life or frame.life != self.life:
            return False
        waited = whole(frame.fields, "w")
        columns, flights, loads, lags = self.book
        if not columns[ACKNOWLEDGED] <= frame.number <= columns[NUMBER]:
            raise Refused("malformed")
        steady.acknowledge(columns, flights, loads, lags, frame.number, waited, now)
        return True

    def trust(self) -> None:
        """What the last acknowledgement told of copies was taken: compiled code need not say it again."""
        self._columns[TRUSTED] = 1

    def lag(self, shard: int, now: int) -> Lag:
        """What is in flight of a shard, snapshots left out; as late as the oldest change that the peer does not have."""
        mine = [load for load in self._loads() if load[steady.LOAD_SHARD] == shard]
        late = age(now, self._lost.get(shard, self._birth(mine[0]) if mine else now))
        records, size = (sum(load[column] for load in mine) for column in (steady.LOAD_RECORDS, steady.LOAD_BYTES))
        return Lag(records, size, late / 1000)

    def _loads(self) -> list[list[int]]:
        """Loads in flight, the oldest first."""
        first, last = self._columns[[FIRST_LOAD, LAST_LOAD]].tolist()
        loads: list[list[int]] = self.book.loads[np.arange(first, last) % LOADS].tolist() if first < last else []
        return loads

    def _birth(self, load: list[int]) -> int:
        """When the oldest change of its frame may have happened."""
        return int(self.book.flights[load[steady.LOAD_NUMBER] % FLIGHTS, BIRTH])

    def has_all(self, shard: int) -> None:
        """The peer has a new copy of a shard, or is to have none: what was lost is lost no more."""
        self._lost.pop(shard, None)

    def percentile(self, part: float) -> int:
        """Ticks within which this part of all records was acknowledged."""
        total = np.cumsum(self.lags)
        return int(np.searchsorted(total, part * total[-1])) if total[-1] else 0
