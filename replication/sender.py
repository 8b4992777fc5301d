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

from replication.frames import UNDERSTOOD, VERSION, Body, Frame, Refused, encode, whole
from replication.link import Link
from replication.protocol import Fields, Lag, age

FRAMES_AT_MOST, BYTES_AT_MOST = 256, 4 << 20  # in flight
CHUNKS_AT_MOST = 16  # of snapshots in flight: updates wait behind no more than that
WAITING_AT_MOST = 64  # frames that ZeroMQ did not take yet
STALE_AFTER = 1000  # ticks without an acknowledgement
OPEN_EVERY = 100
_RECORDS = ("update", "updates", "holds")  # kinds whose counts are of records
LAGS = 1024  # ticks; the histogram's last bin has all above


class Load(NamedTuple):
    """What a frame has of a shard."""

    records: int
    bytes: int


Loads = Mapping[int, Load]  # by shard
_NO_LOADS: Loads = {}


class Flight(NamedTuple):
    """A frame that is not acknowledged yet; `birth`: when the oldest change in it may have happened."""

    number: int
    birth: int
    loads: Loads
    bytes: int
    chunk: bool


class Sender:
    """One peer's. Times are ticks."""

    def __init__(self, peer: str, link: Link, now: int, ping: int) -> None:
        self.peer, self._ping_each = peer, ping
        self.life = 0  # 0: none
        self.lives = 0
        self.version = VERSION
        self.frames, self.records, self.bytes = 0, 0, 0  # sent ever
        self.broken, self.stale = 0, 0  # lives that ended so
        self.lags = np.zeros(LAGS, np.int64)  # records by how late they were acknowledged
        self.longest_send_ns = 0
        self._link = link
        self._number = self._acknowledged = 0
        self._flight: deque[Flight] = deque()
        self._flight_bytes = self._chunks = 0
        self._lost: dict[int, int] = {}  # by shard: birth of the oldest change that was lost with a life
        self._waiting: deque[tuple[bytes, bytes]] = deque()
        self._progress = self.pinged = now
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
        self._number = self._acknowledged = 0
        self._progress = now

    def over(self) -> None:
        """The life has ended; what was in flight is as good as lost."""
        self.life = 0
        for flight in self._flight:
            for shard in flight.loads:
                self._lost.setdefault(shard, flight.birth)
        self._flight.clear()
        self._waiting.clear()
        self._flight_bytes = self._chunks = 0

    def missed(self, frame: Frame) -> None:
        """The peer says that it misses a frame of a life."""
        if frame.life and frame.life == self.life:
            self.broken += 1
            self.over()

    def turn(self, now: int, streams: Callable[[Sender], dict[int, tuple[int, int]]]) -> None:
        """Hand over what waits, ask for a life where there is none, show that we live. `streams`: series and epoch by shard."""
        if self._waiting:
            self._flush()
        if self.life and self._is_stale(now):
            self.stale += 1
            self.over()
        if self.life:
            self.lifeless = now
        elif age(now, self._asked) >= OPEN_EVERY:
            self._asked = now
            self._link.send(self.peer, encode(Frame("open", fields={"v": list(UNDERSTOOD)}, version=UNDERSTOOD[-1])))
        if age(now, self.pinged) >= self._ping_each:
            self._ping(now, streams(self))

    def _is_stale(self, now: int) -> bool:
        return bool(self._flight) and age(now, self._progress) > STALE_AFTER

    def _ping(self, now: int, streams: dict[int, tuple[int, int]]) -> None:
        """It tells the last number, too: a frame lost at the end is missed soon, not when another one follows."""
        if self._waiting:
            return
        fields: Fields = {"s": {shard: list(told) for shard, told in streams.items()}} if self.life else {}
        told = Frame("ping", self.life, self._number, fields=fields, version=self.version)
        self._link.send(self.peer, encode(told))
        self.pinged = now

    # --- sending ----------------------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether rows may be drained for this peer: what is sent now is not behind anything that waits."""
        return self.idle and len(self._flight) < FRAMES_AT_MOST and self._flight_bytes < BYTES_AT_MOST

    @property
    def ready_for_chunk(self) -> bool:
        """Whether a piece of a snapshot may follow."""
        return self.ready and self._chunks < CHUNKS_AT_MOST

    @property
    def idle(self) -> bool:
        """Whether all that was put was handed to ZeroMQ."""
        return bool(self.life) and not self._waiting

    def put(self, frame: Frame, body: Body, now: int, birth: int, loads: Loads = _NO_LOADS, chunk: bool = False) -> bool:
        """Number a frame and send it, or keep it until it can be sent. False: no life, or too many are on their way already.

        `loads`: changes in it; `chunk`: it is a piece of a snapshot.
        """
        if not self.life or len(self._waiting) >= WAITING_AT_MOST or len(self._flight) >= 2 * FRAMES_AT_MOST:
            return False
        self._number += 1
        told = frame._replace(life=self.life, number=self._number, version=self.version)
        header = encode(told, body)
        if self._waiting or not self._link.send(self.peer, header, body):
            self._waiting.append((header, bytes(body)))
        if not self._flight:
            self._progress = now
        self._flight.append(Flight(self._number, birth, loads, len(body), chunk))
        self._flight_bytes += len(body)
        self._chunks += chunk
        self.frames += 1
        self.records += sum(frame.counts) if frame.kind in _RECORDS else 0
        self.bytes += len(header) + len(body)
        return True

    def _flush(self) -> None:
        while self._waiting and self._link.send(self.peer, *self._waiting[0]):
            self._waiting.popleft()

    # --- acknowledgements -------------------------------------------------------------------------------------------------

    def acknowledge(self, frame: Frame, now: int) -> bool:
        """Everything up to a number was applied, `w` ticks before this was sent. False: of another life."""
        if not self.life or frame.life != self.life:
            return False
        waited = whole(frame.fields, "w")
        if not self._acknowledged <= frame.number <= self._number:
            raise Refused("malformed")
        if frame.number > self._acknowledged:
            self._progress = now
        self._acknowledged = frame.number
        while self._flight and self._flight[0].number <= frame.number:
            done = self._flight.popleft()
            self._flight_bytes -= done.bytes
            self._chunks -= done.chunk
            if done.loads:
                late = age(now, done.birth) - waited
                self.lags[min(max(late, 0), LAGS - 1)] += sum(load.records for load in done.loads.values())
        return True

    def lag(self, shard: int, now: int) -> Lag:
        """What is in flight of a shard, snapshots left out; as late as the oldest change that the peer does not have."""
        mine = [flight for flight in self._flight if shard in flight.loads]
        late = age(now, self._lost.get(shard, mine[0].birth if mine else now))
        loads = [flight.loads[shard] for flight in mine]
        return Lag(sum(load.records for load in loads), sum(load.bytes for load in loads), late / 1000)

    def has_all(self, shard: int) -> None:
        """The peer has a new copy of a shard, or is to have none: what was lost is lost no more."""
        self._lost.pop(shard, None)

    def percentile(self, part: float) -> int:
        """Ticks within which this part of all records was acknowledged."""
        total = np.cumsum(self.lags)
        return int(np.searchsorted(total, part * total[-1])) if total[-1] else 0
