"""What a kernel forgets without a word is counted: packets that end in a blackhole, and those for whom nobody answers."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from bench.cluster import losses
from tests.netns import namespace

pytestmark = pytest.mark.lab

PACKETS = 600  # a neighbour who is looked for has 256 of these waiting (unres_qlen_bytes)
NOWHERE, NOBODY = "203.0.113.1", "198.51.100.77"
_COUNTED: dict[str, Callable[[], int]] = {
    NOWHERE: lambda: losses.statistic("rt_cache", "in_no_route"),
    NOBODY: lambda: losses.statistic("arp_cache", "unresolved_discards"),
}


def test_what_a_router_forgets_is_counted_by_why() -> None:
    with namespace("krnlo-c") as client, namespace("krnlo-r") as router:
        client.ip(f"link add eth0 type veth peer name eth0 netns {router.name}")
        router.ip("link add out type veth peer name far")
        client.ip_batch(["addr add 192.0.2.2/24 dev eth0", "link set eth0 up"])
        router.ip_batch(["addr add 192.0.2.1/24 dev eth0", "addr add 198.51.100.1/24 dev out"])
        router.ip_batch([f"link set {name} up" for name in ("eth0", "out", "far")])
        router.ip_batch([f"route add blackhole {NOWHERE}/32"])
        router.run("sysctl", "-w", "net.ipv4.ip_forward=1")
        client.ip("route add default via 192.0.2.1")
        for target, counted in _COUNTED.items():
            before = counted()
            with client.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                for _ in range(PACKETS):
                    sender.sendto(b"lost", (target, 9))
            assert counted() - before > PACKETS / 3, target
