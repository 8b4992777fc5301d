"""Datagrams that come in fragments, as the model sees them: lists of the bytes that have come, and what became of the first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tests.admission import beginning
from tests.frames import TCP, Malformed, Packet
from tests.outcome import Outcome

Key = tuple[str, bool, int, int, int, int]  # side, second half of a hairpin, source, destination, protocol, identification

HELD, PENDING, KEPT = 2000, 5000, 30_000  # ticks: waiting for the first, for what becomes of it, for the others
EACH, PARTS_EACH, PARTS_AT_MOST, PIECES_AT_MOST = 256, 64, 256, 128


@dataclass
class Datagram:
    """One of them."""

    key: Key
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

    @property
    def ours(self) -> int:
        """The address of ours that it is from, or for."""
        return self.key[2] if self.key[0] == "inside" else self.key[3]


class Datagrams:
    """All that are under way."""

    def __init__(self) -> None:
        self.known: dict[Key, Datagram] = {}
        self.waiting: dict[int, int] = {}  # fragments, by address of ours

    def meet(self, key: Key, packet: Packet, now: int, until: int, plausible: Callable[[], None]) -> Datagram:
        """The datagram that a fragment is of; raises `Malformed` where it cannot go on. `until`: it comes out of waiting."""
        for old in [old for old in self.known.values() if old.expiry <= now]:
            self._end(old)
        offset, size = 8 * (packet.fragment & 0x1FFF), len(packet.payload)
        datagram = self.known.get(key)
        if until and offset:
            self.waiting[_ours(key)] -= 1
            if datagram is None:
                raise Malformed("fragment_orphan")
            datagram.held = max(datagram.held - 1, 0)
        _sound(packet, offset, size)
        plausible()
        datagram = datagram or self._begin(key, now)
        self._cover(datagram, offset, size, bool(packet.fragment & 0x2000), again=until > 0)
        return datagram

    def _begin(self, key: Key, now: int) -> Datagram:
        if sum(each.ours == _ours(key) for each in self.known.values()) >= EACH:
            raise NotImplementedError("the model does not say which of an address's own datagrams makes room")
        self.known[key] = Datagram(key, now + HELD)
        return self.known[key]

    def _cover(self, datagram: Datagram, offset: int, size: int, more: bool, again: bool) -> None:
        first, last = offset, offset + (size + 7) // 8 * 8
        end = 0 if more else offset + size
        contradicts = datagram.end and (offset + size > datagram.end or (end and end != datagram.end))
        if (first, last) in datagram.pieces and not contradicts:
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

    def lead(self, datagram: Datagram, packet: Packet, now: int) -> Packet:
        """The first fragment with its transport header."""
        if datagram.refused:
            raise Malformed("fragment_refused")
        try:
            read = beginning(packet)
        except Malformed:
            datagram.refused = True
            raise
        datagram.expiry = now + PENDING
        return read

    def learn(self, datagram: Datagram, outcome: Outcome, now: int) -> None:
        """What became of the first fragment."""
        if outcome.verdict != "held":
            datagram.first, datagram.expiry = outcome, now + KEPT
            self.end_if_whole(datagram)

    def hold(self, datagram: Datagram, now: int, until: int) -> None:
        """A fragment waits for the first, for the first time or once more."""
        ours, waits_itself = datagram.ours, datagram.pieces and any(first == 0 for first, _ in datagram.pieces)
        if not until and (sum(self.waiting.values()) >= PARTS_AT_MOST or self.waiting.get(ours, 0) >= PARTS_EACH):
            raise Malformed("fragment_limit")
        if until and now >= until and not waits_itself:
            raise Malformed("fragment_orphan")
        self.waiting[ours] = self.waiting.get(ours, 0) + 1
        datagram.held += 1

    def end_if_whole(self, datagram: Datagram) -> None:
        """With its last fragment a datagram is forgotten."""
        got = sum(last - first for first, last in datagram.pieces)
        if datagram.end and (datagram.end + 7) // 8 * 8 == got and not datagram.held and (datagram.first or datagram.refused):
            self._end(datagram)

    def _end(self, datagram: Datagram) -> None:
        if self.known.get(datagram.key) is datagram:
            del self.known[datagram.key]


def _ours(key: Key) -> int:
    return key[2] if key[0] == "inside" else key[3]


def _sound(packet: Packet, offset: int, size: int) -> None:
    """RFC 791; RFC 1858 for an offset inside a TCP header."""
    if not size or (packet.fragment & 0x2000 and size % 8) or offset + size > 65535 - 20:
        raise Malformed("bad_fragment")
    if packet.protocol == TCP and 0 < offset < 20:
        raise Malformed("tiny_fragment")
