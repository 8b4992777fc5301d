"""Where every shard should be: primary and backup of all of them on a set of cores, and the steps from one layout to another.

Explicit, not hashed: with a few shards a core, hashing leaves some cores idle and gives others three times their share, and
moves no less when a server comes or goes. Pure; what carries steps out is `krononat.cli.moves`.

Three rules, in this order: the two copies of a shard are never on one server; whichever server dies, what its shards' backups
get on top stays as even as can be (N+1); as few copies are made as that takes.

A step `migrate` moves the authority, and who had it becomes the backup (see `migration`): one copy, none where the target is
the backup. A step `copy` moves the backup: one copy.

Where rooms are named, both copies of a shard are in one, and nothing leaves its room by being evened out. Which core of another
room is a shard's reserve is not decided here: it announces the wide prefix that the shard's lie in, so its configuration says
that. `reserves` tells how it could be.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from replication.placement import Impossible, Loads, server_of

HEAD_ROOM = 1.5  # times the mean of the survivors: what no core should have above, whichever server dies


class Home(NamedTuple):
    """Where a shard is meant to be."""

    primary: str
    backup: str | None


class Step(NamedTuple):
    """One thing to do about a shard: move its authority (`migrate`) or its backup (`copy`)."""

    shard: int
    kind: str
    source: str  # the core that has the authority, and carries the step out
    target: str
    why: str


class Worst(NamedTuple):
    """The core, or server, that has most to do once a server is dead."""

    name: str
    dead: str
    load: float


Homes = Mapping[int, Home]
Rooms = Mapping[str, str]  # of each core; who is not in it, or in "", is in the one room of all such


class Tally:
    """What cores have, and would have, by a layout that grows and changes."""

    def __init__(self, cores: Iterable[str], loads: Loads, homes: Homes | None = None) -> None:
        self.cores, self.loads = list(cores), loads
        self.servers: dict[str, list[str]] = defaultdict(list)
        for core in self.cores:
            self.servers[server_of(core)].append(core)
        self.homes: dict[int, Home] = {}
        self.has: dict[str, float] = defaultdict(float)  # by core, and by server
        self.gets: dict[tuple[str, str], float] = defaultdict(float)  # (dead server, core or server): from backups
        self.copies: dict[str, float] = defaultdict(float)
        for shard, home in (homes or {}).items():
            self.put(shard, home)

    def load(self, shard: int) -> float:
        """What a shard costs."""
        return self.loads.get(shard, 0.0)

    def put(self, shard: int, home: Home) -> None:
        """Have a shard there, and no longer where it was."""
        if shard in self.homes:
            self._count(self.homes[shard], -self.load(shard))
        self.homes[shard] = home
        self._count(home, self.load(shard))

    def _count(self, home: Home, load: float) -> None:
        server = server_of(home.primary)
        self.has[home.primary] += load
        self.has[server] += load
        if home.backup:
            there = server_of(home.backup)
            self.gets[server, home.backup] += load
            self.gets[server, there] += load
            self.copies[home.backup] += load
            self.copies[there] += load

    def share(self, server: str) -> float:
        """What a core of a server has on average."""
        return self.has[server] / len(self.servers[server])

    def mean(self) -> float:
        """What a core has on average."""
        return sum(map(self.load, self.homes)) / max(len(self.cores), 1)

    def idlest_primary(self, servers: Iterable[str]) -> str:
        """The core with the least to do, of the server with the least to do."""
        server = min(servers, key=lambda name: (self.share(name), self.copies[name], name))
        return min(self.servers[server], key=lambda core: (self.has[core], self.copies[core], self.cores.index(core)))

    def idlest_backup(self, primary: str, servers: Iterable[str] | None = None) -> str:
        """The core that would have the least to do if the primary's server died. Impossible where no other server is."""
        dead = server_of(primary)
        allowed = [name for name in servers or self.servers if name != dead]
        if not allowed:
            raise Impossible(f"no core outside of {dead} may keep a copy")

        def after(server: str) -> float:
            return (self.has[server] + self.gets[dead, server]) / len(self.servers[server])

        server = min(allowed, key=lambda name: (after(name), self.copies[name], name))
        return min(
            self.servers[server],
            key=lambda core: (self.has[core] + self.gets[dead, core], self.copies[core], self.cores.index(core)),
        )


def lay(shards: Iterable[int], cores: Sequence[str], loads: Loads, rooms: Rooms | None = None) -> dict[int, Home]:
    """A layout from nothing; what costs most is placed first. Impossible on one server, and where a room has one only."""
    tally = Tally(cores, loads)
    costly = sorted(shards, key=lambda shard: (-loads.get(shard, 0.0), shard))
    for shard in costly:
        tally.put(shard, Home(tally.idlest_primary(tally.servers), None))
    for shard in costly:
        primary = tally.homes[shard].primary
        tally.put(shard, Home(primary, tally.idlest_backup(primary, _beside(tally, primary, rooms or {}))))
    return tally.homes


def _beside(tally: Tally, core: str, rooms: Rooms) -> list[str]:
    """Servers in a core's room, its own too."""
    return [name for name, members in tally.servers.items() if rooms.get(members[0], "") == rooms.get(core, "")]


def reserves(homes: Homes, cores: Sequence[str], loads: Loads, rooms: Rooms) -> dict[int, str]:
    """Of each shard the core in another room that would have least to do if the shard's room were lost; {} with one room."""
    tally, gets = Tally(cores, loads, homes), defaultdict[tuple[str, str], float](float)
    found = {}
    for shard in _costly(tally):
        lost = rooms.get(homes[shard].primary, "")
        others = [core for core in cores if rooms.get(core, "") != lost]
        if others:
            found[shard] = min(others, key=lambda core: (tally.has[core] + gets[lost, core], cores.index(core)))
            gets[lost, found[shard]] += tally.load(shard)
    return found


# --- what a death would do ------------------------------------------------------------------------------------------------


def worst_core(tally: Tally) -> Worst:
    """The core that would have most to do, whichever server dies."""
    return max((_after(tally, dead, core) for dead in tally.servers for core in _others(tally, dead)), key=_heaviest)


def worst_server(tally: Tally) -> Worst:
    """The same of servers."""
    pairs = ((dead, name) for dead in tally.servers for name in tally.servers if name != dead)
    return max((_after(tally, dead, name) for dead, name in pairs), key=_heaviest)


def _after(tally: Tally, dead: str, name: str) -> Worst:
    return Worst(name, dead, tally.has[name] + tally.gets[dead, name])


def _others(tally: Tally, dead: str) -> list[str]:
    return [core for core in tally.cores if server_of(core) != dead]


def _heaviest(worst: Worst) -> tuple[float, str, str]:
    return worst.load, worst.name, worst.dead


def limit(tally: Tally, head_room: float) -> float:
    """What no core should have above after a death: `head_room` times the survivors' mean, and room for one shard at least."""
    largest = max(map(tally.load, tally.homes), default=0.0)
    if len(tally.servers) < 2:
        return float("inf")
    least = min(len(_others(tally, dead)) for dead in tally.servers)
    mean = sum(map(tally.load, tally.homes)) / least
    return max(head_room * mean, mean + largest)


# --- from one layout to another -------------------------------------------------------------------------------------------


def leave(homes: Homes, cores: Sequence[str], server: str, loads: Loads, rooms: Rooms | None = None) -> list[Step]:
    """Steps that take every shard and every copy off a server; `cores`: those that may be given something.

    A shard goes to its backup, which has all of it; what was the copy is on the leaving server then, and moves on. All stays
    in the server's room while that has another server, though a shard may be without a backup then.
    """
    stay, known = [core for core in cores if server_of(core) != server], rooms or {}
    room = next((known[core] for core in known if server_of(core) == server), "")
    near = [core for core in stay if known.get(core, "") == room]
    tally = Tally(near or stay, loads, homes)
    if not tally.servers:
        raise Impossible(f"there is no core outside of {server}")
    return [step for shard in _costly(tally) for step in _evacuate(tally, shard, server, known)]


def _evacuate(tally: Tally, shard: int, server: str, rooms: Rooms) -> Iterator[Step]:
    home = tally.homes[shard]
    if server_of(home.primary) == server:
        target = home.backup if home.backup in tally.cores else tally.idlest_primary(tally.servers)
        told = "has its copy" if target == home.backup else "has the least to do"
        yield _migrate(tally, shard, target or "", f"{server} leaves; {target} {told}")
        home = tally.homes[shard]
    beside = _beside(tally, home.primary, rooms)
    if home.backup is not None and server_of(home.backup) == server and set(beside) - {server_of(home.primary)}:
        target = tally.idlest_backup(home.primary, beside)
        yield _copy(
            tally, shard, target, f"{server} leaves; {target} would have the least to do without {server_of(home.primary)}"
        )


def even(
    homes: Homes,
    cores: Sequence[str],
    loads: Loads,
    tolerance: float = 0.0,
    head_room: float = HEAD_ROOM,
    slack: float = 0.0,
    rooms: Rooms | None = None,
) -> list[Step]:
    """Steps that even out servers, then cores, then what a death would leave; as few as that takes.

    `tolerance`: of the mean; a server gives nothing away below its share and so much more. `slack`: of a shard; by so much a
    server may fall below that, or rise above its share, which matters where it has few shards of unequal cost.

    Each room is evened out by itself; one that has no shard gets none: it is there for the day on which another one is lost.
    """
    if names := dict.fromkeys((rooms or {}).values()):
        of = {core: (rooms or {}).get(core, "") for core in cores}
        apart = [[core for core in cores if of[core] == name] for name in dict.fromkeys([*names, *of.values()])]
        return [step for members in apart for step in even(homes, members, loads, tolerance, head_room, slack)]
    tally = Tally(cores, loads, {shard: home for shard, home in homes.items() if home.primary in cores})
    if not tally.homes:
        return []
    steps = list(_even_servers(tally, tolerance, slack))
    steps += _even_cores(tally, max(tolerance, 0.1), {step.shard for step in steps})
    return steps + list(_make_room(tally, head_room))


def _even_servers(tally: Tally, tolerance: float, slack: float) -> Iterator[Step]:
    """The server with most gives to that with least, until it would fall below its share; no shard moves twice."""
    mean, moved = tally.mean(), set[int]()
    while True:
        source = max(tally.servers, key=lambda name: (tally.share(name), name))
        idle = min(tally.servers, key=lambda name: (tally.share(name), name))
        surplus = tally.has[source] - mean * (1 + tolerance) * len(tally.servers[source])
        room = mean * len(tally.servers[idle]) - tally.has[idle]
        target = tally.idlest_primary([idle])
        below = max(tally.has[core] for core in tally.cores) - tally.has[target]
        shard = _fitting(tally, source, min(min(surplus, room) / (1 - slack), below), moved)
        if shard is None:
            return
        moved.add(shard)
        told = f"{source} has {tally.share(source):,.1f} a core, {idle} {tally.share(idle):,.1f}"
        yield _migrate(tally, shard, target, told)


def _fitting(tally: Tally, server: str, most: float, moved: set[int]) -> int | None:
    """Of the server's busiest core that has one, the largest shard that costs no more than `most`."""
    having = defaultdict(list)
    for shard, home in tally.homes.items():
        if server_of(home.primary) == server and shard not in moved and 0 < tally.load(shard) <= most + 1e-9:
            having[home.primary].append(shard)
    if not having:
        return None
    busiest = max(having, key=lambda core: (tally.has[core], core))
    return max(having[busiest], key=lambda shard: (tally.load(shard), -shard))


def _even_cores(tally: Tally, tolerance: float, moved: set[int]) -> Iterator[Step]:
    """The busiest core gives to the idlest of another server, if the busier of both is better off by more than `tolerance`."""
    least, moved = tolerance * tally.mean(), set(moved)
    for source in sorted(tally.cores, key=lambda core: (-tally.has[core], core)):
        while (found := _relief(tally, source, moved)) and found[0] > least:
            _, shard, target = found
            moved.add(shard)
            yield _migrate(
                tally, shard, target, f"{source} has {tally.has[source]:,.1f} to do, {target} {tally.has[target]:,.1f}"
            )


def _relief(tally: Tally, source: str, moved: set[int]) -> tuple[float, int, str] | None:
    """(how much less the busier of both has, shard, target) of the best move away from a core."""
    others = [core for core in tally.cores if server_of(core) != server_of(source)]
    if not others:
        return None
    target = min(others, key=lambda core: (tally.has[core], tally.share(server_of(core)), core))
    found = [
        (tally.has[source] - max(tally.has[source] - load, tally.has[target] + load), -shard, target)
        for shard, home in tally.homes.items()
        if home.primary == source and shard not in moved and (load := tally.load(shard)) > 0
    ]
    gain, shard, target = max(found, default=(0.0, 0, ""))
    return (gain, -shard, target) if gain > 0 else None


def _make_room(tally: Tally, head_room: float) -> Iterator[Step]:
    """Every shard has a copy; and copies move where a core would have too much after a death."""
    for shard in _costly(tally):
        home = tally.homes[shard]
        if len(tally.servers) > 1 and home.backup not in tally.cores:
            told = f"{home.backup} is gone, or in another room" if home.backup else "has no backup"
            yield _copy(tally, shard, tally.idlest_backup(home.primary), told)
    most, tried = limit(tally, head_room), set[int]()
    while len(tally.servers) > 1 and (worst := worst_core(tally)).load > most + 1e-9:
        found = _liftable(tally, worst, tried)
        if found is None:
            return
        tried.add(found)
        target = tally.idlest_backup(tally.homes[found].primary)
        if tally.has[target] + tally.gets[worst.dead, target] + tally.load(found) < worst.load:
            yield _copy(tally, found, target, f"{worst.name} would have {worst.load:,.1f} to do without {worst.dead}")


def _liftable(tally: Tally, worst: Worst, tried: set[int]) -> int | None:
    found = [
        shard
        for shard, home in tally.homes.items()
        if home.backup == worst.name and server_of(home.primary) == worst.dead and shard not in tried
    ]
    return max(found, key=lambda shard: (tally.load(shard), -shard), default=None)


def _migrate(tally: Tally, shard: int, target: str, why: str) -> Step:
    source = tally.homes[shard].primary
    tally.put(shard, Home(target, source))
    return Step(shard, "migrate", source, target, why)


def _copy(tally: Tally, shard: int, target: str, why: str) -> Step:
    primary = tally.homes[shard].primary
    tally.put(shard, Home(primary, target))
    return Step(shard, "copy", primary, target, why)


def _costly(tally: Tally) -> list[int]:
    return sorted(tally.homes, key=lambda shard: (-tally.load(shard), shard))


def following(homes: Homes, steps: Iterable[Step]) -> dict[int, Home]:
    """The layout once the steps are done."""
    now = dict(homes)
    for step in steps:
        now[step.shard] = _done(now[step.shard], step)
    return now


def _done(home: Home, step: Step) -> Home:
    return Home(step.target, home.primary) if step.kind == "migrate" else Home(step.source, step.target)


def copied(homes: Homes, steps: Iterable[Step]) -> int:
    """How many copies the steps make: a migration to the backup makes none."""
    now, count = dict(homes), 0
    for step in steps:
        count += step.target not in now[step.shard]
        now[step.shard] = _done(now[step.shard], step)
    return count
