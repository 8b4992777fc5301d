"""The way in from one peer: which life of its link is meant, which number comes next, what is to be acknowledged.

The peer asks to open a life; we answer with a random number, which its frames then carry, by the connection that asked. The
life before goes on until the first such frame: whoever only repeats what was once sent never sends one. A number that never
comes breaks the life: nothing of it is applied any more, and the peer is told until it begins another.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

from replication.frames import UNDERSTOOD, Counts, Frame, Refused, encode
from replication.link import Link
from replication.protocol import Fields, age

ACK_EVERY = 2  # ticks
COMPLAIN_EVERY = 50
_LATE_AT_MOST = 1024  # numbers that are remembered as missing


class Receiver:
    """One peer's. Times are ticks."""

    def __init__(self, peer: str, link: Link, refused: Counts) -> None:
        self.peer = peer
        self.life = 0
        self.way = b""
        self.broken = False
        self.gaps = 0
        self.frames, self.bytes = 0, 0  # taken ever
        self._link, self._refused = link, refused
        self._next = 1
        self._version = UNDERSTOOD[0]
        self._offered: tuple[int, bytes, int] | None = None  # life, way, version
        self._missing: set[int] = set()
        self._highest = 0
        self._complained = 0
        self._owed = False
        self._acked = self._got = 0

    # --- life -------------------------------------------------------------------------------------------------------------

    def open(self, frame: Frame, way: bytes) -> None:
        """Offer a life, in the newest version that both understand."""
        told = frame.fields.get("v")
        common = [version for version in UNDERSTOOD if isinstance(told, list) and version in told]
        if not common:
            raise Refused("version")
        if self._offered is None or self._offered[1] != way:
            self._offered = secrets.randbits(63) | 1, way, common[0]
        life, _, version = self._offered
        self._link.answer(way, encode(Frame("opened", life, version=version)))

    def admit(self, frame: Frame, way: bytes, size: int, now: int) -> bool:
        """Look at life and number; `Refused` where they are not what comes next. True: a life has begun with this frame."""
        begins = self._offered is not None and (frame.life, way) == self._offered[:2]
        if begins:
            self._begin()
        elif frame.life != self.life or way != self.way or not self.life:
            raise Refused("stale")
        if frame.kind == "ping":
            self._expect(frame.number + 1, now)
        else:
            self._take(frame.number, now)
            self.frames += 1
            self.bytes += size
        return begins

    def _begin(self) -> None:
        assert self._offered is not None
        self.life, self.way, self._version = self._offered
        self._offered = None
        self._next = 1
        self.broken = False
        self._missing.clear()

    # --- numbers ----------------------------------------------------------------------------------------------------------

    def _take(self, number: int, now: int) -> None:
        if self.broken:
            self._late(number, now)
        if number < self._next:
            raise Refused("duplicated")
        if number > self._next:
            self._highest = number
            self._expect(number, now)
            raise Refused("after_gap")
        self._next += 1
        self._owed = True
        self._got = now

    def _expect(self, number: int, now: int) -> None:
        """The next number should be this one; if it is not, the life is broken."""
        if self.broken:
            self.complain(now)
        elif number > self._next:
            self.broken = True
            self.gaps += 1
            self._refused["lost"] += number - self._next
            self._missing.update(range(self._next, min(number, self._next + _LATE_AT_MOST)))
            self._highest = max(self._highest, number - 1)
            self._complained = age(now, COMPLAIN_EVERY)
            self.complain(now)

    def _late(self, number: int, now: int) -> None:
        """Say what a frame of a broken life is: nothing of it is taken."""
        self.complain(now)
        if number in self._missing:
            self._missing.discard(number)
            self._refused["lost"] -= 1
            raise Refused("reordered")
        if number <= self._highest:
            raise Refused("duplicated")
        self._refused["lost"] += number - self._highest - 1
        self._highest = number
        raise Refused("after_gap")

    def complain(self, now: int) -> None:
        """Tell the peer that its life is broken, now and then."""
        if age(now, self._complained) >= COMPLAIN_EVERY:
            self._complained = now
            self._link.answer(self.way, encode(Frame("broken", self.life, version=self._version)))

    # --- answers ----------------------------------------------------------------------------------------------------------

    @property
    def owes(self) -> bool:
        """Whether an acknowledgement is to be sent."""
        return self._owed and bool(self.life) and not self.broken

    def owe(self) -> None:
        """What the next acknowledgement tells has changed."""
        self._owed = True

    def next_acknowledgement(self, now: int) -> int:
        """Ticks until one is due, where one is owed; 0: it is."""
        return max(0, ACK_EVERY - age(now, self._acked))

    def acknowledge(self, now: int, installed: Callable[[str], dict[int, int]]) -> bool:
        """Tell up to which number all was applied, and the copies that are here to their end: series by shard.

        Whether it was told.
        """
        if not self.owes or self.next_acknowledgement(now):
            return False
        fields: Fields = {"w": age(now, self._got), "i": installed(self.peer)}
        if not self.answer(Frame("ack", self.life, self._next - 1, fields=fields)):
            return False
        self._owed, self._acked = False, now
        return True

    def answer(self, frame: Frame) -> bool:
        """Send an answer of this life."""
        return self._link.answer(self.way, encode(frame._replace(life=self.life, version=self._version)))
