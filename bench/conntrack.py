"""New flows through the kernel's own NAT, beside `bench connections`: nf_conntrack and nftables' masquerade on a veth pair.

    con-ends gen0 ───────── in0 con-nat out0 ───────── sink0 con-ends
             first packets      conntrack, masquerade        counted, thrown away

The packets are the same; raw ones, a system call each 256, from the very core that then forwards them in its softirq. What is
counted is conntrack's entries. Its tables stay as this machine has them, so a run fills three quarters of `nf_conntrack_max`.
It is information, not a comparison: this figure holds two veth crossings that ours does not.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import sys
import time
from pathlib import Path

import click
import numpy as np

from bench import report
from bench.flows import FROM_MAC, TO_MAC, frames_of
from bench.report import Result
from bench.traffic import FRAME_BYTES, HEADROOM, PACKET_BYTES
from krononat.client import Trouble
from krononat.lab import namespaces
from krononat.lab.namespaces import command, inside

NAT, ENDS = "con-nat", "con-ends"
NFT = "table ip nat { chain out { type nat hook postrouting priority srcnat; oifname out0 masquerade; }; }"
TOGETHER = 256  # packets a system call

_MAX, _COUNT = (f"/proc/sys/net/netfilter/nf_conntrack_{name}" for name in ("max", "count"))
_PACKET_QDISC_BYPASS, _SOL_PACKET = 20, 263  # packet(7)

# sendmmsg(2): struct mmsghdr and struct iovec on 64-bit Linux
_IOVEC = np.dtype([("base", "u8"), ("length", "u8")])
_MESSAGE = np.dtype(
    [
        ("name", "u8"), ("name_length", "u8"), ("vector", "u8"), ("vectors", "u8"), ("control", "u8"), ("controls", "u8"),
        ("flags", "u8"), ("sent", "u8"),
    ]
)  # fmt: skip


def results(repetitions: int) -> list[Result]:
    """The rate of each repetition in namespaces of its own; without root or nft a sentence on stderr, and no result."""
    try:
        namespaces.need("ip", "nft")
    except Trouble as trouble:
        click.echo(f"connections: the kernel's figure is left out: {trouble.told()}", err=True)
        return []
    rates, lost = zip(*(_measure() for _ in range(repetitions)), strict=True)
    return [report.measured("connections/kernel/rate", "M/s", rates, loss=float(np.mean(lost)))]


def _measure() -> tuple[float, float]:
    """(M new flows/s, share of them that got no entry) of one run."""
    namespaces.delete((NAT, ENDS))
    try:
        _build()
        flows = int(Path(_MAX).read_text()) * 3 // 4
        words = (sys.executable, "-m", "bench.conntrack", str(flows))
        took = json.loads(command("env", "NUMBA_DISABLE_JIT=1", *inside(ENDS, words)))
        made = int(command(*inside(NAT, ("cat", _COUNT))))
        return made / took / 1e6, 1 - made / flows
    finally:
        namespaces.delete((NAT, ENDS))


def _build() -> None:
    for name in (NAT, ENDS):
        command("ip", "netns", "add", name)
        command(*inside(name, ("sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6 || true")))
    for ours, theirs, mac in (("in0", "gen0", TO_MAC), ("out0", "sink0", FROM_MAC)):
        far = ("peer", "name", theirs, "netns", ENDS)
        command("ip", "-n", NAT, "link", "add", ours, "address", mac.hex(":"), "type", "veth", *far)
        command("ip", "-n", NAT, "link", "set", ours, "up")
        command("ip", "-n", ENDS, "link", "set", theirs, "up")
    lines = (
        "address add 10.0.0.1/24 dev in0", "address add 192.0.2.1/24 dev out0",
        "neighbour add 192.0.2.254 lladdr 02:00:00:00:00:ff dev out0", "route add default via 192.0.2.254",
        "route add 100.64.0.0/14 via 10.0.0.254",
    )  # fmt: skip
    command("ip", "-n", NAT, "-batch", "-", given="\n".join(lines) + "\n")
    command(*inside(NAT, ("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")))
    command(*inside(NAT, ("nft", "-f", "-")), given=NFT)


def send(interface: str, flows: int) -> float:
    """Send a first packet of each flow; seconds."""
    frames = frames_of(np.random.default_rng(1).permutation(flows), 1)
    vectors = np.zeros(flows, _IOVEC)
    vectors["base"] = frames.ctypes.data + HEADROOM + FRAME_BYTES * np.arange(flows)
    vectors["length"] = PACKET_BYTES
    messages = np.zeros(flows, _MESSAGE)
    messages["vector"], messages["vectors"] = vectors.ctypes.data + _IOVEC.itemsize * np.arange(flows), 1
    libc = ctypes.CDLL(None, use_errno=True)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
        sender.bind((interface, 0))
        sender.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
        begun, done = time.perf_counter(), 0
        while done < flows:
            first = ctypes.c_void_p(messages.ctypes.data + done * _MESSAGE.itemsize)
            sent = libc.sendmmsg(sender.fileno(), first, min(TOGETHER, flows - done), 0)
            if sent <= 0:
                raise OSError(ctypes.get_errno(), "sendmmsg")
            done += sent
        return time.perf_counter() - begun


if __name__ == "__main__":
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    os.nice(10)  # ksoftirqd, when it takes over, goes first: fewer packets overflow its queue
    print(json.dumps(send("gen0", int(sys.argv[1]))))
