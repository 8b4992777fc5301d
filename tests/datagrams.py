"""Datagrams that come in fragments, as the model sees them: lists of the bytes that have come, and what became of the first."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.frames import Malformed
from tests.outcome import Outcome

HELD, PENDING, KEPT = 2000, 5000, 30_000  # ticks: waiting for the first, for what becomes of it, for the others
EACH, PARTS_EACH, PARTS_AT_MOST, PIECES_AT_MOST = 256, 64, 256, 128


class Part(NamedTuple):
    """A fragment: of which datagram, whose of ours that is, and which bytes of it."""

    key: Hashable  # side and what all of its fragments say
    ours: Hashable
    offset: int
    size: int
    more: bool


class Service(NamedTuple):
    """What is done with fragments of one kind of packet."""

    check: Callable[[], None]  # raises Malformed where nobody can have sent it
    begin: Callable[[], Any]  # a first one with its transport header; raises Malformed
    decide: Callable[[Any], Outcome]  # as if it were a packet
    follow: Callable[[Outcome], Outcome]  # one behind the first, of which this is known


@dataclass
class Datagram:
    """One of them."""

    key: Hashable
    ours: Hashable
    expiry: int
    pieces: list[tuple[int, int]] = field(default_factory=list)  # first and last + 1 byte of each fragment
    end: int = 0
    held: int = 0
    first: Outcome | None = None  # None: it has not come, or waits itself
    refused: bool = False
    identity: int | None = None

    def is_known_as(self, identification: int) -> bool:
        """Whether all of its fragments have left with this identification; the first to leave says it."""
        self.identity = identification if self.identity is None else self.identity
        return self.identity == identification


class Datagrams:
    """All that are under way."""

    def __init__(self) -> None:
        self.known: dict[Hashable, Datagram] = {}
        self.waiting: dict[Hashable, int] = {}  # fragments, by who of ours

    def serve(self, part: Part, now: int, until: int, service: Service) -> Outcome:
        """What becomes of a fragment. `until`: it comes out of waiting."""
        try:
            datagram = self._meet(part, now, until, service.check)
            if part.offset:
                return self._follow(datagram, now, until, service.follow)
            first = self._lead(datagram, now, service.begin)
        except Malformed as wrong:
            return Outcome(wrong.verdict)
        outcome = service.decide(first)._replace(datagram=datagram)
        self.learn(datagram, outcome, now)
        return outcome

    def _meet(self, part: Part, now: int, until: int, check: Callable[[], None]) -> Datagram:
        for old in [old for old in self.known.values() if old.expiry <= now]:
            self._end(old)
        datagram = self.known.get(part.key)
        if until and part.offset:
            self.waiting[part.ours] -= 1
            if datagram is None:
                raise Malformed("fragment_orphan")
            datagram.held = max(datagram.held - 1, 0)
        check()
        datagram = datagram or self._begin(part, now)
        self._cover(datagram, part, again=until > 0)
        return datagram

    def _begin(self, part: Part, now: int) -> Datagram:
        if sum(each.ours == part.ours for each in self.known.values()) >= EACH:
            raise NotImplementedError("the model does not say which of an address's own datagrams makes room")
        self.known[part.key] = Datagram(part.key, part.ours, now + HELD)
        return self.known[part.key]

    def _cover(self, datagram: Datagram, part: Part, again: bool) -> None:
        first, last = part.offset, part.offset + (part.size + 7) // 8 * 8
        end = 0 if part.more else part.offset + part.size
        contradicts = datagram.end and (part.offset + part.size >= datagram.end if part.more else end != datagram.end)
        if (first, last) in datagram.pieces and not contradicts and (part.more or datagram.end):
            if again:
                return
            raise Malformed("fragment_duplicate")
        overlaps = any(a < last and first < b for a, b in datagram.pieces)
        beyond = end and any(b > last for _, b in datagram.pieces)
        if contradicts or overlaps or beyond:
            datagram.refused = True
            raise Malformed("fragment_overlap")
        if len(datagram.pieces) == PIECES_AT_MOST:
            raise Malformed("fragment_limit")
        datagram.pieces.append((first, last))
        datagram.end = datagram.end or end

    def _lead(self, datagram: Datagram, now: int, begin: Callable[[], Any]) -> Any:
        if datagram.refused:
            raise Malformed("fragment_refused")
        try:
            first = begin()
        except Malformed:
            datagram.refused = True
            raise
        datagram.expiry = now + PENDING
        return first

    def learn(self, datagram: Datagram, outcome: Outcome, now: int) -> None:
        """What became of the first fragment."""
        if outcome.verdict != "held":
            datagram.first, datagram.expiry = outcome, now + KEPT
            self._end_if_whole(datagram)

    def _follow(self, datagram: Datagram, now: int, until: int, follow: Callable[[Outcome], Outcome]) -> Outcome:
        first = datagram.first
        if first is None and not datagram.refused:
            self._hold(datagram, now, until)
            return Outcome("held", patience=HELD, datagram=datagram, follows=True)
        goes_on = first is not None and first.packet is not None and not datagram.refused
        outcome = follow(first) if first and goes_on else Outcome("fragment_refused")
        self._end_if_whole(datagram)
        return outcome._replace(datagram=datagram)

    def _hold(self, datagram: Datagram, now: int, until: int) -> None:
        """A fragment waits for the first, for the first time or once more."""
        ours, waits_itself = datagram.ours, datagram.pieces and any(first == 0 for first, _ in datagram.pieces)
        if not until and (sum(self.waiting.values()) >= PARTS_AT_MOST or self.waiting.get(ours, 0) >= PARTS_EACH):
            raise Malformed("fragment_limit")
        if until and now >= until and not waits_itself:
            raise Malformed("fragment_orphan")
        self.waiting[ours] = self.waiting.get(ours, 0) + 1
        datagram.held += 1

    def _end_if_whole(self, datagram: Datagram) -> None:
        """With its last fragment a datagram is forgotten."""
        got = sum(last - first for first, last in datagram.pieces)
        if datagram.end and (datagram.end + 7) // 8 * 8 == got and not datagram.held and (datagram.first or datagram.refused):
            self._end(datagram)

    def _end(self, datagram: Datagram) -> None:
        if self.known.get(datagram.key) is datagram:
            del self.known[datagram.key]
