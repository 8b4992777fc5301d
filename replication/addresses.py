"""Which external addresses each core knows of each shard: who lacks some refuses the rows of whoever is mapped there.

Pools change while packets pass, one core after another (see `shards.membership`), so for a while two cores may know different
ones; a shard that moved then would lose what lives on the others. With its posts a core tells a digest of all that it knows;
only to who has another digest it tells, now and then, what there is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address
from typing import Any, NamedTuple

import numpy as np

from replication.protocol import Fields, age
from shards.state import EXTERNALS_AT_MOST, Array, State, external_rows

TELL_EACH = 1000  # ticks between two tellings to one core, unless something has changed
RANGES_AT_MOST = 2000  # of a message, whose header has to end; of shards that do not fit it is not known what they have

Ranges = dict[int, list[int]]  # by shard: first and last address of each range, one after another
_NONE = np.arange(0)


class Theirs(NamedTuple):
    """What another core said: a digest of all, and what it stood for when it was told."""

    digest: int
    told_for: int = -1
    ranges: Mapping[int, list[int]] = {}
    whole: bool = True  # these are all


class Addresses:
    """What this core knows, and what the others said that they know."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._theirs: dict[str, Theirs] = {}
        self._told: dict[str, tuple[int, int, int]] = {}  # when, by which digests
        self._lacking: dict[tuple[str, int], str] = {}  # by core and shard, as long as nothing changes
        self.look()

    def look(self) -> None:
        """Our pools may have others than before."""
        self._own: dict[int, Array] = {}
        for number in range(int(self._state.settings[0]["pools"])):
            shard = int(self._state.pools[number]["shard"])
            more = self._state.externals["address"][external_rows(self._state, number)]
            self._own[shard] = np.union1d(self._own.get(shard, _NONE), more).astype(np.int64)
        self._ranges = {shard: _ranges(addresses) for shard, addresses in sorted(self._own.items())}
        told = hashlib.blake2b(repr(self._ranges).encode(), digest_size=8).digest()
        self.digest = int.from_bytes(told, "big") >> 1
        self._lacking.clear()

    # --- told -------------------------------------------------------------------------------------------------------------

    def told_digest(self, peer: str, digest: Any) -> None:
        """A core said this with its posts; one of an older version says nothing, though it may have been newer until now."""
        before = self._theirs.get(peer)
        if type(digest) is not int:
            self.forget([peer])
        elif before is None or before.digest != digest:
            self._theirs[peer] = (before or Theirs(digest))._replace(digest=digest)
            self._look_anew(peer)

    def told_ranges(self, peer: str, fields: Fields) -> None:
        """A core said what there is; nonsense is not listened to."""
        match fields:
            case {"x": int(digest), "r": dict(ranges), "w": bool(whole)} if peer in self._theirs and _are_right(ranges):
                self._theirs[peer] = self._theirs[peer]._replace(told_for=digest, ranges=ranges, whole=whole)
                self._look_anew(peer)

    def owed(self, peer: str, now: int) -> Fields | None:
        """What a core is to be told now, besides the digest: something if it has another one."""
        theirs = self._theirs.get(peer)
        if theirs is None or theirs.digest == self.digest:
            return None
        when, *about = self._told.get(peer, (0, 0, 0))
        if about == [self.digest, theirs.digest] and age(now, when) < TELL_EACH:
            return None
        self._told[peer] = now, self.digest, theirs.digest
        fitting = _as_many_as_fit(self._ranges)
        return {"x": self.digest, "r": fitting, "w": len(fitting) == len(self._ranges)}

    def forget(self, peers: Iterable[str]) -> None:
        """They are no cores any more, or do not say what they know."""
        for peer in peers:
            self._theirs.pop(peer, None)
            self._told.pop(peer, None)
            self._look_anew(peer)

    def _look_anew(self, peer: str) -> None:
        self._lacking = {asked: told for asked, told in self._lacking.items() if asked[0] != peer}

    # --- compared ---------------------------------------------------------------------------------------------------------

    def is_unsure(self, peer: str) -> bool:
        """Whether it knows others than we, and which is not said yet."""
        theirs = self._theirs.get(peer)
        return theirs is not None and theirs.digest not in (self.digest, theirs.told_for)

    def lacking(self, peer: str, shard: int) -> str:
        """What a core does not know of the external addresses that a shard has here, as a sentence; empty: nothing.

        Moves ask at every turn, each shard may have 65,536, and a drained server moves many: every answer is kept.
        """
        if (peer, shard) not in self._lacking:
            self._lacking[peer, shard] = self._look_for(peer, shard)
        return self._lacking[peer, shard]

    def _look_for(self, peer: str, shard: int) -> str:
        theirs = self._theirs.get(peer)
        if theirs is None or theirs.digest == self.digest or self.is_unsure(peer) or shard not in self._own:
            return ""
        if shard not in theirs.ranges and not theirs.whole:
            return f"{peer} knows other external addresses, of so many ranges that it has not said which"
        missing = np.setdiff1d(self._own[shard], _addresses(theirs.ranges.get(shard, [])))
        if not len(missing):
            return ""
        told = f"{len(missing):,} of its external addresses, {IPv4Address(int(missing[0]))} for one"
        return f"{peer} does not know {told}: who is mapped there would be cut off"


def _ranges(addresses: Array) -> list[int]:
    """First and last address of each range of ascending ones."""
    ends = np.flatnonzero(np.diff(addresses) != 1)
    firsts, lasts = np.concatenate([addresses[:1], addresses[ends + 1]]), np.concatenate([addresses[ends], addresses[-1:]])
    return [int(each) for each in np.column_stack([firsts, lasts]).ravel()]


def _addresses(ranges: list[int]) -> Array:
    return np.concatenate([_NONE, *(np.arange(first, last + 1) for first, last in zip(ranges[::2], ranges[1::2], strict=True))])


def _as_many_as_fit(ranges: Ranges) -> Ranges:
    """The first shards, in order; one that has too many hides none behind it."""
    fitting, left = {}, 2 * RANGES_AT_MOST
    for shard, told in ranges.items():
        if len(told) <= left:
            left -= len(told)
            fitting[shard] = told
    return fitting


def _are_right(ranges: dict[Any, Any]) -> bool:
    return all(type(shard) is int and isinstance(told, list) and _is_right(told) for shard, told in ranges.items())


def _is_right(told: list[Any]) -> bool:
    """Whether these can be ranges of a shard's addresses."""
    if len(told) % 2 or not all(type(each) is int for each in told):
        return False
    pairs = list(zip(told[::2], told[1::2], strict=True))
    fits = all(0 <= first <= last < 1 << 32 for first, last in pairs)
    return fits and sum(last - first + 1 for first, last in pairs) <= EXTERNALS_AT_MOST
