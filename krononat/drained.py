"""Drained external addresses, as the network sees them: withdrawn when empty, announced before they are handed out again.

Whoever was paired with a drained address stays until his last mapping ends (`reload`). From then on nothing is answered there,
so the worker's `Announcer` leaves it out of the routes. An address that is to be used again is RETURNING until the speaker has
its route: nobody is paired with it yet, for his answers would find no way.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address
from typing import NamedTuple

import numpy as np

from shards.state import DRAINED, OPEN, State

RETURNING = 3  # in EXTERNAL_ADDRESS.closed, beside OPEN, DRAINED, EXCLUDED: to the path of packets all but OPEN are alike

Rows = frozenset[int]


class Seen(NamedTuple):
    """What is to be known of drained addresses: those that nobody uses any more, rows of those that are to be opened."""

    empty: frozenset[str]
    returning: Rows


NOTHING = Seen(frozenset(), frozenset())


class Drained:
    """The drained addresses of a core."""

    def __init__(self, state: State) -> None:
        self._state = state

    def look(self) -> Seen:
        """As it is now; a few microseconds for each drained address."""
        closed = self._state.externals["closed"]
        rows = np.flatnonzero(closed == DRAINED).tolist()
        empty = [row for row in rows if not self._state.chunks["used"][row].any()]
        addresses = (str(IPv4Address(host)) for host in self._state.externals["address"][empty].tolist())
        return Seen(frozenset(addresses), frozenset(np.flatnonzero(closed == RETURNING).tolist()))

    def open(self, rows: Iterable[int]) -> None:
        """Hand them out again, but for those that were closed meanwhile."""
        for row in rows:
            if int(self._state.externals["closed"][row]) == RETURNING:
                self._state.externals["closed"][row] = OPEN
