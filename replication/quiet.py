"""Since when no packet of a shard has come here: an old owner lets go only then."""

from __future__ import annotations

import numpy as np

from replication.tables import SESSIONS
from shards import census
from shards.state import EXTENT_LINES, SESSION6_0, State


class Quiet:
    """Goes round and round over the sessions of a shard, a piece at a time."""

    def __init__(self, state: State, shard: int, now: int) -> None:
        self._state, self._shard = state, shard
        self._at = (SESSIONS[0], 0)
        rows = {
            klass: int(state.slabs[shard, klass]["extents"]) * EXTENT_LINES // (2 if klass >= SESSION6_0 else 1)
            for klass in SESSIONS
        }
        self._packets = {klass: np.zeros(count, np.uint32) for klass, count in rows.items()}
        self._lives = {klass: np.zeros(count, np.uint16) for klass, count in rows.items()}
        self._shunted = int(state.shards[shard]["shunted"])
        self._rounds, self._began = 0, now
        self._stirred = now  # tick of the round in which a packet was seen last

    def look(self, now: int, rows: int) -> None:
        """A piece of the way."""
        klass, first = self._at
        moved, following = census.look(self._state, self._shard, klass, first, rows, self._packets[klass], self._lives[klass])
        shunted = int(self._state.shards[self._shard]["shunted"])
        if (moved and self._rounds) or shunted != self._shunted:
            self._stirred, self._shunted = now, shunted
        if following >= 0:
            self._at = (klass, int(following))
        elif klass != SESSIONS[-1]:
            self._at = (SESSIONS[SESSIONS.index(klass) + 1], 0)
        else:
            self._at, self._began = (SESSIONS[0], 0), now
            self._rounds += 1

    def for_long(self, now: int, ticks: int) -> bool:
        """Whether for so many ticks nothing came, as seen by rounds that were over by then."""
        return self._rounds >= 2 and self._began - self._stirred >= ticks and now - self._stirred >= ticks
