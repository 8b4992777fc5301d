"""A cluster on paper: where its shards would be, what moves when a server comes or goes, what it announces. Pure.

Shards cost the same here. What cores and switches have to carry follows from the layout, and from what one replica of a shard
announces: `routing.announcements` says that, of a made-up shard with one external prefix.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from replication import layout
from replication.layout import Homes, Step, Tally
from replication.placement import Loads
from routing.announcements import Policy, Preference, Role, Standing, routes

SERVERS_AT_MOST, CORES_AT_MOST, SHARDS_AT_MOST = 256, 4096, 1 << 16
DOMAINS = 2  # inside and outside, a routing domain each on every switch
_PREFIX, _ADDRESSES, _AS = "203.0.113.0/28", "10.0.0.0/8", 65010  # of the made-up shard; that numbers differ changes nothing


class Size(NamedTuple):
    """What is planned."""

    shards: int
    servers: int
    cores: int  # of each server
    switches: int = 2
    domains: int = DOMAINS
    preference: Preference = "med"
    rooms: int = 1


def cores_of(servers: Sequence[int], each: int) -> list[str]:
    """Names of all cores of these servers."""
    return [f"s{server}/{core}" for server in servers for core in range(each)]


def rooms_of(cores: Sequence[str], size: Size) -> dict[str, str]:
    """Servers beside each other share a room; who comes later is in the last one. Empty: all are in one."""
    if size.rooms == 1:
        return {}
    servers = {core: int(core.partition("/")[0].removeprefix("s")) for core in cores}
    return {core: f"r{min((server - 1) * size.rooms // size.servers, size.rooms - 1) + 1}" for core, server in servers.items()}


def report(size: Size) -> dict[str, Any]:
    """All of it."""
    servers = range(1, size.servers + 1)
    cores, loads = cores_of(servers, size.cores), dict.fromkeys(range(size.shards), 1.0)
    more = [*cores, *cores_of([size.servers + 1], size.cores)]
    rooms = rooms_of(more, size)
    homes = layout.lay(range(size.shards), cores, loads, rooms)
    found = {
        "size": size._asdict(),
        "placement": placement(homes, cores, loads),
        "one_server_more": change(homes, layout.even(homes, more, loads, rooms=rooms), more, loads),
        "announcements": announcements(homes, cores, size),
    }
    if rooms:
        found["a_room_lost"] = lost(homes, cores, loads, rooms)
    if size.servers > 2 * size.rooms:  # of two in a room, nobody is left who could keep copies
        fewer = cores_of(servers[:-1], size.cores)
        steps = layout.leave(homes, cores, f"s{size.servers}", loads, rooms)
        steps += layout.even(layout.following(homes, steps), fewer, loads, rooms=rooms)
        found["one_server_less"] = change(homes, steps, fewer, loads)
    return found


def placement(homes: Homes, cores: Sequence[str], loads: Loads) -> dict[str, Any]:
    """How even a layout is, and how even it stays when a server dies."""
    tally = Tally(cores, loads, homes)
    has = [tally.has[core] for core in cores]
    each = [tally.has[server] for server in tally.servers]
    core, server = layout.worst_core(tally), layout.worst_server(tally)
    fair = sum(each) / len(each)
    return {
        "shards_a_core": [int(min(has)), int(max(has))],
        "idle_cores": sum(not count for count in has),
        "shards_a_server": [int(min(each)), int(max(each))],
        "copies_a_core": [int(min(counts := [tally.copies[core] for core in cores])), int(max(counts))],
        "after_a_death": {
            "worst_core": int(core.load),
            "worst_server": int(server.load),
            "worst_core_by_mean": round(core.load / tally.mean(), 3),
            "worst_server_by_mean": round(server.load / fair, 3),
        },
    }


def lost(homes: Homes, cores: Sequence[str], loads: Loads, rooms: layout.Rooms) -> dict[str, Any]:
    """The busiest core once a room is lost, and each of its shards is served by its reserve; whichever room that is."""
    tally, reserves = Tally(cores, loads, homes), layout.reserves(homes, cores, loads, rooms)
    gets = Counter((rooms[home.primary], reserves[shard]) for shard, home in homes.items())
    names = set(rooms.values())
    has = [tally.has[core] + gets[name, core] for name in names for core in cores if rooms[core] != name]
    fair = sum(loads.values()) / len(cores) * len(names) / (len(names) - 1)
    return {"worst_core": int(max(has)), "worst_core_by_mean_of_those_left": round(max(has) / fair, 3)}


def change(homes: Homes, steps: Sequence[Step], cores: Sequence[str], loads: Loads) -> dict[str, Any]:
    """What it takes to get from one layout to another, and what that is like."""
    kinds = Counter(step.kind for step in steps)
    then = layout.following(homes, steps)
    moved = {"migrations": kinds["migrate"], "copies_made": layout.copied(homes, steps), "steps": len(steps)}
    return {**moved, **placement(then, cores, loads)}


def announcements(homes: Homes, cores: Sequence[str], size: Size) -> dict[str, Any]:
    """Routes of a core and of a switch's domains; BGP and BFD sessions of a switch, in both profiles of the speaker.

    per-core: every core has a session of each in each domain of each switch. per-server: a server has one BGP session in each,
    with third-party next hops, and one BFD session; then its supervisor withdraws a dead core.
    """
    primaries, backups = Counter(home.primary for home in homes.values()), Counter(home.backup for home in homes.values())
    found: dict[str, Any] = {}
    for domain in ("inside", "outside"):
        own, copy = (_announced(role, domain, size.preference) for role in _TOLD)
        has = [own * primaries[core] + copy * backups[core] for core in cores]
        found[domain] = {"a_core": [min(has), max(has)], "a_switch": sum(has), "a_switch_best": own * size.shards}
    sessions = {"per-core": len(cores) * size.domains, "per-server": size.servers * size.domains}
    return {
        "routes": found,
        "steering_rules_a_switch": size.shards,
        "sessions_a_switch": {profile: {"bgp": count, "bfd": count} for profile, count in sessions.items()},
        "sessions": {profile: {"bgp": n * size.switches, "bfd": n * size.switches} for profile, n in sessions.items()},
    }


_TOLD: tuple[Role, Role] = ("primary", "backup")


def _announced(role: Role, domain: str, preference: Preference) -> int:
    """Routes that one replica of a shard announces in a domain."""
    policy = Policy(_AS, preference, shard_addresses=_ADDRESSES)
    return sum(route.domain == domain for route in routes([Standing(0, role, 1, (_PREFIX,))], policy))
