"""The exchange of a core: links, what goes out, what comes in, one turn at a time between two breaths.

    link ── messages ──► receiver (life, number) ──► subscriber (whose, epoch, copy) ──► sink
    source ──► publisher (copies, changes) ──► sender (life, number, in flight) ──► link
    source ──► lanes (changes only, compiled) ──► link

A turn takes `TURN_NS` of CPU time, but for the piece that is in hand: on a crowded CPU the clock would end it after
each message, and a loop that is called for more at once never sleeps, and crowds it. It looks and reads first, so that
acknowledgements are young, and what it sends is always of the instant after the last breath.

Who could not read all, and had to wait for the CPU since (it neither rests nor sleeps then), reads longer by as much, four
times at most (`reading_ns`): else on a crowded CPU peers send more than is ever read, and each word of theirs is as late as the
queue is long: 209 ms were seen, where 150 are a death.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from replication import older, verify
from replication.frames import Frame, Refused, decode, none_refused
from replication.keys import Key
from replication.lanes import Lanes
from replication.link import Link, Message
from replication.protocol import ALIVE, CLOSED, SILENT, Comparison, Evidence, Fields, Heard, Lag, Peer, Settings, age
from replication.publisher import PHASES, Publisher
from replication.receiver import Receiver
from replication.sender import Sender
from replication.subscriber import Subscriber
from replication.tables import Sink, Source
from replication.verify import Verification

READ_NS, TURN_NS = 750_000, 1_500_000  # of a turn: until when messages are read, until when anything new is begun
LONGER_AT_MOST = 4  # times READ_NS, for who must catch up
LIFELESS_AT_MOST = 3000  # ticks without a life: then the socket is made anew, whatever its monitor says or has missed
HEARD_AT_MOST = 1024
TALKS_WITHIN, TWOFOLD_AFTER = 200, 2000  # ticks: who talks is heard so often, and two connections of one peer must so long
WAYS_AT_MOST = 8  # of a peer that are remembered

_ANSWERS_AT_ONCE = 32  # of a peer


class Exchange:
    """See `protocol.Exchange`. `clock`: nanoseconds, only to tell how long the longest turn took."""

    def __init__(
        self,
        source: Source,
        sink: Sink,
        me: Peer,
        key: Key,
        settings: Settings = Settings(),  # noqa: B008 - a tuple
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self.refused = none_refused()
        self.longest_turn_ns = self.turns = 0
        self.was_whole = True  # the last turn: not only changes were sent
        self._source, self._sink, self._settings, self._clock = source, sink, settings, clock
        self._link = Link(me, key, settings.cpus, self.refused)
        self._publisher = Publisher(source, settings)
        self._subscriber = Subscriber(sink)
        self._lanes = Lanes(source, self._publisher, self._link, settings, self._whole_next, self._take_aside, self._note_heard)
        self._senders: dict[str, Sender] = {}
        self._receivers: dict[str, Receiver] = {}
        self._seen: dict[str, int] = {}  # by peer: tick of the last frame
        self._closed: dict[str, int] = {}  # by peer: tick at which its kernel said that its process has ended
        self._ways: dict[str, dict[bytes, tuple[int, int]]] = {}  # by peer and connection: ticks of its first and last frame
        self._heard: list[Heard] = []
        self._verifications: dict[tuple[int, str], Verification] = {}
        self._until = self._now = 0
        self._behind = False  # the last whole turn did not read all
        self._read_at = 0, 0  # when that began: by the clock, and of this thread's CPU time, ns

    # --- peers ------------------------------------------------------------------------------------------------------------

    @property
    def endpoint(self) -> str:
        """Where peers connect to."""
        return self._link.endpoint

    def meet(self, peer: Peer, now: int) -> None:
        """Let a peer in and connect to it."""
        self._lanes.close()
        self._link.meet(peer, now)
        self._senders[peer.name] = Sender(peer.name, self._link, now, self._settings.ping)
        self._receivers[peer.name] = Receiver(peer.name, self._link, self.refused)

    def part(self, peer: str) -> None:
        """Forget a peer, and all streams to it and copies from it."""
        self._lanes.close()
        for stream in [stream for stream in self._publisher.all() if stream.sender.peer == peer]:
            self.stream(stream.shard, peer, False)
        self._subscriber.part(peer)
        self._link.part(peer)
        del self._senders[peer], self._receivers[peer]
        self._seen.pop(peer, None)
        self._ways.pop(peer, None)
        self._closed.pop(peer, None)

    def descriptors(self) -> list[int]:
        """To wait for while idle, at most until `due`."""
        return self._link.descriptors()

    def due(self, now: int) -> int:
        """Ticks that may pass before the next turn, if nothing comes: until changes are sent, or the next ping is; 0: none."""
        if self._link.has_news():
            return 0
        left = [sender.next_ping(now) for sender in self._senders.values()]
        owed = [receiver.next_acknowledgement(now) for receiver in self._receivers.values() if receiver.owes]
        left += [ticks for ticks in owed if ticks]  # one that is due was not taken: not asked for again each tick
        if not self._publisher.quiet():
            left.append(self._settings.batch - age(now, self._publisher.drained))
        return max(1, min(left, default=self._settings.ping))

    def close(self) -> None:
        """Let go of all connections."""
        self._lanes.close()
        self._link.close()

    # --- what the conductor asks for: see protocol.Exchange ----------------------------------------------------------------

    def tell(self, peer: str, kind: str, fields: Fields) -> bool:
        """See `protocol.Exchange`."""
        frame = Frame("told", fields={"t": kind, "f": fields})
        return peer in self._senders and self._senders[peer].put(frame, b"", self._now, self._now)

    def heard(self) -> list[Heard]:
        """See `protocol.Exchange`."""
        heard, self._heard = self._heard, []
        return heard

    def evidence(self, peer: str, now: int) -> Evidence:
        """See `protocol.Exchange`."""
        if peer in self._closed:
            return CLOSED
        if peer not in self._seen or age(now, self._seen[peer]) > self._settings.dead_after:
            return SILENT
        return ALIVE

    def stream(self, shard: int, peer: str, on: bool, everything: bool = False, snapshot: bool = True) -> None:
        """See `protocol.Exchange`."""
        self._lanes.close()
        self._publisher.stream(shard, self._senders[peer], on, everything, snapshot, self._now)

    def accept(self, shard: int, peer: str | None, epoch: int = 0, union: bool = False) -> None:
        """See `protocol.Exchange`."""
        self._subscriber.accept(shard, peer, epoch, union)

    def synced(self, shard: int, peer: str) -> bool:
        """See `protocol.Exchange`."""
        return self._publisher.synced(shard, peer, self._now)

    def is_wide(self, shard: int, peer: str) -> bool:
        """See `protocol.Exchange`."""
        return self._publisher.is_wide(shard, peer)

    def last_words(self, shard: int, peer: str) -> bool:
        """See `protocol.Exchange`."""
        told = self._publisher.last_words(shard, peer)
        if not told:
            self._lanes.close()
        return told

    def complete(self, shard: int, peer: str) -> bool:
        """Whether our copy of what the peer streams is whole, and its link misses nothing."""
        copy, receiver = self._subscriber.get(shard), self._receivers.get(peer)
        if copy is None or copy.peer != peer or receiver is None:
            return False
        return copy.is_whole and not receiver.broken

    def flushed(self, shard: int, peer: str) -> bool:
        """See `protocol.Exchange`."""
        return self._publisher.flushed(shard, peer)

    def lag(self, shard: int, peer: str) -> Lag:
        """See `protocol.Exchange`."""
        return self._publisher.lag(shard, peer, self._now)

    def resync(self, shard: int, peer: str) -> None:
        """See `protocol.Exchange`."""
        self._lanes.close()
        self._publisher.resync(shard, peer)
        copy = self._subscriber.get(shard)
        if copy is not None and copy.peer == peer and copy.series:
            self._receivers[peer].answer(Frame("resync", shard=shard, series=copy.series))

    def speaks_ipv6(self, peer: str) -> bool:
        """Whether a peer knows sessions of IPv6, as far as it has said which version it speaks."""
        return peer not in self._senders or self._senders[peer].version >= older.SINCE_IPV6

    def refused_of(self, shard: int) -> int:
        """Records that our copy of a shard lacks, since they were refused."""
        return self._subscriber.refused_of(shard)

    def verify(self, shard: int, peer: str) -> None:
        """Begin to compare our copy with the peer's; ValueError where we do not stream it there, in sync."""
        stream = self._publisher.get(shard, peer)
        if stream is None or not self.synced(shard, peer):
            raise ValueError(f"shard {shard} has no copy in sync at {peer}; `krononat shard list` tells who has one")
        self._lanes.close()
        classes = older.classes(stream.sender.version)
        self._verifications[shard, peer] = Verification(shard, stream.life, self._source, self._now, classes)

    def compared(self, shard: int, peer: str) -> Comparison | None:
        """How far the last `verify` is; None where there was none."""
        found = self._verifications.get((shard, peer))
        return found.result() if found else None

    # --- a turn -----------------------------------------------------------------------------------------------------------

    @property
    def is_asking(self) -> bool:
        """Whether it is being found out if a peer's process has ended."""
        return self._link.is_asking

    def is_due(self, now: int) -> bool:
        """Whether a core that has packets to forward should take a turn: a peer waits for an answer, or what changed waits.

        A turn costs packets 0.1 ms, and twice that where it is not all compiled: nothing of it is in the caches.
        """
        since = age(now, self._now)
        return since >= self._settings.batch or (since > 1 and self._subscriber.takes() and self._link.has_frames())

    def turn(self, now: int) -> bool:
        """See `protocol.Exchange`."""
        begun, spent = self._clock(), time.thread_time_ns()
        self._now = now
        self._publisher.begin_turn()
        self.was_whole = not self._lanes.turn(now)
        more = self.was_whole and self._whole_turn(now, spent)
        self.turns += 1
        self.longest_turn_ns = max(self.longest_turn_ns, self._clock() - begun)
        return more

    def _whole_turn(self, now: int, spent: int) -> bool:
        """All that a turn may consist of; then the lanes are open again, where changes are all that is to be sent.

        `spent`: CPU time of this thread when the turn began, ns.
        """
        self._lanes.close()  # first: what they point to may go, and if anything fails here they must not be used
        more, reading = False, self._reading_ns(spent)
        self._until = spent + reading
        if self._link.listen():
            self._look(now)  # first: who has come back since a long turn ago is not to be called dead by what it says now
            more = self._read(now)
        self._behind = more
        self._until = spent + reading - READ_NS + TURN_NS
        more |= self._subscriber.turn(now, self._spare, self._receivers)
        for peer, receiver in self._receivers.items():
            if receiver.acknowledge(now, self._subscriber.installed):
                self._senders[peer].said(now)
        for sender in self._senders.values():
            sender.turn(now, self._publisher.told_in_pings)
            if age(now, sender.lifeless) > LIFELESS_AT_MOST:
                sender.lifeless = now
                self._link.renew(sender.peer, now)
        more |= self._publisher.turn(now, self._spare)
        if self._verifications:
            self._verify(now)
        self._open_lanes(more, now)
        return more

    def _open_lanes(self, more: bool, now: int) -> None:
        """Until the next ping, piece of liveness or acknowledgement is due; where there is more to do, that is at once."""
        if not all(verification.done for verification in self._verifications.values()):
            return
        self._lanes.open(self._senders.values(), 0 if more else self._whole_next(now), now)

    def _whole_next(self, now: int) -> int:
        """Ticks until something is due that is not done in lanes; 0: it is."""
        left = [sender.next_ping(now) for sender in self._senders.values()]
        left += [receiver.next_acknowledgement(now) for receiver in self._receivers.values() if receiver.owes]
        return min([*left, self._publisher.swept_next(now)])

    def _reading_ns(self, spent: int) -> int:
        """How long this turn reads, on the CPU; the next one is measured from here."""
        (clock, before), self._read_at = self._read_at, (time.monotonic_ns(), spent)
        return reading_ns(self._read_at[0] - clock, spent - before) if self._behind else READ_NS

    def _spare(self) -> bool:
        return time.thread_time_ns() < self._until

    def _read(self, now: int) -> bool:
        """Messages of peers. True: time ran out before there was none left."""
        while (message := self._link.fetch()) is not None:
            self._try(self._take, message, now)
            if not self._spare():
                return self._link.has_frames()
        return False

    def _look(self, now: int) -> None:
        """Answers, and what happened to connections."""
        for peer in self._senders:
            for _ in range(_ANSWERS_AT_ONCE):
                message = self._link.fetch_answer(peer)
                if message is None:
                    break
                self._try(self._take_answer, message, now)
        changes = self._link.look(now)
        for peer in changes.begun:
            self._senders[peer].connected(now)
        for peer in changes.ended:
            self._senders[peer].over()
        for peer in changes.dead:
            self._closed[peer] = now

    def _try(self, take: Callable[[Message, Frame, int], None], message: Message, now: int) -> None:
        """Take a message; whatever is wrong with it is counted."""
        try:
            frame = decode(message.header, message.body.data)
            self._note_life(message.peer, message.way, now)
            take(message, frame, now)
        except Refused as refused:
            self.refused[refused.reason] += 1

    def _note_life(self, peer: str, way: bytes, now: int) -> None:
        """A frame shows that its peer lives; not one that was still on its way when the connection ended."""
        self._note_heard(peer, now)
        if way:
            self._note_way(peer, way, now)
        if peer in self._closed:
            receiver, late = self._receivers.get(peer), age(now, self._closed[peer]) > self._settings.late
            if late or (way and receiver is not None and way != receiver.way):  # another process; or we had misjudged this one
                del self._closed[peer]

    def _note_heard(self, peer: str, now: int) -> None:
        self._seen[peer] = now

    def _note_way(self, peer: str, way: bytes, now: int) -> None:
        ways = self._ways.setdefault(peer, {})
        ways[way] = ways.get(way, (now, now))[0], now
        if len(ways) > WAYS_AT_MOST:
            del ways[min(ways, key=lambda each: ways[each][1])]

    def is_twofold(self, peer: str, now: int) -> bool:
        """Whether two processes have this peer's name and key: two connections have gone on talking side by side for long.

        Of a peer that has begun anew, the connection before is silent.
        """
        talking = [
            first
            for first, last in self._ways.get(peer, {}).values()
            if age(now, last) < TALKS_WITHIN and age(now, first) > TWOFOLD_AFTER
        ]
        return len(talking) > 1

    # --- what comes in ----------------------------------------------------------------------------------------------------

    def _take(self, message: Message, frame: Frame, now: int) -> None:
        """What peers send of their own accord."""
        receiver = self._receivers.get(message.peer)
        if receiver is None:
            raise Refused("foreign")
        if frame.kind == "open":
            receiver.open(frame, message.way)
        elif frame.kind == "ping" and frame.life == 0:
            return  # it has no life yet; that it is there was noted
        elif frame.kind == "ping" or frame.numbered:
            if receiver.admit(frame, message.way, len(message.body), now):
                self._subscriber.began(message.peer)
            self._take_numbered(receiver, message, frame, now)
        else:
            raise Refused("malformed")

    def _take_numbered(self, receiver: Receiver, message: Message, frame: Frame, now: int) -> None:
        if frame.kind == "ping":
            if not receiver.broken:
                self._subscriber.missing(receiver, frame.fields)
        elif frame.kind == "updates":
            self._subscriber.apply_parts(message.peer, frame, message.body, now, self.refused)
        elif frame.kind == "told":
            self._hear(_told(message.peer, frame.fields))
        else:
            copy = self._subscriber.copy_for(message.peer, frame)
            if frame.kind == "compare":
                fields = verify.answer(self._sink, frame, message.body, self._source.extent)
                receiver.answer(Frame("compared", shard=frame.shard, fields=fields))
            else:
                self._subscriber.apply(copy, frame, message.body, now)

    def _take_answer(self, message: Message, frame: Frame, now: int) -> None:
        """What peers say to what we sent."""
        sender = self._senders[message.peer]
        if frame.kind == "opened":
            sender.opened(frame, now)
            if sender.life == frame.life:
                self._closed.pop(message.peer, None)  # whoever begins a life lives; what we tell him next he may act on
        elif frame.kind == "broken":
            sender.missed(frame)
        elif not sender.life or frame.life != sender.life:
            raise Refused("stale")
        elif frame.kind == "ack":
            self._take_ack(sender, frame, now)
        elif frame.kind == "resync":
            self._publisher.asked(sender, frame.shard, frame.series)
        elif frame.kind == "compared" and (frame.shard, message.peer) in self._verifications:
            self._verifications[frame.shard, message.peer].answered(frame.fields, now)
        else:
            raise Refused("malformed")

    def _take_aside(self, message: Message, now: int) -> None:
        """An answer that compiled code has received and cannot read."""
        self._try(self._take_answer, message, now)

    def _take_ack(self, sender: Sender, frame: Frame, now: int) -> None:
        installed = frame.fields.get("i", {})
        if not isinstance(installed, dict):
            raise Refused("malformed")
        sender.acknowledge(frame, now)
        for shard, series in installed.items():
            self._publisher.installed(sender, shard, series)
        sender.trust()

    def _hear(self, heard: Heard) -> None:
        if len(self._heard) >= HEARD_AT_MOST:
            self.refused["deaf"] += 1
        else:
            self._heard.append(heard)

    # --- comparing --------------------------------------------------------------------------------------------------------

    def _verify(self, now: int) -> None:
        """Ask one question, if all changes of the shard have just been sent."""
        for (shard, peer), verification in self._verifications.items():
            if verification.done:
                continue
            stream = self._publisher.get(shard, peer)
            if stream is None or stream.life != verification.life or stream.sender.life != verification.life:
                verification.give_up("the link to the peer began anew meanwhile; ask again")
            elif self._publisher.flushed(shard, peer) and stream.sender.ready:
                self._publisher.ask(stream, verification.question(now), now)

    # --- what is told -----------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """What people and metrics want to know; plain values."""
        return {
            "endpoint": self.endpoint,
            "refused": dict(self.refused),
            "refused_records": self._subscriber.refused_records,
            "records_applied": self._subscriber.records,
            "eagain": self._link.again,
            "lapped": self._publisher.lapped,
            "turns": self.turns,
            "longest_turn_us": self.longest_turn_ns // 1000,
            "links": {peer: self._link_status(peer) for peer in self._senders},
            "streams": [self._stream_status(shard, peer) for shard, peer in self._publisher.names()],
        }

    def _link_status(self, peer: str) -> dict[str, Any]:
        sender, receiver = self._senders[peer], self._receivers[peer]
        frames, records, size = sender.sent
        return {
            "evidence": self.evidence(peer, self._now),
            "open": bool(sender.life),
            "lives": sender.lives,
            "stale": sender.stale,
            "broken": sender.broken,
            "frames_sent": frames,
            "records_sent": records,
            "bytes_sent": size,
            "lag_ms": {f"p{part}": sender.percentile(part / 100) for part in (50, 99, 100)},
            "gaps": receiver.gaps,
            "frames_received": receiver.frames,
            "bytes_received": receiver.bytes,
        }

    def _stream_status(self, shard: int, peer: str) -> dict[str, Any]:
        stream = self._publisher.get(shard, peer)
        assert stream is not None
        return {
            "shard": shard,
            "peer": peer,
            "phase": PHASES[stream.phase],
            "in_sync": self.synced(shard, peer),
            "resyncs": stream.resyncs,
            "lag": self.lag(shard, peer)._asdict(),
        }


def reading_ns(passed: int, used: int) -> int:
    """How long who is behind reads, where so much time has passed, and so much of it on the CPU, since it read last; all ns."""
    return min(READ_NS * passed // max(used, 1), LONGER_AT_MOST * READ_NS) if passed > used else READ_NS


def _told(peer: str, fields: Fields) -> Heard:
    kind, told = fields.get("t"), fields.get("f")
    if not isinstance(kind, str) or not isinstance(told, dict) or not all(isinstance(key, str) for key in told):
        raise Refused("malformed")
    return Heard(peer, kind, told)
