"""Every command that the laboratory gives to the kernel: namespaces, veths, bridges, routes, offloads.

All through `ip` and `ethtool`, so that what is done here can be read and repeated by hand.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from krononat.client import NO_PRIVILEGE, Trouble
from krononat.lab.topology import End, Topology

# `krononat` itself first; /usr/sbin is where a plain `su` does not look.
PATH = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "/usr/bin:/bin"), "/usr/sbin", "/sbin"))


_USUAL_MTU = 1500


def need(*programs: str) -> None:
    """Say at once, before anything is built, which programs are missing."""
    missing = [program for program in programs if shutil.which(program, path=PATH) is None]
    if missing:
        raise Trouble("the laboratory lacks programs", f"not installed: {', '.join(missing)}", "./setup.sh installs them")
    if os.geteuid() != 0:
        raise Trouble("you may not build a laboratory", "network namespaces need root", "try again as root", NO_PRIVILEGE)


def command(*words: str, given: str | None = None) -> str:
    """Run to the end and hand back what it printed; Trouble with its complaint where it fails."""
    done = subprocess.run(words, input=given, capture_output=True, text=True, env={**os.environ, "PATH": PATH}, check=False)
    if done.returncode:
        raise Trouble(f"this failed: {' '.join(words)}", (done.stderr or done.stdout).strip())
    return done.stdout


def inside(namespace: str, words: Sequence[str]) -> list[str]:
    """The command line that runs `words` in a namespace; `ip` replaces itself, so the process keeps its number."""
    return ["ip", "netns", "exec", namespace, *words]


def existing() -> set[str]:
    """Names of all network namespaces of this machine."""
    folder = Path("/run/netns")
    return {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()


def processes(namespace: str) -> list[int]:
    """Numbers of the processes that run in a namespace, whoever started them."""
    return [int(word) for word in command("ip", "netns", "pids", namespace).split()]


def programs(namespace: str) -> list[str]:
    """Names of the programs that run in a namespace, each once."""
    names = dict.fromkeys(program(process) for process in processes(namespace))
    return [name for name in names if name]


def program(process: int) -> str:
    """Name of the program that a process runs; empty where it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/comm").read_text().strip()
    return ""


def addresses(namespace: str) -> list[str]:
    """IPv4 addresses of a namespace with their lengths, loopback's left out."""
    told: list[dict[str, Any]] = json.loads(command("ip", "-n", namespace, "-json", "-4", "address", "show"))
    found = [each for link in told if link.get("ifname") != "lo" for each in link.get("addr_info", [])]
    return [f"{each['local']}/{each['prefixlen']}" for each in found]


def delete(names: Iterable[str]) -> None:
    """Delete those of the namespaces that exist; their links go with them."""
    for name in sorted(set(names) & existing()):
        command("ip", "netns", "del", name)


# The kernel's index of the first device. All have different ones: a device whose peer has the same index, in another namespace,
# looks to the kernel like one without a peer, and it may tell of a lost carrier up to a second late (net/core/link_watch.c).
_FIRST_INDEX = 100


def build(topology: Topology, namespace: dict[str, str]) -> None:
    """Make the namespaces and everything in them except the appliances' addresses, which are their own business."""
    for name in namespace.values():
        command("ip", "netns", "add", name)
    for number, (a, b) in enumerate(topology.links):
        own, far = (str(_FIRST_INDEX + 2 * number + end) for end in (0, 1))
        peer = ("peer", "name", b.interface, "index", far, "netns", namespace[b.node])
        command("ip", "link", "add", a.interface, "index", own, "netns", namespace[a.node], "type", "veth", *peer)
    for node, name in namespace.items():
        _quiet(name, forwards=node in topology.routers, six=bool(topology.six))
        command("ip", "-n", name, "-batch", "-", given="\n".join(_setting_up(topology, node)) + "\n")
    for a, b in topology.links:
        for end in (a, b):
            _checksums(namespace[end.node], end)


def _setting_up(topology: Topology, node: str) -> list[str]:
    lines = ["link set lo up"]
    ends = [end for link in topology.links for end in link if end.node == node]
    if node in topology.bridges:
        lines += ["link add br0 type bridge", "link set br0 up"]
        address = topology.bridges[node]
        lines += [f"address add {address} dev br0"] if address else []
    for end in ends:
        lines += [f"link set {end.interface} master br0"] if end.bridged else []
        lines += [f"address add {end.address} dev {end.interface}"] if end.address else []
        lines += [f"link set {end.interface} mtu {end.mtu}"] if end.mtu != _USUAL_MTU else []
        lines += [] if end.unaddressed else [f"link set {end.interface} up"]
    lines += [f"address add {address} dev {interface} nodad" for name, interface, address in topology.six if name == node]
    return lines + [f"route add {to} via {via}" for name, to, via in (*topology.routes, *topology.routes6) if name == node]


def _quiet(namespace: str, forwards: bool, six: bool) -> None:
    # No IPv6 but where it is wanted: its router solicitations would only blur the counters.
    # Many connections at once need a long queue.
    settings = {
        "ipv6/conf/all/disable_ipv6": int(not six),
        "ipv6/conf/default/disable_ipv6": int(not six),
        "ipv6/conf/all/forwarding": int(six and forwards),
        "ipv4/ip_forward": int(forwards),
        "ipv4/tcp_max_syn_backlog": 8192,
        "core/somaxconn": 8192,
    }
    paths = {f"/proc/sys/net/{key}": value for key, value in settings.items()}  # without IPv6 in the kernel some do not exist
    script = "; ".join(f"test ! -e {path} || echo {value} >{path}" for path, value in paths.items())
    command(*inside(namespace, ["sh", "-ec", script]))


def _checksums(namespace: str, end: End) -> None:
    if not end.partial:
        command(*inside(namespace, ["ethtool", "--offload", end.interface, "tx", "off"]))


def counters(namespace: str) -> dict[str, dict[str, dict[str, int]]]:
    """Kernel counters of every interface: name -> rx/tx -> packets, bytes, errors, dropped."""
    told: list[dict[str, Any]] = json.loads(command("ip", "-n", namespace, "-json", "-s", "link", "show"))
    return {link["ifname"]: link["stats64"] for link in told}


def forwarded_by_kernel(namespace: str) -> int:
    """ForwDatagrams of a namespace (RFC 4293): IPv4 packets that its kernel, not the appliance, has forwarded."""
    text = command(*inside(namespace, ["cat", "/proc/net/snmp"]))
    names, values = (line.split()[1:] for line in text.splitlines() if line.startswith("Ip:"))
    return int(dict(zip(names, values, strict=True))["ForwDatagrams"])
