"""The wires of `bench wire` and `bench start`: for each device three namespaces, two veth pairs, addresses and routes.

    client 100.64.0.2            device                                    server 198.51.100.1
    gen0 10.0.0.2/24 ─────────── in0 10.0.0.1/24   out0 192.0.2.2/24 ─────────── 192.0.2.1/24 sink0

Neighbours are permanent, so no device needs ARP. IPv6 is off, so nothing but what is measured is on the wires.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from krononat.lab import namespaces
from krononat.lab.namespaces import command, inside

PREFIX = "wir"
CLIENT, SERVER = "100.64.0.2", "198.51.100.1"
GATEWAY_IN, DEVICE_IN, DEVICE_OUT, GATEWAY_OUT = "10.0.0.2", "10.0.0.1", "192.0.2.2", "192.0.2.1"
SUBSCRIBERS, SERVERS, POOL = "100.64.0.0/20", "198.51.100.0/24", "203.0.113.0/28"

OUR_CPU, DEVICE_CPU = 0, 1  # ours: the generator's; on the other is what is measured

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def pinned() -> Iterator[None]:
    """We, and whom we start, are on the generator's CPU."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {OUR_CPU})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Place:
    """Namespaces, wires and addresses around one device under test; `with` takes them away again."""

    def __init__(self, name: str, prefix: str = PREFIX) -> None:
        self.client, self.device, self.server = (f"{prefix}-{name}-{part}" for part in ("client", "device", "server"))

    def __enter__(self) -> Place:
        namespaces.delete(self._all())
        try:
            self._build()
        except BaseException:
            namespaces.delete(self._all())
            raise
        return self

    def __exit__(self, *_: object) -> None:
        namespaces.delete(self._all())

    def _all(self) -> tuple[str, str, str]:
        return self.client, self.device, self.server

    def _build(self) -> None:
        for name in self._all():
            command("ip", "netns", "add", name)
            settings(name, {"ipv6/conf/all/disable_ipv6": 1, "ipv6/conf/default/disable_ipv6": 1})
        for end, other, far in (("in0", "gen0", self.client), ("out0", "sink0", self.server)):
            command("ip", "-n", self.device, "link", "add", end, "type", "veth", "peer", "name", other, "netns", far)
        _lines(self.client, f"address add {GATEWAY_IN}/24 dev gen0", f"address add {CLIENT}/32 dev lo")
        _lines(self.server, f"address add {GATEWAY_OUT}/24 dev sink0", f"address add {SERVER}/32 dev lo")
        for name, device in ((self.device, "in0"), (self.device, "out0"), (self.client, "gen0"), (self.server, "sink0")):
            _lines(name, f"link set {device} up", "link set lo up")
        _know(self.client, "gen0", DEVICE_IN, mac(self.device, "in0"))
        _know(self.server, "sink0", DEVICE_OUT, mac(self.device, "out0"))
        _lines(self.client, f"route add default via {DEVICE_IN} src {CLIENT}")
        _lines(self.server, *(f"route add {each} via {DEVICE_OUT} src {SERVER}" for each in (POOL, SUBSCRIBERS)))

    def address_device(self) -> None:
        """Give the device's kernel its addresses, routes and neighbours, as one that forwards by itself needs them."""
        _lines(self.device, f"address add {DEVICE_IN}/24 dev in0", f"address add {DEVICE_OUT}/24 dev out0")
        self.know_neighbours()
        _lines(self.device, f"route add {SUBSCRIBERS} via {GATEWAY_IN}", f"route add {SERVERS} via {GATEWAY_OUT}")

    def know_neighbours(self) -> None:
        """Make both stations permanent neighbours of the device."""
        _know(self.device, "in0", GATEWAY_IN, mac(self.client, "gen0"))
        _know(self.device, "out0", GATEWAY_OUT, mac(self.server, "sink0"))


def settings(name: str, values: dict[str, int]) -> None:
    """Set what is under /proc/sys/net of a namespace, where this kernel has it."""
    lines = (f"test ! -e /proc/sys/net/{key} || echo {value} >/proc/sys/net/{key}" for key, value in values.items())
    command(*inside(name, ["sh", "-ec", "; ".join(lines)]))


def steer(name: str, device: str, cpu: int) -> None:
    """Have the kernel work on what comes in by a device on this CPU (receive packet steering), and take XDP frames there.

    A veth takes frames of an XDP program only where it has a NAPI of its own: with GRO switched on, or a program attached.
    """
    command(*inside(name, ["sh", "-ec", f"echo {1 << cpu:x} >/sys/class/net/{device}/queues/rx-0/rps_cpus"]))
    command(*inside(name, ["ethtool", "--offload", device, "gro", "on"]))


def finish_checksums(name: str, device: str) -> None:
    """Have the kernel finish checksums before it sends: not every device can do that for it."""
    command(*inside(name, ["ethtool", "--offload", device, "tx", "off"]))


def mac(name: str, device: str) -> str:
    """MAC address of a device."""
    return str(_link(name, device)["address"])


def ifindex(name: str, device: str) -> int:
    """Index of a device in its namespace."""
    return int(_link(name, device)["ifindex"])


def _link(name: str, device: str) -> dict[str, Any]:
    told: list[dict[str, Any]] = json.loads(command("ip", "-n", name, "-json", "link", "show", device))
    return told[0]


def _lines(name: str, *lines: str) -> None:
    command("ip", "-n", name, "-batch", "-", given="\n".join(lines) + "\n")


def _know(name: str, device: str, address: str, station: str) -> None:
    _lines(name, f"neighbour replace {address} lladdr {station} dev {device} nud permanent")


@contextlib.contextmanager
def entered(name: str) -> Iterator[None]:
    """The calling thread is in the namespace meanwhile; sockets it makes stay there."""
    with open("/proc/thread-self/ns/net", "rb") as before, Path(f"/run/netns/{name}").open("rb") as there:
        _enter(there.fileno())
        try:
            yield
        finally:
            _enter(before.fileno())


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
