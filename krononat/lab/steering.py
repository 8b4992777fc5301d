"""Which core gets the packets of which shard: rules and routes in the cluster's router, one route a shard and direction.

    outbound   rule: from the shard's subscribers, table 1000 + k     table: default via the core's inside leg
    inbound    main table: the shard's external prefix via the core's outside leg

`ip route replace` changes a route in one step: a packet meets the old one or the new one, never none. Both directions are moved
one by one, so every order can be tried. What no rule of a shard takes is dropped by the last one: no subscriber's packet leaves
untranslated. The cores' stations are permanent neighbours, as those of a router that talks BGP to them all the time are known.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import IO, Any, NamedTuple, cast

from krononat.client import NOT_FOUND, Trouble
from krononat.lab import cluster, namespaces
from krononat.lab.cluster import INSIDE, LEGS, Wanted
from krononat.lab.namespaces import command

OUTBOUND, INBOUND = "outbound", "inbound"
DIRECTIONS = (OUTBOUND, INBOUND)

_TABLE, _RULE = 1000, 1000  # of shard 0
_FLOOR = 1900
_CUT = 100  # rules of a partition come before all others
_ACCESS = ("c1", "c2", "users")  # devices of tor that subscribers' packets come in by


class Place(NamedTuple):
    """Where a shard's packets go."""

    shard: int
    outbound: str
    inbound: str


def prepare(namespace: Mapping[str, str], wanted: Wanted) -> None:
    """Rules, neighbours, and a first place for every shard: they go round the cores."""
    tor = namespace["tor"]
    # It stands on both sides of the cores: its own ICMP errors from outside come back translated, with its own address.
    command(*namespaces.inside(tor, ["sh", "-c", "echo 1 >/proc/sys/net/ipv4/conf/all/accept_local"]))
    lines = [f"rule add pref {_FLOOR} iif {device} from {INSIDE} blackhole" for device in _ACCESS]
    for shard in range(wanted.shards):
        table = f"from {cluster.subscribers_of(shard)} lookup {_TABLE + shard}"
        lines += [f"rule add pref {_RULE + shard} iif {device} {table}" for device in _ACCESS]
    for core in cluster.cores(wanted):
        lines += _neighbours(namespace[cluster.node_of(core)], core)
    for shard in range(wanted.shards):
        core = cluster.first_core(wanted, shard)
        lines += [line(shard, core, direction) for direction in DIRECTIONS]
    command("ip", "-n", tor, "-batch", "-", given="\n".join(lines) + "\n")


def _neighbours(server: str, core: str) -> list[str]:
    lines = []
    for interface, leg in (("inside0", cluster.inside_leg(core)), ("outside0", cluster.outside_leg(core))):
        told: list[dict[str, Any]] = json.loads(command("ip", "-n", server, "-json", "link", "show", interface))
        lines.append(f"neighbour replace {leg.address} lladdr {told[0]['address']} dev {leg.device} nud permanent")
    return lines


def line(shard: int, core: str, direction: str) -> str:
    """What is said to `ip` to move one direction of a shard."""
    if direction == OUTBOUND:
        leg = cluster.inside_leg(core)
        return f"route replace default via {leg.address} dev {leg.device} table {_TABLE + shard}"
    leg = cluster.outside_leg(core)
    return f"route replace {cluster.external_of(shard)} via {leg.address} dev {leg.device}"


def check(wanted: Wanted, shard: int, core: str) -> None:
    """Trouble (exit 4) where there is no such shard or core."""
    if not 0 <= shard < wanted.shards:
        raise Trouble(f"no shard {shard}", "", f"there are 0 to {wanted.shards - 1}", NOT_FOUND)
    if core not in cluster.cores(wanted):
        raise Trouble(f'no core "{core}"', "", f"there are: {', '.join(cluster.cores(wanted))}", NOT_FOUND)


def steer(tor: str, shard: int, core: str, directions: Sequence[str] = DIRECTIONS) -> None:
    """Move a shard's packets to a core, these directions in this order. `tor`: name of the router's namespace."""
    for direction in directions:
        command("ip", "-n", tor, *line(shard, core, direction).split())


def places(tor: str, wanted: Wanted) -> list[Place]:
    """Where every shard's packets go now, as the kernel of the router says."""
    inside = {str(cluster.inside_leg(core).address): core for core in cluster.cores(wanted)}
    outside = {str(cluster.outside_leg(core).address): core for core in cluster.cores(wanted)}
    told = {route["dst"]: route.get("gateway", "") for route in _routes(tor, "main")}
    found = []
    for shard in range(wanted.shards):
        outbound = next((route.get("gateway", "") for route in _routes(tor, str(_TABLE + shard))), "")
        inbound = told.get(str(cluster.external_of(shard)), "")
        found.append(Place(shard, inside.get(outbound, "nowhere"), outside.get(inbound, "nowhere")))
    return found


def _routes(tor: str, table: str) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = json.loads(command("ip", "-n", tor, "-json", "route", "show", "table", table) or "[]")
    return told


class Hand:
    """Moves shards at once: an `ip` that runs already and does what it is told line by line."""

    def __init__(self, tor: str) -> None:
        words = ["ip", "-n", tor, "-batch", "-"]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env={"PATH": namespaces.PATH})

    def steer(self, shards: Sequence[int], core: str, directions: Sequence[str] = DIRECTIONS) -> None:
        """Move these shards. Done a fraction of a millisecond after it returns; what went wrong is told at the end."""
        lines = [line(shard, core, direction) for direction in directions for shard in shards]
        pipe = cast(IO[bytes], self._process.stdin)
        pipe.write("".join(f"{each}\n" for each in lines).encode())
        pipe.flush()

    def __enter__(self) -> Hand:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        _, told = self._process.communicate(timeout=10)
        if self._process.returncode and kind is None:
            raise Trouble("steering failed", told.decode(errors="replace").strip())


# --- partitions -------------------------------------------------------------------------------------------------------------


def partition(namespace: Mapping[str, str], server: str, shunts: bool = True) -> None:
    """Cut a server off from the others, while its own subscribers' and the Internet's links stay.

    Its port leaves the fabric's bridge: its own link stays up, frames just get nowhere, as with a switch that lost its way.
    With `shunts` the router also drops what other cores' legs and its own have for each other.
    """
    command("ip", "-n", namespace["fabric"], "link", "set", server, "nomaster")
    if shunts:
        command("ip", "-n", namespace["tor"], "-batch", "-", given="\n".join(_cuts("add", server)) + "\n")


def heal(namespace: Mapping[str, str], server: str) -> None:
    """Undo `partition`, as much as was done of it."""
    command("ip", "-n", namespace["fabric"], "link", "set", server, "master", "br0")
    if _cut(namespace["tor"], server):
        command("ip", "-n", namespace["tor"], "-batch", "-", given="\n".join(_cuts("delete", server)) + "\n")


def _cuts(word: str, server: str) -> list[str]:
    legs = (cluster.inside_leg(f"{server}/0"), cluster.outside_leg(f"{server}/0"))
    lines = []
    for leg in legs:
        for network in LEGS:
            lines.append(f"rule {word} pref {_preference(server)} from {leg.address} to {network} blackhole")
            lines.append(f"rule {word} pref {_preference(server)} from {network} to {leg.address} blackhole")
    return lines


def _preference(server: str) -> int:
    return _CUT + int(server.removeprefix("s"))


def _cut(tor: str, server: str) -> bool:
    rules: list[dict[str, Any]] = json.loads(command("ip", "-n", tor, "-json", "rule", "show"))
    return any(rule.get("priority") == _preference(server) for rule in rules)
