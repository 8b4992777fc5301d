"""Drained external addresses, as the network sees them: withdrawn when empty, announced before they are handed out again.

Whoever was paired with a drained address stays until his last mapping ends (`reload`). From then on nothing is answered there,
so the worker's `Announcer` leaves it out of the routes. An address that is to be used again is RETURNING until the speaker has
its route: nobody is paired with it yet, for his answers would find no way.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from shards.membership import RETURNING
from shards.state import DRAINED, OPEN, State

Rows = frozenset[int]


class Seen(NamedTuple):
    """What is to be known of drained addresses: those that nobody uses any more, rows of those that are to be opened."""

    empty: frozenset[int]  # addresses, as numbers
    returning: Rows


NOTHING = Seen(frozenset(), frozenset())
AT_ONCE = 128  # rows that a look looks at: 2 MB of chunks, a fraction of a millisecond between two breaths of the loop


class Drained:
    """The drained addresses of a core."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._empty = np.zeros(len(state.externals), np.bool_)
        self._next = 0  # row from which the next look goes on

    def look(self) -> Seen:
        """As it is now; where more than `AT_ONCE` are drained, these in turn, and of the others what was seen last."""
        closed = self._state.externals["closed"]
        rows = np.flatnonzero(closed == DRAINED)
        self._empty &= closed == DRAINED
        now = np.roll(rows, -int(np.searchsorted(rows, self._next)))[:AT_ONCE]
        self._empty[now] = ~self._state.chunks["used"][now].any(axis=1)
        self._next = int(now[-1]) + 1 if len(now) else 0
        addresses = self._state.externals["address"][self._empty].tolist()
        return Seen(frozenset(addresses), frozenset(np.flatnonzero(closed == RETURNING).tolist()))

    def open(self, rows: Iterable[int]) -> None:
        """Hand them out again, but for those that were closed meanwhile."""
        for row in rows:
            if int(self._state.externals["closed"][row]) == RETURNING:
                self._state.externals["closed"][row] = OPEN
