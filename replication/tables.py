"""What the exchange knows of a core's rows: `Source` gives what is to be sent, `Sink` takes what has come.

Rows pass as flat bytes in the layout of `shards.records`; how many there are is told beside them. What a source gives is a view
of its own buffer, valid until it is asked again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from shards.state import MAPPING_0, MAPPING_1, SESSION6_0, SESSION6_1, SESSION_0, SESSION_1, Array

MAPPINGS, SESSIONS = (MAPPING_0, MAPPING_1), (SESSION_0, SESSION_1, SESSION6_0, SESSION6_1)  # classes
ORDER = (*MAPPINGS, *SESSIONS)  # of a snapshot: a session needs its mapping


class Part(NamedTuple):
    """What ended and changed of a shard since the last time."""

    shard: int
    counts: tuple[int, ...]  # of tombstones, mappings, sessions
    rows: list[Array]  # of these, those that there are, in that order
    more: bool  # there was no room for all
    lapped: bool  # tombstones were overwritten before they were read: the copies must begin anew


class Piece(NamedTuple):
    """A piece of a walk; `row` is where to go on, -1 when that was all."""

    rows: Array
    row: int


class Source(Protocol):
    """The rows of this core. `now`: ticks."""

    def epoch(self, shard: int) -> int:
        """The shard's epoch now."""

    def mark(self, shard: int) -> None:
        """Rows of the shard that ended until now are of no interest."""

    def clean(self, shard: int, cursor: int) -> int:
        """Let a piece of the shard's rows have changed nothing: a snapshot that begins when all is clean tells all.

        `cursor`: 0 at first; where to go on, -1 when that was all.
        """

    def quiet(self, shard: int) -> bool:
        """Whether a harvest would give nothing; never true where it would give something, and quick."""

    def harvest(self, wanted: Sequence[tuple[int, bool]], now: int) -> list[Part]:
        """What ended and changed of these shards since the last call, and is unchanged from now on; of each one instant's.

        Of each shard: half-open and young sessions, too? Shards of which there is nothing are left out. All parts together
        fit into one frame.
        """

    def unsent(self, shard: int) -> int:
        """How many rows have changed or ended, at most, and were not taken yet."""

    def ripen(self, shard: int, now: int) -> None:
        """Look at a piece of the sessions: those that have become old enough to travel have changed."""

    def widen(self, shard: int, klass: int, row: int, now: int) -> int:
        """Let those of a piece of the sessions of a class, from `row` on, that were not sent yet have changed.

        Where to go on, -1 when that was all.
        """

    def living(self, shard: int, klass: int, row: int, everything: bool, now: int) -> Piece:
        """Living rows of a class from `row` on."""

    def holds(self, shard: int, cursor: int, now: int) -> Piece:
        """Ports that rest after use, with the age of that."""

    def extent(self, shard: int, klass: int) -> int:
        """How many row numbers the class spans."""

    def refreshed(self, shard: int, klass: int, first: int, since: int, now: int) -> Array:
        """A bit for each of the next BITMAP_ROWS rows: it lives, and a packet was seen since then."""

    def compared(self, shard: int, klass: int, first: int, key: tuple[int, int]) -> tuple[Array, Array]:
        """Digests (uint64, 0: none lives) of COMPARED_ROWS rows, and a byte each: 1 where it was not sent as it is."""


class Sink(Protocol):
    """The replica of this core. Each `apply` returns how many it took; what cannot be is refused, and changes nothing."""

    def begin(self, shard: int) -> None:
        """A snapshot begins: nothing was seen yet."""

    def end_unseen(self, shard: int, now: int) -> bool:
        """End some of the rows that were not seen since `begin`. True: there are no more."""

    def finish(self, shard: int) -> None:
        """The snapshot is over, or given up."""

    def apply_ended(self, shard: int, rows: Array, now: int) -> int:
        """Tombstones."""

    def apply_mappings(self, shard: int, rows: Array, now: int) -> int:
        """Mappings, new or changed."""

    def apply_sessions(self, shard: int, rows: Array, now: int) -> int:
        """Sessions, new or changed."""

    def apply_holds(self, shard: int, rows: Array, now: int) -> int:
        """Ports that rest."""

    def refresh(self, shard: int, klass: int, first: int, bits: Array, now: int) -> None:
        """These rows were seen to live."""

    def digests(self, shard: int, klass: int, first: int, key: tuple[int, int]) -> Array:
        """Digests of COMPARED_ROWS rows of this copy."""


BITMAP_ROWS = 8192
COMPARED_ROWS = 4096
