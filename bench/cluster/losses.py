"""Where frames are lost in a laboratory: every counter of the kernel's and the cores' own that a frame can end in.

Programs lose some, too (that is how TCP learns what a path takes), so a place is where a datagram of the stream may have been
lost, not that it was.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from pathlib import Path

from bench.cluster.scene import Scene
from krononat import view
from krononat.cli.output import open_memory
from krononat.client import Trouble
from krononat.lab import cluster, namespaces

_SOFTNET = Path("/proc/net/softnet_stat")
_SOFTNET_DROPPED = 1  # column: frames for which the queue of a CPU had no room (net/core/net-procfs.c)


def lost(here: Scene) -> Counter[str]:
    """Frames lost until now, by place; of two answers the later one minus the earlier one is what was lost between."""
    told = Counter({"queues of the CPUs": _softnet()})
    for node, namespace in here.lab.namespace.items():
        for interface, ways in namespaces.counters(namespace).items():
            for way in ("rx", "tx"):
                told[f"{node} {interface} {way}"] = ways[way]["dropped"]
    for core in cluster.cores(here.wanted):
        with suppress(Trouble):  # it is dead, or frozen
            told.update(_of_core(here, core))
    return told


def _softnet() -> int:
    return sum(int(line.split()[_SOFTNET_DROPPED], 16) for line in _SOFTNET.read_text().splitlines())


def _of_core(here: Scene, core: str) -> Counter[str]:
    """What it dropped by verdict, and what its sockets had no room for."""
    told = Counter({f"{core} {row.reason}": row.packets for row in view.drops(open_memory(here.path(core)))})
    for port in here.lab.status(here.lab.label(core))["ports"]:
        for name, sockets in (("ring", port["sockets"]), ("control ring", port["control_sockets"])):
            told[f"{core} {port['interface']} {name} full"] = sockets["rx_ring_full"]
            told[f"{core} {port['interface']} {name}: no free frame"] = sockets["rx_dropped"]
        told[f"{core} {port['interface']} no socket"] = port["steering"]["no_socket"]
    return told
