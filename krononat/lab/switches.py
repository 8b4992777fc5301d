"""The daemons of switches and routers: written down, started, asked, and ended by number.

BIRD is one process a namespace. FRR is four: zebra has the kernel's tables, the others tell it what they want. Each namespace
has a folder of its own for sockets and numbers; nothing of the system's FRR or BIRD is read or touched.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krononat.client import Trouble
from krononat.lab import fabric, namespaces, routers, seen
from krononat.lab.cluster import Wanted
from krononat.lab.seen import Session, View
from routing import bird, frr
from routing.fabric import Instance, instance, rules

if TYPE_CHECKING:
    from krononat.lab.laboratory import Lab

FRR_FOLDER = Path("/usr/lib/frr")
PATIENCE_S = 20.0
_HURRIED = ("nice", "-n", "-15")  # a switch has a CPU of its own for its daemons; here they share what all servers run on


def programs(wanted: Wanted) -> tuple[str, ...]:
    """What must be installed."""
    if not wanted.routed:
        return ()
    more = ("vtysh", *(str(FRR_FOLDER / daemon) for daemon in frr.DAEMONS)) if wanted.tor == "frr" else ()
    return ("bird", "birdc", *more)


def nodes(wanted: Wanted) -> tuple[str, ...]:
    """Namespaces with such daemons: those of the switches, and the routers."""
    return (*fabric.nodes(wanted), *routers.NODES)


def is_frr(wanted: Wanted, node: str) -> bool:
    """Whether FRR is what runs in a node; else it is BIRD."""
    return wanted.tor == "frr" and node not in routers.NODES


def instance_of(wanted: Wanted, node: str) -> Instance:
    """The domain of a switch that a node is."""
    return instance(*fabric.node_fabrics(wanted)[node])


# --- up and down -----------------------------------------------------------------------------------------------------------


def start(lab: Lab) -> None:
    """Rules first, so that no packet finds the floor missing; then all daemons."""
    wanted = _wanted(lab)
    for node in fabric.nodes(wanted):
        for version in (4, 6) if wanted.six else (4,):
            lines = rules(fabric.value(wanted), instance_of(wanted, node), version)
            given = "".join(f"{line}\n" for line in lines)
            namespaces.command("ip", f"-{version}", "-n", lab.namespace[node], "-batch", "-", given=given)
        if wanted.domains == 1:
            _set(lab, node, "conf/all/accept_local", 1)  # its own ICMP errors come back translated, with its own address
    for node in routers.NODES:
        _set(lab, node, "fib_multipath_hash_policy", 1)  # flow by flow
    for node in nodes(wanted):
        start_node(lab, node)


def start_node(lab: Lab, node: str) -> None:
    """Write the configuration of one node, and start its daemons; returns when they can be asked."""
    if is_frr(_wanted(lab), node):
        _start_frr(lab, node)
    else:
        _start_bird(lab, node)


def stop_node(lab: Lab, node: str) -> list[int]:
    """`kill -9` of the daemons of a node, as a crash is; their numbers."""
    killed = daemons(lab, node)
    for number in killed:
        os.kill(number, signal.SIGKILL)
    return killed


def daemons(lab: Lab, node: str) -> list[int]:
    """Process numbers of the daemons that run in a node."""
    names = {"bird", *frr.DAEMONS}
    running = namespaces.processes(lab.namespace[node])
    return [number for number in running if namespaces.program(number) in names]


def _set(lab: Lab, node: str, key: str, value: int) -> None:
    path = f"/proc/sys/net/ipv4/{key}"
    namespaces.command(*namespaces.inside(lab.namespace[node], ["sh", "-c", f"echo {value} >{path}"]))


def _start_bird(lab: Lab, node: str) -> None:
    wanted, config = _wanted(lab), lab.folder / f"{node}.bird"
    is_router = node in routers.NODES
    config.write_text(
        routers.render(wanted, node) if is_router else bird.render(fabric.value(wanted), instance_of(wanted, node))
    )
    socket = _socket(lab, node)
    socket.unlink(missing_ok=True)
    process = lab.start(node, f"bird-{node}", (*_HURRIED, "bird", "-f", "-c", str(config), "-s", str(socket)))
    _wait(lab, f"bird-{node}", process, socket)


def _start_frr(lab: Lab, node: str) -> None:
    wanted, folder = _wanted(lab), _folder(lab, node)
    folder.mkdir(exist_ok=True)
    api = folder / "zserv.api"
    api.unlink(missing_ok=True)
    for daemon, text in frr.files(fabric.value(wanted), instance_of(wanted, node)).items():
        (folder / f"{daemon}.conf").write_text(text)
        words = [str(FRR_FOLDER / daemon), "-u", "root", "-g", "frrvty", "-z", str(api), "-f", str(folder / f"{daemon}.conf")]
        words += ["-i", str(folder / f"{daemon}.pid"), "--vty_socket", str(folder), "-P", "0", "--log", "stdout"]
        words += ["--bfdctl", str(folder / "bfdd.sock")] if daemon == "bfdd" else []
        (folder / f"{daemon}.vty").unlink(missing_ok=True)
        process = lab.start(node, f"{daemon}-{node}", (*_HURRIED, *words))
        _wait(lab, f"{daemon}-{node}", process, folder / f"{daemon}.vty")


def _wait(lab: Lab, label: str, process: subprocess.Popen[bytes], socket: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not socket.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            told = lab.log(label).read_text(errors="replace")[-2000:]
            raise Trouble(f"{label} did not start", told.strip())
        time.sleep(0.01)


def _wanted(lab: Lab) -> Wanted:
    if lab.wanted is None or not lab.wanted.routed:
        raise Trouble(f'the laboratory "{lab.name}" has no switches', "", "krononat lab up --tor bird")
    return lab.wanted


def _socket(lab: Lab, node: str) -> Path:
    return lab.folder / f"{node}.ctl"


def _folder(lab: Lab, node: str) -> Path:
    return lab.folder / f"{node}.frr"


# --- asked -----------------------------------------------------------------------------------------------------------------


def ask_bird(lab: Lab, node: str, *words: str) -> str:
    """What BIRD of a node answers; empty where it does not run."""
    done = subprocess.run(
        ["birdc", "-r", "-s", str(_socket(lab, node)), *words],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": namespaces.PATH},
        check=False,
    )
    return done.stdout if done.returncode == 0 else ""


def ask_frr(lab: Lab, node: str, words: str) -> Any:
    """What FRR of a node answers in JSON; empty where it does not run."""
    told = ["vtysh", "--vty_socket", str(_folder(lab, node)), "-c", f"{words} json"]
    done = subprocess.run(told, capture_output=True, text=True, env={**os.environ, "PATH": namespaces.PATH}, check=False)
    try:
        return json.loads(done.stdout)
    except ValueError:
        return {}


def view(lab: Lab, node: str) -> View:
    """What a switch or router says of its sessions and of the routes that it was told."""
    if is_frr(_wanted(lab), node):
        names = {str(each.address): each.name for each in instance_of(_wanted(lab), node).neighbours}
        asked = [ask_frr(lab, node, words) for words in ("show bgp summary", "show bfd peers", "show bgp ipv4 unicast")]
        return seen.of_frr(node, names, *asked)
    words = (("show", "protocols"), ("show", "bfd", "sessions"), ("show", "route", "table", "master4", "all"))
    return seen.of_bird(node, *(ask_bird(lab, node, *each) for each in words))


def sessions(lab: Lab) -> list[Session]:
    """Every BGP session of every switch and router."""
    return [session for node in nodes(_wanted(lab)) for session in view(lab, node).sessions]
