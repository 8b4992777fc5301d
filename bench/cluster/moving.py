"""One move of a shard, with the steering that goes with it, watched by a numbered stream."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from bench.cluster.scene import Scene
from bench.cluster.stream import Became, became
from krononat import client
from krononat.cli import moves
from krononat.lab.steering import INBOUND, OUTBOUND, Hand

_LOOK_S, _PATIENCE_S = 0.002, 120.0
_BETWEEN_S = 0.1  # the directions move apart, so for a while each core has one of them
_AFTER_S = 0.1
_TAKEN = ("drain", "done")  # stages of a move in which the target has the authority


class Moved(NamedTuple):
    """What a move was and what it cost. `told`: what the cores say; `out`, `into`: what the stream saw, both directions."""

    told: dict[str, Any]
    out: Became
    into: Became
    still_ms: float = 0.0  # the longest that a CPU stood still (`stillness`)

    @property
    def lost(self) -> int:
        """Datagrams of the stream that never came."""
        return self.out.lost + self.into.lost

    @property
    def longest_gap_ms(self) -> float:
        """Of both directions."""
        return max(self.out.longest_gap_ms, self.into.longest_gap_ms)

    @property
    def longest_silence_ms(self) -> float:
        """The same with the sender's own pauses in it."""
        return max(self.out.longest_silence_ms, self.into.longest_silence_ms)

    @property
    def longest_pause_ms(self) -> float:
        """Of the sender itself."""
        return max(self.out.longest_pause_ms, self.into.longest_pause_ms)


def move(here: Scene, hand: Hand | None, shard: int, target: str, inbound_first: bool) -> Moved:
    """Move a shard. As soon as the target has it, the router's routes follow, one direction after the other.

    Without a hand the cores tell the switches themselves, and there is nothing to do.
    """
    began = time.monotonic_ns()
    source = here.owner(shard)
    number = moves.begin(here.path(source), shard, target)
    _until_taken(here.path(source), number)
    for direction in (INBOUND, OUTBOUND) if inbound_first else (OUTBOUND, INBOUND):
        if hand:
            hand.steer([shard], target, (direction,))
            time.sleep(_BETWEEN_S)
    told = moves.watch(here.path(source), number, _PATIENCE_S)
    ended = time.monotonic_ns()
    time.sleep(_AFTER_S)
    return Moved(told, *watched(here, began, ended))


def watched(here: Scene, since_ns: int, until_ns: int) -> tuple[Became, Became]:
    """What became of the stream in a span, outbound and inbound."""
    ledger = here.generator.ledger
    return became(ledger.out, since_ns, until_ns), became(ledger.into, since_ns, until_ns)


def _until_taken(path: str, number: int) -> None:
    """Return when the target has the shard, or when the move is over: `moves.watch` says then what went wrong."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        told = client.ask(path, {"do": "move"})["move"]
        if told is None or told["id"] != number or told["done"] or told["stage"] in _TAKEN:
            return
        time.sleep(_LOOK_S)
