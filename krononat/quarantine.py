"""Quarantine: frames that were in a worker's hands twice when it died of a fault are dropped before a third can.

When a worker dies, what it had in hand is never processed again (`rings.take_over` counts it as lost). Of a *fault* (SIGSEGV
and the like, an exception, a loop without end) a frame may be the cause: then the signatures of all that was in hand are
remembered, and one that was there at two such deaths within ten minutes is dropped by the ports' XDP programs from then on,
which are generated anew with it as a constant and exchanged atomically. Without any there is nothing in the program about
this.

Who is killed by SIGKILL or SIGTERM, or was stopped by somebody, has died of no frame: an operator, or a kernel out of memory,
blames nobody. memif ports have no XDP program: there a signature is told and not dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from krononat.view import ticks
from shards import signatures, xsk
from shards.notes import Notes
from shards.signatures import Signature, sign
from shards.state import Array
from shards.steering import Steering

WITHIN = 600_000  # ticks between two deaths that make a suspect
DEATHS_AT_MOST = 8  # that are remembered
AT_MOST = 16  # signatures that are dropped; the oldest leaves
_HAND = 1  # shards.frames.HAND, which cannot be imported without the compiler; a test holds one against the other


class Death(NamedTuple):
    """When a worker died of a fault, and what it had in hand."""

    tick: int
    cause: str
    signatures: frozenset[Signature]


class Dropped(NamedTuple):
    """A signature that is dropped, since when, and the two deaths' causes."""

    signature: Signature
    since: int
    causes: tuple[str, str]


class Suspects:
    """Which signatures were in hand at two deaths; nothing here touches the system, and time is an argument."""

    def __init__(self) -> None:
        self._deaths: deque[Death] = deque(maxlen=DEATHS_AT_MOST)

    def add(self, death: Death) -> list[Dropped]:
        """Remember a death; those that were in hand at it and at one not long before."""
        found: dict[Signature, Dropped] = {}
        for before in self._deaths:
            if death.tick - before.tick <= WITHIN:
                for each in death.signatures & before.signatures:
                    found[each] = Dropped(each, death.tick, (before.cause, death.cause))
        self._deaths.append(death)
        return list(found.values())

    def forget(self) -> None:
        """As if nobody had died."""
        self._deaths.clear()


class Quarantine:
    """What is dropped at the ports. `say` is told in words."""

    def __init__(self, notes: Notes, frames: Array, steerings: Sequence[Any], say: Callable[[str], None]) -> None:
        self._notes, self._frames, self._say = notes, frames, say
        self._programs = [each for each in steerings if isinstance(each, Steering)]
        self._suspects = Suspects()
        self._dropped: deque[Dropped] = deque(maxlen=AT_MOST)

    def blame(self, cause: str) -> None:
        """A worker died of a fault, and the frames are still as it left them."""
        hand = in_hand(self._notes.owners, self._frames)
        found = self._suspects.add(Death(ticks(), cause, frozenset(hand)))
        self._say(f"{len(hand)} frames were in hand when the worker died of {cause}: none of them is processed again")
        known = {each.signature for each in self._dropped}
        new = [each for each in found if each.signature not in known]
        if new:
            self._dropped.extend(new)
            self._install()
        for each in new[-AT_MOST:]:
            self._say(
                f"in hand at two deaths, dropped from now on: {each.signature.told()} (`krononat quarantine clear` ends it)"
            )

    def _install(self) -> None:
        for program in self._programs:
            program.quarantine([each.signature for each in self._dropped])

    def clear(self) -> int:
        """Drop nothing any more; how many signatures were."""
        count = len(self._dropped)
        self._dropped.clear()
        self._suspects.forget()
        if count:
            self._install()
            self._say(f"quarantine: {count} signatures are dropped no more")
        return count

    def rows(self) -> list[dict[str, Any]]:
        """What is dropped, for people."""
        now = ticks()
        return [
            {
                "frames": each.signature.told(),
                "since_s": round((now - each.since) / 1000, 1),
                "deaths": ", ".join(each.causes),
                "bytes": each.signature.content.hex(),
                "mask": each.signature.mask.hex(),
            }
            for each in self._dropped
        ]

    def dropped(self) -> int:
        """Frames dropped so far."""
        return sum(program.count()["quarantined"][0] for program in self._programs)

    def status(self) -> dict[str, int]:
        """For `krononat status`."""
        return {"signatures": len(self._dropped), "frames": self.dropped()}


def in_hand(owners: Array, frames: Array) -> list[Signature]:
    """Signatures of the frames that a dead worker had in hand; what is not IP, or was overwritten in part, has none."""
    found = []
    for frame in np.flatnonzero(owners >> 56 == _HAND).tolist():
        at = (frame << xsk.FRAME_SHIFT) + xsk.HEADROOM
        signature = sign(frames[at : at + signatures.FRAME_BYTES].tobytes())
        if signature:
            found.append(signature)
    return found
