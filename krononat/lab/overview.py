"""Where every shard's packets go in a cluster whose switches route, who says so, and whether that is as it should be.

What a switch was told its daemon says; what it does about that its kernel says: the route of each shard's own table, and of the
shard's external addresses. Both are shown, as they may differ for a moment.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING, Any, NamedTuple

from krononat import client
from krononat.client import Trouble
from krononat.lab import cluster, fabric, legs, namespaces, switches
from krononat.lab.cluster import Wanted
from krononat.lab.seen import Announced, Session, View
from routing.fabric import CORE, INSIDE, OUTSIDE, SWITCH, TABLE, Instance

if TYPE_CHECKING:
    from krononat.lab.laboratory import Lab

READY_S = 60.0
NOWHERE, OTHER = "nowhere", "other"


class Place(NamedTuple):
    """A shard as a switch has it: `told_…` is every core that announces it, the one believed first, with its MED."""

    shard: int
    switch: str
    outbound: str  # the core that subscribers' packets go to
    told_inside: str
    inbound: str
    told_outside: str


class Owned(NamedTuple):
    """A shard that a core has the authority over, as that core says."""

    shard: int
    core: str
    epoch: int
    synced: bool  # whether its backup has all of it


class Seen(NamedTuple):
    """A domain of a switch at a moment: what it was told, and the routes of its kernel."""

    one: Instance
    view: View
    kernel: list[tuple[str, IPv4Network, str]]  # table, destination, gateway


def look(lab: Lab) -> dict[str, Seen]:
    """Every domain of every switch, by node."""
    wanted = lab.wanted or Wanted()
    return {
        node: Seen(switches.instance_of(wanted, node), switches.view(lab, node), _kernel(lab.namespace[node]))
        for node in fabric.nodes(wanted)
    }


def _kernel(namespace: str) -> list[tuple[str, IPv4Network, str]]:
    told: list[dict[str, Any]] = json.loads(
        namespaces.command("ip", "-n", namespace, "-json", "-4", "route", "show", "table", "all") or "[]"
    )
    return [
        (str(each.get("table", "main")), IPv4Network(each["dst"].replace("default", "0.0.0.0/0")), each["gateway"])
        for each in told
        if "gateway" in each
    ]


def places(wanted: Wanted, seen: dict[str, Seen]) -> list[Place]:
    """A row for each shard and switch."""
    return [_place(wanted, seen, shard, switch) for shard in range(wanted.shards) for switch in fabric.switches(wanted)]


def _place(wanted: Wanted, seen: dict[str, Seen], shard: int, switch: str) -> Place:
    inside = seen[legs.node_of(switch, INSIDE, wanted.domains)]
    outside = seen[legs.node_of(switch, OUTSIDE, wanted.domains)]
    address, external = fabric.shard_address(wanted, shard), cluster.external_of(shard)
    outbound = _next(inside, str(TABLE + shard), IPv4Address(0))
    inbound = _next(outside, "main", external.network_address)
    return Place(shard, switch, outbound, told(inside, address), inbound, told(outside, external.network_address))


def _next(seen: Seen, table: str, address: IPv4Address) -> str:
    """Who gets packets for an address by the kernel's routes: a core, or the other switch."""
    fitting = [(to.prefixlen, gateway) for name, to, gateway in seen.kernel if name == table and address in to]
    gateway = max(fitting, default=(0, ""))[1]
    return next((core_of(each.name) for each in seen.one.of(CORE, SWITCH) if str(each.address) == gateway), NOWHERE)


def told(seen: Seen, address: IPv4Address) -> str:
    """Who announces the prefixes that an address lies in, the narrowest first: "s1/0 100, s2/0 200"."""
    fitting = [route for route in seen.view.routes if address in IPv4Network(route.prefix) and not route.prefix.endswith("/0")]
    return ", ".join(_words(route) for route in sorted(fitting, key=_goodness))


def _goodness(route: Announced) -> tuple[int, bool, int]:
    return -IPv4Network(route.prefix).prefixlen, not route.best, route.med


def _words(route: Announced) -> str:
    more = f" (preference {route.preference})" if route.preference != 100 else ""
    return f"{core_of(route.by)} {route.med}{more}"


def core_of(neighbour: str) -> str:
    """Name of the core that a neighbour "s1c0in" is; the other switch is "other"."""
    if neighbour.startswith(OTHER):
        return OTHER
    server, _, rest = neighbour.removesuffix("in").removesuffix("out").partition("c")
    return f"{server}/{rest}"


def sessions(lab: Lab, seen: dict[str, Seen]) -> list[Session]:
    """Every session of switches and routers."""
    views = [each.view for each in seen.values()]
    views += [switches.view(lab, node) for node in switches.nodes(lab.wanted or Wanted()) if node not in seen]
    return [session for view in views for session in view.sessions]


# --- as it should be -------------------------------------------------------------------------------------------------------


def until_ready(lab: Lab, tell: Callable[[str], None], patience_s: float = READY_S) -> None:
    """Wait until everything is up, announced and in sync; Trouble that says what is not."""
    if lab.wanted is None or not lab.wanted.routed:
        return
    began, missing = time.monotonic(), ["nothing was asked yet"]
    while missing:
        missing = lacks(lab)
        if missing and time.monotonic() - began > patience_s:
            raise Trouble("the cluster does not come up", "; ".join(missing[:6]), f"krononat lab status --name {lab.name}")
        time.sleep(0.1 if missing else 0)
    tell(f"all sessions up, all shards announced and in sync after {time.monotonic() - began:.1f} s")


def lacks(lab: Lab) -> list[str]:
    """What is not as it should be, in sentences; nothing is wrong where the list is empty."""
    wanted, seen = lab.wanted or Wanted(), look(lab)
    found = [f"{each.node} has no session with {each.neighbour}" for each in sessions(lab, seen) if not each.up]
    owned = _owned(lab, wanted) if wanted.clustered else []
    for place in places(wanted, seen):
        found += _wrong(place, _has_backups(wanted)) + (strayed(place, owned) if wanted.clustered else [])
    return found or (_unsynced(wanted, owned) if _has_backups(wanted) else [])


def _has_backups(wanted: Wanted) -> bool:
    return wanted.clustered and wanted.backups and wanted.servers > 1


def _owned(lab: Lab, wanted: Wanted) -> list[Owned]:
    """What every core that answers says that it has the authority over."""
    found = []
    for core in cluster.cores(wanted):
        try:
            rows = client.rows(str(lab.socket_of(lab.label(core))), "shards")[1]
        except Trouble:
            continue
        found += [Owned(row["shard"], core, row["epoch"], row["in_sync"]) for row in rows if row["role"] == "active"]
    return found


def _wrong(row: Place, backups: bool) -> list[str]:
    found, ways = [], {row.outbound, row.inbound}
    if len(ways) > 1 or NOWHERE in ways:
        found.append(f"switch {row.switch} sends shard {row.shard} to {row.outbound} and back by {row.inbound}")
    if backups and not ("," in row.told_inside and "," in row.told_outside):
        found.append(f"switch {row.switch} knows no backup of shard {row.shard}")
    return found


def strayed(row: Place, owned: Iterable[Owned]) -> list[str]:
    """Whether the packets come to whoever has the authority, and not to a copy, which would have to hand them on."""
    having = max((each for each in owned if each.shard == row.shard), key=lambda each: each.epoch, default=None)
    if having is None:
        return [f"no core says that it has the authority over shard {row.shard}"]
    if row.outbound in (having.core, OTHER):  # the other switch has a row of its own
        return []
    return [f"switch {row.switch} sends shard {row.shard} to {row.outbound}, but {having.core} has the authority"]


def _unsynced(wanted: Wanted, owned: Iterable[Owned]) -> list[str]:
    synced = {each.shard for each in owned if each.synced}
    return [f"shard {shard} has no backup in sync" for shard in range(wanted.shards) if shard not in synced]
