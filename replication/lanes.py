"""Which links are in the steady state, and their turns: `steady.pump` for each, and what to do about what it leaves.

Lanes are open as long as changes are all that is to be sent, and nobody asks for anything. What else there is, news of another
socket, a message of another kind, a frame that was not taken, a ping or a piece of liveness that is due, is done in Python
after them, in the same turn, as all is without lanes (`exchange.Exchange`); then it is seen anew whether they may be open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from replication import steady
from replication.frames import BODY_AT_MOST, HEADER_AT_MOST
from replication.harvest import ENDED, EVERYTHING, SHARD
from replication.link import Link, Message
from replication.protocol import Settings, age
from replication.publisher import Publisher, Stream
from replication.rows import MAPPINGS_AT_ONCE, SESSIONS_AT_ONCE, TOMBSTONES_AT_ONCE, StateSource
from replication.sender import Sender
from replication.steady import ANSWERS, BODY_LENGTH, HEADER_LENGTH, PARTS, Book, Lane
from replication.tables import Source
from shards.bound import bound
from shards.gather import LAPPED
from shards.records import MAPPING_RECORD, SESSION_RECORD, TOMBSTONE
from shards.state import Array

_Signature = tuple[tuple[int, int, int], ...]
_Pump = Callable[..., int]  # `steady.pump` of one lane


class Desk:
    """Memory that all lanes use in turn."""

    def __init__(self) -> None:
        self.header, self.answer = (np.zeros(HEADER_AT_MOST, np.uint8) for _ in range(2))
        self.body = np.zeros(BODY_AT_MOST // 8 + 1, np.uint64)
        self.ended, self.mappings = np.zeros(TOMBSTONES_AT_ONCE, TOMBSTONE), np.zeros(MAPPINGS_AT_ONCE, MAPPING_RECORD)
        self.sessions, self.words = np.zeros(SESSIONS_AT_ONCE, SESSION_RECORD), np.zeros(2, np.int64)
        told = self.header, self.body, self.answer, self.words, self.words[1:]
        self.places = np.array([memory.ctypes.data for memory in told], np.int64)

    def lane(self, book: Book, streams: Array, by_shard: tuple[Array, Array, Array]) -> Lane:
        """A lane of the peer whose book this is; `by_shard`: see `Lane`."""
        ended, mappings, sessions = self.ended, self.mappings, self.sessions
        return Lane(
            *book, streams, *by_shard, np.zeros(HEADER_AT_MOST, np.uint8), self.answer, self.header,
            self.body.view(np.uint8), self.body, ended, ended.view(np.uint64), mappings, mappings.view(np.uint64),
            sessions, sessions.view(np.uint64), self.words, self.places,
        )  # fmt: skip


class Lanes:
    """Of one core. `left`: ticks until lanes are not enough; `take`: what becomes of an answer that is no plain
    acknowledgement; `note`: a peer was heard.
    """

    def __init__(
        self,
        source: Source,
        publisher: Publisher,
        link: Link,
        settings: Settings,
        left: Callable[[int], int],
        take: Callable[[Message, int], None],
        note: Callable[[str, int], None],
    ) -> None:
        self.is_open = False
        self._source = source if isinstance(source, StateSource) and not settings.threshold else None
        self._publisher, self._link, self._batch = publisher, link, settings.batch
        self._ask, self._take, self._note = left, take, note
        self._desk = Desk()
        self._lanes: dict[Sender, tuple[_Signature, Lane, _Pump]] = {}
        self._descriptors: set[int] = set()
        self._since = self._left = self._again = 0

    def close(self) -> None:
        """Let the next turn be one that does everything."""
        self.is_open = False

    def open(self, senders: Iterable[Sender], left: int, now: int) -> None:
        """Go on so for the next `left` ticks, if all links are in the steady state."""
        self.is_open = False
        if self._source is None or self._link.is_skipping or any(sender.waits for sender in senders):
            return
        streams = self._publisher.steady()
        if streams is None or not all(sender.life < 1 << 63 for sender in streams):
            return
        self._descriptors.clear()
        self._lanes = {sender: self._lane(sender, mine) for sender, mine in streams.items()}
        self._since, self._left, self._again, self.is_open = now, left, self._link.again, True

    def _lane(self, sender: Sender, streams: list[Stream]) -> tuple[_Signature, Lane, _Pump]:
        """The one that there is, if nothing has changed."""
        socket, descriptor = self._link.handle(sender.peer)
        self._descriptors.add(descriptor)
        signature = (sender.life, socket, 0), *((one.shard, one.series, one.everything) for one in streams)
        known = self._lanes.get(sender)
        if known is not None and known[0] == signature:
            return known
        rows = np.zeros((len(streams), steady.STREAM_COLUMNS), np.int64)
        for row, stream in zip(rows, streams, strict=True):
            row[[SHARD, EVERYTHING, steady.SERIES]] = stream.shard, stream.everything, stream.series
        assert self._source
        by_shard = self._source.read, self._publisher.emptied, self._publisher.whole
        sender.book.columns[[steady.LIFE, steady.SOCKET, steady.TRUSTED]] = sender.life, socket, 0
        lane = self._desk.lane(sender.book, rows, by_shard)
        return signature, lane, bound(steady.pump, self._source.state, lane)

    def turn(self, now: int) -> bool:
        """Take a turn; True: that was all that there was to do."""
        if not self.is_open:
            return False
        self.is_open, still = False, True  # closed, if anything fails here
        done = not self._link.others_have_news(self._descriptors)
        done &= self._link.again == self._again
        is_due = age(now, self._publisher.drained) >= self._batch
        for sender, (_, lane, pump) in self._lanes.items():
            if not sender.waits and not self._is_done(sender, lane, pump(is_due, self._publisher.turns, now), now):
                still = done = False
                if self._link.is_skipping:
                    break  # another one's message may have too many parts, too
        if is_due and still:
            self._publisher.drained = now
        self.is_open = still
        return done and self._are_enough(now)

    def _are_enough(self, now: int) -> bool:
        """Whether nothing else is due. Asked again when it would be: what was sent meanwhile may have put it off."""
        if 0 < self._left <= age(now, self._since):
            self._since, self._left = now, self._ask(now)
        return self._left > 0

    def _is_done(self, sender: Sender, lane: Lane, found: int, now: int) -> bool:
        """See to what one link's turn has found. False: something is left to do about it."""
        if lane.columns[ANSWERS]:
            self._note(sender.peer, now)
        if found:
            self._set_right(sender, lane, found, now)
        return not found

    def _set_right(self, sender: Sender, lane: Lane, found: int, now: int) -> None:
        head, size, parts = lane.columns[[HEADER_LENGTH, BODY_LENGTH, PARTS]].tolist()
        if found & steady.ASIDE:
            header = lane.answer[:head].tobytes() if head <= len(lane.answer) else b""
            self._take(self._link.message(sender.peer, header, lane.body[:size], parts), now)
        if found & steady.UNSENT:
            sender.keep(lane.header[:head].tobytes(), lane.body[:size].tobytes())
        if found & steady.LAPPED_SOME:
            for row in lane.streams[lane.streams[:, ENDED] == LAPPED].tolist():
                self._publisher.lap(row[SHARD])
