"""Where frames are lost in a laboratory: every counter of the kernel's and the cores' own that a frame can end in.

With them go BFD sessions that fell: their routes went as well, and what came meanwhile may have ended in a blackhole route.

Programs lose some, too (that is how TCP learns what a path takes), so a place is where a datagram of the stream may have been
lost, not that it was.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from pathlib import Path

from bench.cluster.scene import Scene
from krononat import client, view
from krononat.cli.output import open_memory
from krononat.client import Trouble
from krononat.lab import cluster, namespaces

_SOFTNET = Path("/proc/net/softnet_stat")
_STATISTICS = Path("/proc/net/stat")  # of all namespaces together, a line for each CPU (net/ipv4/route.c, net/core/neighbour.c)
_NOWHERE = (
    ("no route, or a blackhole", "rt_cache", "in_no_route"),
    ("neighbours who do not answer", "arp_cache", "unresolved_discards"),
    ("neighbours who do not answer (IPv6)", "ndisc_cache", "unresolved_discards"),
)
_SOFTNET_DROPPED = 1  # column: frames for which the queue of a CPU had no room (net/core/net-procfs.c)


def lost(here: Scene) -> Counter[str]:
    """Frames lost until now, by place; of two answers the later one minus the earlier one is what was lost between."""
    told = Counter({"queues of the CPUs": _softnet()})
    told.update({place: statistic(table, column) for place, table, column in _NOWHERE})
    for node, namespace in here.lab.namespace.items():
        for interface, ways in namespaces.counters(namespace).items():
            for way in ("rx", "tx"):
                told[f"{node} {interface} {way}"] = ways[way]["dropped"]
    for core in cluster.cores(here.wanted):
        with suppress(Trouble):  # it is dead, or frozen
            told.update(_of_core(here, core))
    return told


def told(places: Counter[str], still_ms: float) -> str:
    """The places that lost most, and for how long a CPU stood still, in words."""
    most = ", ".join(f"{place} {count}" for place, count in places.most_common(6))
    still = f"; a CPU stood still for {still_ms:.0f} ms" if still_ms else ""
    return f"of all frames: {most or 'none'}{still}"


def _softnet() -> int:
    return sum(int(line.split()[_SOFTNET_DROPPED], 16) for line in _SOFTNET.read_text().splitlines())


def statistic(table: str, column: str) -> int:
    """A column of one of the kernel's tables, all CPUs together."""
    names, *rows = (line.split() for line in (_STATISTICS / table).read_text().splitlines())
    return sum(int(row[names.index(column)], 16) for row in rows)


def _of_core(here: Scene, core: str) -> Counter[str]:
    """What it dropped by verdict, and what its sockets had no room for."""
    told = Counter({f"{core} {row.reason}": row.packets for row in view.drops(open_memory(here.path(core)))})
    told[f"{core} BFD sessions"] = sum(row["flaps"] for row in client.ask(here.path(core), {"do": "bfd"})["bfd"])
    for port in here.lab.status(here.lab.label(core))["ports"]:
        for name, sockets in (("ring", port["sockets"]), ("control ring", port["control_sockets"])):
            told[f"{core} {port['interface']} {name} full"] = sockets["rx_ring_full"]
            told[f"{core} {port['interface']} {name}: no free frame"] = sockets["rx_dropped"]
        told[f"{core} {port['interface']} no socket"] = port["steering"]["no_socket"]
    return told
