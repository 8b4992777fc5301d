"""What peers send of their own accord, one message after another; changes of whole copies never get here (see `inlet`).

`fetch` has compiled code read and apply those, and gives what is left of it: the next message of any other kind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from replication import calls, inlet
from replication.frames import BODY_AT_MOST, HEADER_AT_MOST
from replication.inlet import (
    ANY_REFUSED,
    ASIDE,
    BODY_LENGTH,
    HEADER_LENGTH,
    HEARD,
    NOTHING,
    PARTS,
    REFUSED,
    RESTED,
    SOCKET,
    TOLD,
    WAY,
    WAY_LENGTH,
    WAYS,
    Inlet,
)
from replication.link import Link, Message
from replication.publisher import SHARDS_AT_MOST
from replication.rows import StateSink
from replication.subscriber import Subscriber
from replication.tables import Sink
from shards.records import MAPPING_RECORD, SESSION_RECORD, TOMBSTONE
from shards.state import Array

PEERS_AT_MOST = 1 << 12  # of a core
_WAY_AT_MOST = 256  # bytes; ZeroMQ has no longer ones


def new_inlet(ways: Array) -> Inlet:
    """Memory for messages, and for copies, of which none is taken yet."""
    columns, copies = np.zeros(inlet.COLUMNS, np.int64), np.zeros((SHARDS_AT_MOST, inlet.COPY_COLUMNS), np.int64)
    copies[:, WAY] = -1
    message, way = calls.new_message(), np.zeros(_WAY_AT_MOST, np.uint8)
    header, body = np.zeros(HEADER_AT_MOST, np.uint8), np.zeros(BODY_AT_MOST // 8 + 1, np.uint64)
    ended, mappings, sessions = (
        np.zeros(BODY_AT_MOST // kind.itemsize, kind) for kind in (TOMBSTONE, MAPPING_RECORD, SESSION_RECORD)
    )
    words = np.zeros(2, np.int64)
    places = np.array([memory.ctypes.data for memory in (message, way, header, body, words, words[1:])], np.int64)
    return Inlet(
        columns, ways, copies, way, header, body.view(np.uint8), body, ended, ended.view(np.uint64),
        mappings, mappings.view(np.uint64), sessions, sessions.view(np.uint64), np.zeros(0, np.uint64), words, places, message,
    )  # fmt: skip


class Intake:
    """Of one core. `heard`: told of each peer of which something was applied, with the tick."""

    def __init__(self, sink: Sink, link: Link, subscriber: Subscriber, heard: Callable[[str, int], None]) -> None:
        self._sink = sink if isinstance(sink, StateSink) else None
        self._link, self._subscriber, self._heard = link, subscriber, heard
        self._rows: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._inlet = new_inlet(np.zeros((PEERS_AT_MOST, inlet.WAY_COLUMNS), np.int64))
        self._seen = -1  # changes of the subscriber's
        self._shown: list[int] = []  # shards that compiled code takes
        self.more = False  # after `fetch`: there was no time for what is left

    # --- peers ------------------------------------------------------------------------------------------------------------

    def meet(self, peer: str) -> Array:
        """Columns of a peer that is new; see `inlet`."""
        row = next(row for row in range(PEERS_AT_MOST) if row not in self._names)
        self._rows[peer], self._names[row] = row, peer
        self._inlet.columns[WAYS] = max(self._names) + 1
        ways: Array = self._inlet.ways[row]
        return ways

    def part(self, peer: str) -> None:
        """Take nothing from it any more."""
        row = self._rows.pop(peer)
        del self._names[row]
        self._inlet.ways[row], self._seen = 0, -1

    # --- messages ---------------------------------------------------------------------------------------------------------

    def fetch(self, now: int, spare: Callable[[], bool]) -> Message | None:
        """The next message of any peer that is not a change of a whole copy. None: none is left, or time has run out."""
        self.more = False
        if self._sink is None:
            return self._link.fetch()
        if self._seen != self._subscriber.changes:
            self._show()
        while self._link.is_readable:
            found = self._take(self._sink, now)
            if found == ASIDE:
                return self._left()
            if found == NOTHING:
                self._link.is_read()
                return None
            if not spare():
                self.more = True
                return None
        return None

    def _show(self) -> None:
        """Which copies compiled code may take changes of, and from whom."""
        copies = self._inlet.copies
        copies[self._shown, WAY] = -1
        self._shown, self._seen = [], self._subscriber.changes
        for copy in self._subscriber.wholes():
            if copy.peer in self._rows:
                copies[copy.shard] = self._rows[copy.peer], copy.epoch, copy.series, 0
                self._shown.append(copy.shard)

    def _take(self, sink: StateSink, now: int) -> int:
        columns, ways = self._inlet.columns, self._inlet.ways
        columns[[SOCKET, RESTED, TOLD, ANY_REFUSED]] = self._link.router, sink.rested, 0, 0
        found = int(inlet.take(sink.state, self._inlet, now))
        if columns[TOLD]:
            self._settle()
        for row in np.flatnonzero(ways[: columns[WAYS], HEARD]).tolist():
            ways[row, HEARD] = 0
            self._heard(self._names[row], now)
        return found

    def _settle(self) -> None:
        """Count what was applied, and what was refused."""
        refused: dict[int, int] = {}
        if self._inlet.columns[ANY_REFUSED]:
            counted = self._inlet.copies[:, REFUSED]
            refused = {shard: int(counted[shard]) for shard in self._shown if counted[shard]}
            counted[self._shown] = 0
        self._subscriber.took(int(self._inlet.columns[TOLD]), refused)

    def _left(self) -> Message:
        """The message that was left behind."""
        first, head, size, parts = self._inlet.columns[[WAY_LENGTH, HEADER_LENGTH, BODY_LENGTH, PARTS]].tolist()
        way = self._inlet.way[:first].tobytes()
        header = self._inlet.header[:head].tobytes() if head <= HEADER_AT_MOST else b""
        user: Callable[[], Any] = lambda: calls.property_of(self._inlet.message, "User-Id")  # noqa: E731
        return self._link.received(way, user, header, self._inlet.body[:size], parts - 1)
