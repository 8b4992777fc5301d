"""What the exchange (mechanism) and the conductor (policy) agree on: who a peer is, what is known of it, what may be asked.

The exchange moves rows and messages and notices what is wrong; it decides nothing. The conductor decides who is the authority
of a shard and says so here: whose rows are applied, who is sent ours, what the peers are told.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol

Evidence = Literal["alive", "silent", "closed"]

ALIVE: Evidence = "alive"  # heard within `dead_after`
SILENT: Evidence = "silent"  # nothing heard for longer: dead, frozen, or cut off; nobody can tell which
CLOSED: Evidence = "closed"  # its kernel closed the connection while it was still talking: the process has ended

Fields = dict[str, Any]  # of a message; what msgpack has: whole numbers, text, bytes, lists, maps


def age(now: int, then: int) -> int:
    """Ticks from `then` to `now`; they wrap."""
    return (now - then) & 0xFFFFFFFF


class Peer(NamedTuple):
    """A core as the map has it."""

    name: str  # SERVER/CORE
    endpoint: str  # tcp://ADDRESS:PORT
    public_key: bytes  # CURVE, 40 characters of Z85
    number: int = 0  # its row of PEERS


class Lag(NamedTuple):
    """How far a peer is behind: what was sent and is not acknowledged, and how old the oldest change among it is."""

    records: int
    bytes: int
    seconds: float


class Settings(NamedTuple):
    """Times in ticks (ms)."""

    dead_after: int = 150  # silence that makes a peer SILENT
    threshold: int = 0  # a session younger than this does not travel
    batch: int = 4  # changes are collected for this long
    holds: bool = True  # copies know which ports rest after use
    cpus: tuple[int, ...] = ()  # where ZeroMQ's own thread may run; none: wherever it likes

    @property
    def ping(self) -> int:
        """Ticks after which a peer hears from us again: four may be lost or late before we are SILENT.

        By a ping, unless it was sent changes or an acknowledgement meanwhile (`sender.Sender.next_ping`).

        No more than 80, however long that takes: other times count on hearing of a living peer sooner.
        """
        return max(1, min(80, self.dead_after // 5))

    @property
    def tell(self) -> int:
        """Ticks after which it hears all that we are to each shard again, in case that it was lost.

        No more than 100: twice within the 300 after which the conductor goes on without an answer (`Times.resume_after`, and
        `lapse_after` of `roles.Facts`).
        """
        return max(1, min(100, self.dead_after // 3))

    @property
    def late(self) -> int:
        """Ticks in which all is read that was on its way when a process ended; the living are heard sooner again."""
        return max(45, self.ping * 3 // 2)


class Heard(NamedTuple):
    """A message of a peer's conductor."""

    peer: str
    kind: str
    fields: Fields


class Comparison(NamedTuple):
    """What `verify` has found so far."""

    done: bool
    rows: int  # looked at
    differing: list[tuple[int, int]]  # (class, row), each seen twice
    error: str  # why it ended early; empty where it did not


class Exchange(Protocol):
    """What the conductor has of it. `now`: ticks."""

    def turn(self, now: int) -> bool:
        """Receive, apply, acknowledge, drain, send; bounded. True: there is more to do at once."""

    def tell(self, peer: str, kind: str, fields: Fields) -> bool:
        """Send a message, in order with the rows that go the same way. False: there is no link now."""

    def heard(self) -> list[Heard]:
        """Messages since the last call, in the order of each link."""

    def evidence(self, peer: str, now: int) -> Evidence:
        """What is known about the peer's being alive."""

    def stream(self, shard: int, peer: str, on: bool, everything: bool = False, snapshot: bool = True) -> None:
        """Send the shard to the peer, or stop. `everything`: half-open and young sessions too.

        `snapshot=False`: the peer has our rows already (it sent them to us, in order, up to this instant).
        """

    def accept(self, shard: int, peer: str | None, epoch: int = 0, union: bool = False) -> None:
        """Apply what this peer sends of the shard at `epoch` or later; anybody else's is counted and dropped.

        `union`: rows that its snapshot does not have stay (it contributes; it is not the authority).
        """

    def synced(self, shard: int, peer: str) -> bool:
        """Whether the peer holds what we have but for a small lag: it acknowledged the end of the snapshot."""

    def is_wide(self, shard: int, peer: str) -> bool:
        """Whether the peer is sent everything, and nothing is to be looked for that it was not sent before it was."""

    def last_words(self, shard: int, peer: str) -> bool:
        """Tell the peer, which has the shard now, who was used here until now; whether it was told, or cannot be."""

    def complete(self, shard: int, peer: str) -> bool:
        """Whether our copy of what the peer streams is whole, and its link misses nothing."""

    def flushed(self, shard: int, peer: str) -> bool:
        """Whether nothing is left to be sent: no row changed since the last turn, all was handed to the link."""

    def lag(self, shard: int, peer: str) -> Lag:
        """How far the peer is behind with the shard."""

    def resync(self, shard: int, peer: str) -> None:
        """Have a copy made anew: of what the peer streams to us, and of what we stream to it."""
