"""What may happen to a cluster whose switches route: one line of a table each, with what its users may notice of it.

`whose` names the core whose shards are hit; what happens to others is measured, too, and must be nothing. `act` returns when it
has happened; `lasts_s` later `undo` sets right what does not come back by itself.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple

from bench import veths
from bench.cluster.scene import OUR_CPU, Scene, until
from krononat import client
from krononat.cli import moves
from krononat.client import Trouble
from krononat.lab import chaos, cluster, legs, stores
from krononat.lab.laboratory import KRONONAT
from routing.fabric import INSIDE, OUTSIDE
from routing.speaker import ask as speaker

OUTAGE_MS = 20.0  # of a hard failure that is told, by closed connections or a lost carrier
SILENT_MS = {"bird": 200.0, "frr": 300.0}  # of one that only BFD notices, at 50 ms x 3
ROUTING_MS = 50.0  # of one shard's move
RESTART_MS = {"bird": 1000.0, "frr": None}  # of the only switch's daemon
_MOVE_S, _STORE_S = 60.0, 20.0
_A = legs.LETTERS[0]
_FROZEN_S, _CUT_S, _GONE_S = 2.0, 4.0, 3.0
CORE, SERVER, ALL = "core", "server", "all"  # whose shards are hit: the core's, those of all its server's cores, everybody's


class Happening(NamedTuple):
    """One of them. Goals that are None are not set: what is seen is told."""

    name: str
    told: str
    whose: Callable[[Scene], str]
    act: Callable[[Scene, str], int | None]  # when it happened, ns, where to find what is hit took a while
    undo: Callable[[Scene, str], None]
    lost: float | None = None
    outage_ms: float | None = None
    hits: str = CORE
    routing_ms: float | None = None
    lasts_s: float = 0.0  # until it is undone
    takes_s: float = 0.0  # beyond what others take
    counts: Callable[[Scene, str], dict[str, float]] = lambda here, core: {}  # its own figures: what they grow by meanwhile
    goals: Mapping[str, float] = MappingProxyType({})  # of those


def _nothing(here: Scene, core: str) -> None:
    """It comes back by itself."""


def _owner(here: Scene) -> str:
    return here.owner(0)


# --- graceful ---------------------------------------------------------------------------------------------------------------


def move(here: Scene, source: str, shard: int, target: str) -> None:
    """`krononat shard migrate`: routes follow by themselves."""
    path = here.path(source)
    moves.watch(path, moves.begin(path, shard, target), _MOVE_S)


def _migrate(here: Scene, core: str) -> None:
    """To a core that has nothing of it yet."""
    backup = here.shard(core)["passive"]
    others = [name for name in cluster.cores(here.wanted) if cluster.node_of(name) not in _servers(core, backup)]
    move(here, core, 0, (others or [backup])[0])


def _swap(here: Scene, core: str) -> None:
    move(here, core, 0, here.shard(core)["passive"])


def _servers(*cores: str) -> set[str]:
    return {cluster.node_of(core) for core in cores}


def operate(here: Scene, *words: str) -> None:
    """A command of ours, as an operator gives it on a server."""
    lab = here.lab
    done = lab.run("s1", *KRONONAT, *words, "--socket", str(lab.folder), timeout_s=4 * _MOVE_S)
    if done.returncode:
        raise Trouble(f"krononat {' '.join(words)} failed", done.stderr.strip()[-500:])


def _drain(here: Scene, core: str) -> None:
    operate(here, "server", "drain", cluster.node_of(core), "--yes")


def _undrain_all(here: Scene, core: str) -> None:
    for server in sorted({cluster.node_of(name) for name in cluster.cores(here.wanted)}):
        operate(here, "server", "undrain", server, "--yes")


def _rebalance(here: Scene, core: str) -> None:
    operate(here, "shard", "rebalance", "--yes")


# --- hard -------------------------------------------------------------------------------------------------------------------


def _fails(kind: str, named: Callable[[str], str]) -> Callable[[Scene, str], int]:
    return lambda here, core: chaos.fail(here.lab, kind, named(core))


def _heals(kind: str, named: Callable[[str], str]) -> Callable[[Scene, str], None]:
    return lambda here, core: chaos.heal(here.lab, kind, named(core))


def _core(core: str) -> str:
    return core


def _leg(core: str) -> str:
    """Its inside leg, at the first switch."""
    return f"{cluster.node_of(core)}.{legs.leg(core, legs.LETTERS[0], INSIDE).device}"


def _outside_leg(core: str) -> str:
    return f"{cluster.node_of(core)}.{legs.leg(core, legs.LETTERS[0], OUTSIDE).device}"


def _inside_switch(here: Scene) -> str:
    wanted = here.wanted
    return legs.node_of(legs.LETTERS[0], INSIDE, wanted.domains)


def _restart(here: Scene, core: str) -> None:
    chaos.fail(here.lab, "daemon", _inside_switch(here))
    chaos.heal(here.lab, "daemon", _inside_switch(here))


def _hard(name: str, told: str, kind: str, named: Callable[[str], str], lasts_s: float, outage_ms: float) -> Happening:
    return Happening(name, told, _owner, _fails(kind, named), _heals(kind, named), None, outage_ms, lasts_s=lasts_s)


def _harmless(name: str, told: str, kind: str) -> Happening:
    return Happening(name, told, _owner, _fails(kind, cluster.node_of), _heals(kind, cluster.node_of), 0.0, lasts_s=1.0)


def graceful() -> tuple[Happening, ...]:
    """What an operator does."""
    return (
        Happening(
            "migrate", "a shard moves to a core that had no copy", _owner, _migrate, _nothing, 0.0, routing_ms=ROUTING_MS
        ),
        Happening("swap", "a shard moves to its backup", _owner, _swap, _nothing, 0.0, routing_ms=ROUTING_MS),
        Happening("drain", "all shards move off a server", _owner, _drain, _nothing, 0.0),
        Happening("undrain", "all shards move back to where they belong", _owner, _undrain_all, _nothing, 0.0),
        Happening("rebalance", "the load is spread anew", _owner, _rebalance, _undrain_all, 0.0),
    )


def hard(tor: str) -> tuple[Happening, ...]:
    """What nobody asked for."""
    server = cluster.node_of
    return (
        _hard("worker", "kill -9 of a core's worker, without a spare", "worker", _core, 0.0, OUTAGE_MS),
        _hard("server", "kill -9 of every process of a server at once", "server", server, 2.0, OUTAGE_MS)._replace(hits=SERVER),
        _hard("link", "a core's inside leg loses its carrier", "link", _leg, 2.0, OUTAGE_MS),
        _hard("outside", "a core's outside leg loses its carrier", "link", _outside_leg, 2.0, OUTAGE_MS),
        _hard("freeze", "a core is stopped: nothing is closed, nothing answers", "freeze", _core, _FROZEN_S, SILENT_MS[tor]),
    )


def harmless(tor: str) -> tuple[Happening, ...]:
    """What only control has to do with."""
    cut = Happening(
        "partition", "a server is cut off the others", _owner,
        _fails("partition", cluster.node_of), _heals("partition", cluster.node_of), 0.0, lasts_s=_CUT_S,
    )  # fmt: skip
    restart = Happening(
        "switch",
        "the routing daemon of the only switch is killed and started again",
        _owner,
        _restart,
        _nothing,
        None,
        RESTART_MS[tor],
        ALL,
    )
    supervisor = Happening(
        "supervisor", "kill -9 of a core's supervisor, and another one some seconds later", _owner,
        _fails("supervisor", _core), _heals("supervisor", _core), 0.0, lasts_s=_GONE_S,
    )  # fmt: skip
    return (
        supervisor,
        _harmless("exabgp", "kill -9 of a server's ExaBGP", "bgp"),
        _harmless("helper", "kill -9 of the helper between ExaBGP and the cores", "helper"),
        _harmless("speaker", "kill -9 of a server's speaker", "speaker"),
        cut,
        restart,
    )


def stored() -> tuple[Happening, ...]:
    """What befalls the store of the map, where that is etcd."""
    return (Happening("etcd", "the store of the map is killed, and started again", _owner, _lose_store, _find_store, 0.0),)


def _lose_store(here: Scene, core: str) -> int:
    """Every core says so, and goes on by the map that it has; a move needs a right that the store gives: refused."""
    began = chaos.fail(here.lab, "etcd", stores.LABEL)
    until(lambda: not any(_reachable(here)), "nobody says that the store of the map is gone", _STORE_S, 0.1)
    try:
        operate(here, "shard", "swap", "0", "--yes")
    except Trouble as refused:
        if "the map cannot be changed now" not in refused.why:
            raise
        return began
    raise Trouble("a shard was moved while the store of the map was away", "another one might have had the right to move it")


def _find_store(here: Scene, core: str) -> None:
    chaos.heal(here.lab, "etcd", stores.LABEL)
    until(lambda: all(_reachable(here)), "the store of the map is back, and not everybody has seen it", _STORE_S, 0.1)


def _reachable(here: Scene) -> list[bool]:
    """What each core says of the store."""
    return [bool(client.ask(here.path(core), {"do": "map"})["map"]["reachable"]) for core in cluster.cores(here.wanted)]


# --- two switches -----------------------------------------------------------------------------------------------------------


def _torn(here: Scene, core: str) -> int:
    """A switch is cut off, and then the servers of each other: all that is left to them is the other switch."""
    began = chaos.fail(here.lab, "isolate", _A)
    time.sleep(_CUT_S)
    chaos.fail(here.lab, "partition", cluster.node_of(core))
    time.sleep(_CUT_S)
    _one_authority(here)
    return began


def _one_authority(here: Scene) -> None:
    """Trouble where a shard has another number of authorities."""
    for shard in range(here.wanted.shards):
        found = here.authorities(shard)
        if len(found) != 1:
            raise Trouble(f"shard {shard} has {len(found)} authorities", ", ".join(found))


def _mend(here: Scene, core: str) -> None:
    chaos.heal(here.lab, "partition", cluster.node_of(core))
    chaos.heal(here.lab, "isolate", _A)


def _of_switches(name: str, told: str, kind: str, struck: str, lasts_s: float, goals: tuple[float | None, ...]) -> Happening:
    lost, outage_ms = goals
    acts = _fails(kind, lambda core: struck), _heals(kind, lambda core: struck)
    return Happening(name, told, _owner, *acts, lost, outage_ms, ALL, lasts_s=lasts_s)


def twofold() -> tuple[Happening, ...]:
    """What befalls one of two switches, or what is between them; every shard uses both."""
    inside = legs.node_of(_A, INSIDE, 2)
    hard, harmless = (None, OUTAGE_MS), (0.0, None)
    return (
        _of_switches("tor", "a switch loses its power", "tor", _A, _CUT_S, hard),
        _of_switches("isolate", "a switch loses its uplinks and the other switch", "isolate", _A, _CUT_S, hard),
        _of_switches("daemon", "the routing daemon of a domain is killed and started again", "daemon", inside, 1.0, harmless),
        _of_switches("between", "the link between the switches is cut", "partition", "switches", _CUT_S, harmless),
        Happening("torn", "a switch is cut off, then a server's replication", _owner, _torn, _mend, None, OUTAGE_MS, ALL,
                  takes_s=2 * _CUT_S),
    )  # fmt: skip


# --- overload ---------------------------------------------------------------------------------------------------------------


_TRY_S, _TIMES = 3.0, 2.0
_BESIDE = 5  # processes that have as much of the core's CPU: else one CPU could not send twice what another one takes
_NOBODY = 2048  # subscribers from this one on of a shard are nobody's but the flood's


def _flood(here: Scene, core: str, rate: float, seconds: float) -> None:
    """Datagrams of shard 0 out of the inside switch's port to its core, from the generator's CPU; returns when it is over."""
    leg = legs.leg(core, _A, INSIDE)
    station = veths.mac(here.lab.namespace[cluster.node_of(core)], leg.device)
    first = cluster.subscribers_of(0).network_address + _NOBODY
    told = (leg.port, station, str(first), str(int(rate)), str(seconds), str(OUR_CPU))
    done = here.lab.run(leg.node, sys.executable, "-m", "bench.cluster.flood", *told, timeout_s=seconds + _MOVE_S)
    if done.returncode:
        raise Trouble("the flood has failed", done.stderr.strip()[-500:])


@contextmanager
def _busy(cpu: int, processes: int) -> Iterator[None]:
    """So many processes compute on a CPU and do nothing else: what is left for others is a share of it."""
    pinned = f"import os; os.sched_setaffinity(0, {{{cpu}}})"
    line = f"{pinned}; from krononat import promptness; assert promptness.go_first()\nwhile True: pass"
    started = [subprocess.Popen([sys.executable, "-c", line]) for _ in range(processes)]
    try:
        yield
        if any(process.poll() is not None for process in started):
            raise Trouble("nobody shared the core's CPU", "who was to compute there has ended; its reason stands above")
    finally:
        for process in started:
            process.kill()
            process.wait()


def _capacity(here: Scene, core: str) -> float:
    """Packets a second that a core takes when it gets as many as can be sent."""
    before = _counters(here, core)["forwarded"]
    _flood(here, core, 0, _TRY_S)
    return (_counters(here, core)["forwarded"] - before) / _TRY_S


def _counters(here: Scene, core: str) -> dict[str, float]:
    """Of a core and of its server's sessions."""
    told = here.lab.status(here.lab.label(core))
    bfd = client.ask(here.path(core), {"do": "bfd"})["bfd"]
    bgp = speaker.ask(str(here.lab.folder / f"{cluster.node_of(core)}.bgp"), "sessions")[0]
    return {
        "forwarded": told["packets"]["forward"],
        "ring_full": sum(port["sockets"]["rx_ring_full"] for port in told["ports"]),
        "control_ring_full": sum(port["control_sockets"]["rx_ring_full"] for port in told["ports"]),
        "bfd_downs": sum(row["flaps"] for row in bfd),
        "bgp_downs": sum(row["ups"] for row in bgp) + sum(not row["up"] for row in bgp),
        "promotions": sum(shard["epoch"] for shard in _shards(here)),
    }


def _shards(here: Scene) -> list[dict[str, Any]]:
    """Every shard as its authority has it."""
    return [here.shard(here.owner(shard), shard) for shard in range(here.wanted.shards)]


def overload(seconds: float) -> Happening:
    """Twice what a core can take."""

    def act(here: Scene, core: str) -> None:
        with _busy(cluster.cpu_of(here.wanted, core), _BESIDE):
            _flood(here, core, _TIMES * _capacity(here, core), seconds)

    goals = {"control_ring_full": 0, "bfd_downs": 0, "bgp_downs": 0, "promotions": 0}
    return Happening(
        "overload", "a core gets twice what it can take", _owner, act, _nothing, takes_s=seconds, counts=_counters, goals=goals
    )
