"""What befalls a cluster whose switches route, and its end: `fail` and `heal`, one line of a table for each kind.

Nothing is written down about it: what is dead, stopped, cut or unplugged is seen (`broken`), also by another process later.
Links fail at the switch's end: it knows at once, and the other end loses its carrier.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from krononat.client import NOT_FOUND, Trouble
from krononat.lab import cluster, fabric, legs, namespaces, stores, switches
from krononat.lab.cluster import Wanted
from krononat.lab.topology import End, home
from routing.fabric import DOMAINS

if TYPE_CHECKING:
    from krononat.lab.laboratory import Lab

_GONE_S, _ROUTES_S, _LEARN_S = 5.0, 8.0, 0.5  # at most until sessions are up, and until their routes are in the kernel
OTHER, ROUTERS, CORES = "other", "routers", "cores"  # what a switch's ports lead to
STOPPED = "T"  # proc(5)


class Kind(NamedTuple):
    """A kind of failure; `names` are what it can happen to."""

    told: str
    names: Callable[[Wanted], tuple[str, ...]]
    fail: Callable[[Lab, str], Any]  # when it happened, where it takes a while to find what is to be broken
    heal: Callable[[Lab, str], object]


def fail(lab: Lab, kind: str, name: str) -> int:
    """Have it happen; when it did, ns of the monotonic clock. Trouble (exit 4) names what there is to break."""
    _check(lab, kind, name)
    began = time.monotonic_ns()
    struck = KINDS[kind].fail(lab, name)
    return struck if isinstance(struck, int) else began


def heal(lab: Lab, kind: str, name: str) -> None:
    """Undo it, as much as was done of it."""
    _check(lab, kind, name)
    KINDS[kind].heal(lab, name)


def heal_all(lab: Lab) -> list[str]:
    """Undo everything that is broken; what it was."""
    found = broken(lab)
    for kind, name in found:
        KINDS[kind].heal(lab, name)
    return [f"{kind} {name}" for kind, name in found]


def _check(lab: Lab, kind: str, name: str) -> None:
    if lab.wanted is None or not lab.wanted.routed:
        raise Trouble(f'the laboratory "{lab.name}" has no switches', "", "krononat lab up --tor bird", NOT_FOUND)
    there = KINDS[kind].names(lab.wanted)
    if name not in there:
        raise Trouble(f"no {kind} {name!r}", "", f"there are: {', '.join(there)}", NOT_FOUND)


# --- processes -------------------------------------------------------------------------------------------------------------


class Process(NamedTuple):
    """A process in a node."""

    number: int
    parent: int
    state: str  # one letter, proc(5)
    words: tuple[str, ...]


def processes(lab: Lab, node: str) -> list[Process]:
    """What runs in a node."""
    found = []
    for number in namespaces.processes(lab.namespace[node]):
        with contextlib.suppress(OSError):
            state, parent = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[:2]
            words = Path(f"/proc/{number}/cmdline").read_bytes().decode(errors="replace").split("\0")
            found.append(Process(number, int(parent), state, tuple(words)))
    return found


def of_core(lab: Lab, core: str) -> list[Process]:
    """A core's processes: its supervisor, and all that come from it; a worker that has lost its supervisor, too."""
    label = lab.label(core)
    there = processes(lab, home(label))
    roots = {each.number for each in there if "run" in each.words and str(lab.config_of(label)) in each.words}
    roots -= {each.number for each in there if "speaker" in each.words}
    roots |= {each.number for each in there if "krononat.standby" in each.words and core in each.words}
    while grown := {each.number for each in there if each.parent in roots} - roots:
        roots |= grown
    return [each for each in there if each.number in roots]


def speaking(lab: Lab, server: str, what: str) -> list[Process]:
    """Of a server's speaker: "speaker" itself, "exabgp", or the "helper" between ExaBGP and the cores."""
    there = processes(lab, server)
    fits: dict[str, Callable[[Process], bool]] = {
        "speaker": lambda each: "speaker" in each.words and "run" in each.words,
        "exabgp": lambda each: any("routing.speaker.launch" in word or word.endswith("exabgp") for word in each.words),
        "helper": lambda each: any("routing.helper" in word for word in each.words),
    }
    return [each for each in there if fits[what](each)]


def _kill(doomed: list[Process], wait: bool = True) -> int:
    began = _signal(doomed, signal.SIGKILL)
    deadline = time.monotonic() + _GONE_S
    while wait and any(_lives(each.number) for each in doomed) and time.monotonic() < deadline:
        time.sleep(0.002)
    return began


def _signal(processes: list[Process], number: signal.Signals) -> int:
    began = time.monotonic_ns()
    for each in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each.number, number)
    return began


def _lives(number: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    return False


def _kill_worker(lab: Lab, core: str) -> int:
    worker = lab.worker(lab.label(core))
    began = time.monotonic_ns()
    with contextlib.suppress(ProcessLookupError):
        os.kill(worker, signal.SIGKILL)
    return began


def _supervisors(lab: Lab, core: str) -> list[Process]:
    return [each for each in of_core(lab, core) if "krononat.standby" not in each.words]


def _start_core(lab: Lab, core: str) -> None:
    """As a service manager does; a worker that goes on by itself is taken over."""
    if not _supervisors(lab, core):
        lab.start_appliances(lab.label(core))


def _start_server(lab: Lab, server: str) -> None:
    if not speaking(lab, server, "speaker"):
        lab.start_speakers(server)
    wanted = lab.wanted or Wanted()
    dead = [core for core in cluster.cores(wanted) if cluster.node_of(core) == server and not _supervisors(lab, core)]
    if dead:
        lab.start_appliances(*(lab.label(core) for core in dead))


def _kill_room(lab: Lab, room: str) -> int:
    return _kill([each for server in _in_room(lab, room) for each in processes(lab, server)])


def _black_out(lab: Lab, room: str) -> int:
    """Nothing is closed, as nobody is left to close it: first its links are dead, then its processes."""
    began = time.monotonic_ns()
    _room_links(lab, room, "down")
    _kill_room(lab, room)
    return began


def _start_room(lab: Lab, room: str) -> None:
    """Its links first; cores whose servers start together."""
    _room_links(lab, room, "up")
    with ThreadPoolExecutor() as several:
        list(several.map(lambda server: _start_server(lab, server), _in_room(lab, room)))


def _in_room(lab: Lab, room: str) -> tuple[str, ...]:
    return cluster.servers_of(lab.wanted or Wanted(), room)


def _room_links(lab: Lab, room: str, state: str) -> None:
    """Every link of its servers, at the other end; node by node in one step."""
    servers, lines = _in_room(lab, room), dict[str, str]()
    for a, b in lab.topology.links:
        for own, far in ((a, b), (b, a)):
            if own.node in servers:
                lines[far.node] = lines.get(far.node, "") + f"link set {far.interface} {state}\n"
    for node, text in lines.items():
        namespaces.command("ip", "-n", lab.namespace[node], "-batch", "-", given=text)


def _rooms(wanted: Wanted) -> tuple[str, ...]:
    return cluster.ROOMS if wanted.rooms == 2 else ()


def _returns(lab: Lab, name: str) -> None:
    """Nothing to do: it is started anew by who looks after it."""


# --- links and switches ----------------------------------------------------------------------------------------------------


def _far_end(lab: Lab, name: str) -> End:
    """The end that a link fails at: the one that is not the named node's, "s1.in0" or "ain.other"."""
    a, b = next(link for link in lab.topology.links if name in (link[0].name, link[1].name))
    return b if a.name == name else a


def _link(lab: Lab, name: str, state: str) -> None:
    end = _far_end(lab, name)
    namespaces.command("ip", "-n", lab.namespace[end.node], "link", "set", end.interface, state)


def _ports(lab: Lab, name: str, state: str, *groups: str) -> None:
    """Set a switch's ports, group by group; both domains at once."""

    def of(node: str) -> None:
        ends = [end.interface for link in lab.topology.links for end in link if end.node == node]
        lines = [f"link set {end} {state}\n" for group in groups for end in ends if _group(end) == group]
        namespaces.command("ip", "-n", lab.namespace[node], "-batch", "-", given="".join(lines))

    with ThreadPoolExecutor() as several:
        list(several.map(of, _tor_nodes(lab, name)))


def _group(neighbour: str) -> str:
    """Who a port of a switch leads to, or a session of it: "other", "otherin"; "access", "core"; or a core."""
    return OTHER if neighbour.startswith(OTHER) else ROUTERS if neighbour in ("access", "core") else CORES


def _tor_nodes(lab: Lab, name: str) -> tuple[str, ...]:
    wanted = lab.wanted or Wanted()
    return tuple(dict.fromkeys(legs.node_of(name, domain, wanted.domains) for domain in DOMAINS))


def _kill_switch(lab: Lab, name: str) -> None:
    """All of it is without power: daemons and ports."""
    _isolate(lab, name)
    for node in _tor_nodes(lab, name):
        switches.stop_node(lab, node)


def _isolate(lab: Lab, name: str) -> None:
    """Its uplinks are gone; so it takes down the cores' ports, too ("uplink tracking"), as nothing can be sent on for them."""
    _ports(lab, name, "down", OTHER, ROUTERS, CORES)


def _start_switch(lab: Lab, name: str) -> None:
    """What uses it comes when it knows a way: routers after the other switch, the cores' ports last (a delay after a start)."""
    nodes = _tor_nodes(lab, name)
    for group in (OTHER, ROUTERS) if (lab.wanted or Wanted()).tors == 2 else (ROUTERS,):
        _ports(lab, name, "up", group)
        for node in nodes:
            _start_daemon(lab, node)
        deadline = time.monotonic() + _ROUTES_S
        while not all(_talks(lab, node, group) for node in nodes) and time.monotonic() < deadline:
            time.sleep(0.1)
    time.sleep(_LEARN_S)
    _ports(lab, name, "up", CORES)


def _talks(lab: Lab, node: str, group: str) -> bool:
    """Whether a switch's sessions with this group are up."""
    there = [each for each in switches.view(lab, node).sessions if _group(each.neighbour) == group]
    return bool(there) and all(each.up for each in there)


def _start_daemon(lab: Lab, node: str) -> None:
    if not switches.daemons(lab, node):
        switches.start_node(lab, node)


def _replication(lab: Lab, server: str, *words: str) -> None:
    namespaces.command("ip", "-n", lab.namespace["fabric"], "link", "set", server, *words)


def _other(lab: Lab, state: str) -> None:
    for domain in DOMAINS:
        _link(lab, f"{legs.node_of('b', domain, 2)}.other", state)


def _servers(wanted: Wanted) -> tuple[str, ...]:
    return tuple(f"s{n}" for n in range(1, wanted.servers + 1))


def _links(wanted: Wanted) -> tuple[str, ...]:
    drawn = fabric.topology(wanted, Path("/")).links
    return tuple(end.name for link in drawn for end in link if end.node.startswith("s") or end.interface == "other")


KINDS: dict[str, Kind] = {
    "worker": Kind(
        "kill -9 of a core's worker; its supervisor starts another one",
        cluster.cores,
        _kill_worker,
        _returns,
    ),
    "supervisor": Kind(
        "kill -9 of a core's supervisor; its worker forwards on, and `heal` starts another one, as a service manager does",
        cluster.cores,
        lambda lab, core: _kill(_supervisors(lab, core)),
        _start_core,
    ),
    "core": Kind(
        "kill -9 of all of a core",
        cluster.cores,
        lambda lab, core: _kill(of_core(lab, core)),
        _start_core,
    ),
    "server": Kind(
        "kill -9 of every process of a server at once",
        _servers,
        lambda lab, server: _kill(processes(lab, server)),
        _start_server,
    ),
    "room": Kind(
        "kill -9 of every process of all servers of a room at once; kernels close their connections",
        _rooms,
        _kill_room,
        _start_room,
    ),
    "blackout": Kind(
        "a room without power: links without carrier, no process, and nothing is closed",
        _rooms,
        _black_out,
        _start_room,
    ),
    "freeze": Kind(
        "SIGSTOP of all of a core: memory and connections stay, nothing answers",
        cluster.cores,
        lambda lab, core: _signal(of_core(lab, core), signal.SIGSTOP),
        lambda lab, core: _signal(of_core(lab, core), signal.SIGCONT),
    ),
    "link": Kind(
        "no carrier: a leg of a core (s1.in0), a server's replication (s1.fabric0), the link between switches (ain.other)",
        _links,
        lambda lab, name: _link(lab, name, "down"),
        lambda lab, name: _link(lab, name, "up"),
    ),
    "bgp": Kind(
        "kill -9 of a server's ExaBGP; the speaker starts it again",
        _servers,
        lambda lab, server: _kill(speaking(lab, server, "exabgp"), wait=False),
        _returns,
    ),
    "helper": Kind(
        "kill -9 of the process between ExaBGP and the cores; it comes back",
        _servers,
        lambda lab, server: _kill(speaking(lab, server, "helper"), wait=False),
        _returns,
    ),
    "speaker": Kind(
        "kill -9 of a server's speaker, ExaBGP and helper go with it; started again by `heal`, as a service manager does",
        _servers,
        lambda lab, server: _kill(speaking(lab, server, "speaker"), wait=False),
        lambda lab, server: None if speaking(lab, server, "speaker") else lab.start_speakers(server),
    ),
    "etcd": Kind(
        "kill -9 of the store of the map",
        lambda wanted: (stores.LABEL,) if wanted.etcd else (),
        lambda lab, name: stores.kill(lab),
        lambda lab, name: stores.start(lab),
    ),
    "tor": Kind("a switch without power", fabric.switches, _kill_switch, _start_switch),
    "daemon": Kind(
        "kill -9 of the routing daemons of a domain of a switch, or of a router",
        switches.nodes,
        switches.stop_node,
        _start_daemon,
    ),
    "isolate": Kind(
        "a switch with neither uplinks nor the other switch; it takes the cores' ports down, too",
        fabric.switches,
        _isolate,
        _start_switch,
    ),
    "partition": Kind(
        "a server cut off the replication network, or `switches` of each other",
        lambda wanted: (*_servers(wanted), *(("switches",) if wanted.tors == 2 else ())),
        lambda lab, name: _other(lab, "down") if name == "switches" else _replication(lab, name, "nomaster"),
        lambda lab, name: _other(lab, "up") if name == "switches" else _replication(lab, name, "master", "br0"),
    ),
}


# --- seen ------------------------------------------------------------------------------------------------------------------


def broken(lab: Lab) -> list[tuple[str, str]]:
    """Everything that is not as `up` made it: kind and name, as `heal` takes them."""
    found = dict.fromkeys([*_dark(lab), *_unplugged(lab), *_cut_off(lab), *_storeless(lab), *_dead(lab)])
    names = fabric.switches(lab.wanted or Wanted())
    wholes = {("tor", switch): _parts(lab, switch) for switch in names}
    wholes |= {("isolate", switch): {part for part in _parts(lab, switch) if part[0] == "link"} for switch in names}
    wholes["partition", "switches"] = {("link", f"{legs.node_of('b', domain, 2)}.other") for domain in DOMAINS}
    for whole, parts in wholes.items():
        if parts <= found.keys():
            found = dict.fromkeys([whole, *(each for each in found if each not in parts)])
    return list(found)


def _parts(lab: Lab, switch: str) -> set[tuple[str, str]]:
    """Everything that is broken where a switch has no power."""
    nodes = _tor_nodes(lab, switch)
    ends = [pair for a, b in lab.topology.links for pair in ((a, b), (b, a)) if pair[0].node in nodes]
    return {("daemon", node) for node in nodes} | {("link", far.name) for _, far in ends}


def _devices(lab: Lab, node: str) -> dict[str, dict[str, Any]]:
    told: list[dict[str, Any]] = json.loads(namespaces.command("ip", "-n", lab.namespace[node], "-json", "link", "show"))
    return {device["ifname"]: device for device in told}


def _dark(lab: Lab) -> Iterator[tuple[str, str]]:
    wanted = lab.wanted or Wanted()
    for node in switches.nodes(wanted):
        if not switches.daemons(lab, node):
            yield "daemon", node


def _storeless(lab: Lab) -> Iterator[tuple[str, str]]:
    if lab.wanted and lab.wanted.etcd and not stores.running(lab):
        yield "etcd", stores.LABEL


def _unplugged(lab: Lab) -> Iterator[tuple[str, str]]:
    nodes = {node: _devices(lab, node) for node in {*fabric.nodes(lab.wanted or Wanted()), "fabric"}}
    for a, b in lab.topology.links:
        for own, far in ((a, b), (b, a)):
            if own.node in nodes and "UP" not in nodes[own.node][own.interface]["flags"]:
                yield "link", far.name


def _cut_off(lab: Lab) -> Iterator[tuple[str, str]]:
    devices = _devices(lab, "fabric")
    for server in _servers(lab.wanted or Wanted()):
        if "master" not in devices[server]:
            yield "partition", server


def _dead(lab: Lab) -> Iterator[tuple[str, str]]:
    for core in cluster.cores(lab.wanted or Wanted()):
        there = of_core(lab, core)
        if there and not _supervisors(lab, core):
            yield "supervisor", core
        if not there:
            yield "server" if not processes(lab, cluster.node_of(core)) else "core", _named(lab, core)
        elif any(each.state == STOPPED for each in there):
            yield "freeze", core


def _named(lab: Lab, core: str) -> str:
    server = cluster.node_of(core)
    return core if processes(lab, server) else server
