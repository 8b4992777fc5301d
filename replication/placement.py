"""Which shard should be where: from where the shards are now and what each costs, a list of moves. Nothing here moves anything.

A move takes the authority of a shard to another core, and who had it becomes its backup: it has all rows already (see `after`,
and `migration`). The two copies of a shard are never on one server, so a shard moves to another server or not at all.

Greedy: what costs most is placed first, on the core that has least. That is within a few percent of the best for shards of
about equal size, and explains itself: each move says why.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

Loads = Mapping[int, float]  # by shard; any unit, packets/s say; what is missing counts as 0

TOLERANCE = 0.1  # of the mean load of a core: a move that would bring less is not worth its cost


class Place(NamedTuple):
    """Where a shard is now: the core that has its authority, and the one that keeps a copy."""

    shard: int
    active: str
    passive: str | None


class Move(NamedTuple):
    """The authority of a shard goes from a core to another one."""

    shard: int
    source: str
    target: str
    why: str


class Impossible(Exception):
    """There is no such move; the argument says why."""


def server_of(core: str) -> str:
    """Server of a core SERVER/NUMBER."""
    return core.partition("/")[0]


def after(places: Sequence[Place], moves: Iterable[Move]) -> list[Place]:
    """Places once the moves are done, in the order of `places`."""
    now = {place.shard: place for place in places}
    for move in moves:
        now[move.shard] = Place(move.shard, move.target, move.source)
    return list(now.values())


def targets(place: Place, cores: Iterable[str]) -> list[str]:
    """Cores that the authority of a shard may go to: not those of the server that will keep the copy."""
    return [core for core in cores if server_of(core) != server_of(place.active)]


def swap(place: Place) -> Move:
    """The move that lets active and passive change places."""
    if place.passive is None:
        raise Impossible(f"shard {place.shard} has no backup to change places with")
    return Move(place.shard, place.active, place.passive, "changes places with its backup")


def drain(
    places: Sequence[Place], cores: Sequence[str], server: str, loads: Loads, rooms: Mapping[str, str] | None = None
) -> list[Move]:
    """Moves that take every authority off a server. `rooms`: of cores, where some are named.

    A shard goes to its backup, which has all of it already; without one, to the core that has least: of its room, if it can.
    """
    open_cores = [core for core in cores if server_of(core) != server]
    loaded = _loaded(places, open_cores, loads)
    moves = []
    for place in _costly_first([each for each in places if server_of(each.active) == server], loads):
        move = _away(place, open_cores, loaded, rooms or {})
        loaded[move.target] += loads.get(place.shard, 0)
        moves.append(move)
    return moves


def _away(place: Place, cores: Sequence[str], loaded: Mapping[str, float], rooms: Mapping[str, str]) -> Move:
    allowed = targets(place, cores)
    if place.passive in allowed:
        return swap(place)
    if not allowed:
        server = server_of(place.active)
        raise Impossible(f"shard {place.shard} has nowhere to go: no core outside of {server} may take it")
    near = [core for core in allowed if rooms.get(core, "") == rooms.get(place.active, "")]
    told = "this core has least to do" if near else "this core has least to do, in another room as there is none in its own"
    return Move(place.shard, place.active, _idlest(near or allowed, loaded), f"has no backup there; {told}")


def undrain(places: Sequence[Place], meant: Mapping[int, str], cores: Iterable[str], server: str) -> list[Move]:
    """Moves that bring back the shards whose primary, by the map, is a core of this server. `meant`: primary by shard."""
    moves, known = [], list(cores)
    for place in places:
        home = meant.get(place.shard, place.active)
        if server_of(home) != server or home == place.active:
            continue
        if home not in targets(place, known):
            told = f"{place.active} is of the same server" if home in known else "that core is not there"
            raise Impossible(f"shard {place.shard} cannot go home to {home}: {told}")
        moves.append(Move(place.shard, place.active, home, "is at home there by the map"))
    return moves


def rebalance(places: Sequence[Place], cores: Sequence[str], loads: Loads, tolerance: float = TOLERANCE) -> list[Move]:
    """Moves that make the cores more equal, the most useful first; each shard moves at most once.

    Where swapping does as much good as copying to a third core, the shard is swapped.
    """
    now = {place.shard: place for place in places}
    least = tolerance * sum(loads.get(shard, 0) for shard in now) / max(len(cores), 1)
    moves: list[Move] = []
    while move := _best(now, cores, loads, least, {each.shard for each in moves}):
        moves.append(move)
        (now[move.shard],) = after([now[move.shard]], [move])
    return moves


def _best(now: Mapping[int, Place], cores: Sequence[str], loads: Loads, least: float, moved: set[int]) -> Move | None:
    """Most useful move from the most loaded core that has one."""
    loaded = _loaded(now.values(), cores, loads)
    having = defaultdict(list)
    for place in now.values():
        if place.shard not in moved:
            having[place.active].append(place)
    for source in sorted(having, key=lambda core: (-loaded.get(core, 0), core)):
        found = [each for place in having[source] for each in _candidates(place, cores, loaded, loads.get(place.shard, 0))]
        best = max(found, key=_usefulness, default=None)
        if best and best.gain > least:
            told = f"{source} has {loaded[source]:,.0f} to do, {best.target} {loaded[best.target]:,.0f}"
            return Move(best.shard, source, best.target, told)
    return None


class _Candidate(NamedTuple):
    shard: int
    target: str
    gain: float  # how much less the busier of both cores has to do
    height: float  # what the target has to do then
    swaps: bool


def _candidates(place: Place, cores: Sequence[str], loaded: Mapping[str, float], load: float) -> Iterator[_Candidate]:
    source = loaded.get(place.active, 0)
    for target in targets(place, cores):
        height = loaded[target] + load
        yield _Candidate(place.shard, target, source - max(source - load, height), height, target == place.passive)


def _usefulness(found: _Candidate) -> tuple[float, float, bool, int]:
    return found.gain, -found.height, found.swaps, -found.shard


def _loaded(places: Iterable[Place], cores: Iterable[str], loads: Loads) -> dict[str, float]:
    loaded = dict.fromkeys(cores, 0.0)
    for place in places:
        loaded[place.active] = loaded.get(place.active, 0.0) + loads.get(place.shard, 0)
    return loaded


def _costly_first(places: Sequence[Place], loads: Loads) -> list[Place]:
    return sorted(places, key=lambda place: (-loads.get(place.shard, 0), place.shard))


def _idlest(cores: Sequence[str], loaded: Mapping[str, float]) -> str:
    return min(cores, key=lambda core: (loaded[core], core))
