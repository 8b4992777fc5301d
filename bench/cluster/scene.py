"""A cluster laboratory whose subscribers and Internet are a generator: what every bench of several servers begins with."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.cluster.ends import End
from bench.cluster.generator import Generator
from bench.cluster.ledger import OPEN, RESIDENTS, Sizes
from bench.report import Told
from krononat import client
from krononat.client import Trouble
from krononat.lab import cluster
from krononat.lab.cluster import Wanted
from krononat.lab.laboratory import Lab, living

OUR_CPU = 0  # the generator's; `cluster.cpu_of` tells which the cores have
FIRST = 256  # addresses of a shard below it are of real clients
REMOTE, REMOTE_PORT, FIRST_PORT = 0xC6336490, 443, 1024  # 198.51.100.144


class People(NamedTuple):
    """Who uses these shards: so many subscribers of each, each with so many internal ports, the same at all."""

    shards: Sequence[int]
    subscribers: int
    ports: int


class Scene(NamedTuple):
    """All of it, up and running."""

    lab: Lab
    client: End
    server: End
    generator: Generator

    @property
    def tor(self) -> str:
        """Namespace of the router."""
        return self.lab.namespace["tor"]

    @property
    def wanted(self) -> Wanted:
        """What distinguishes this cluster from others."""
        return self.lab.wanted or Wanted()

    def lost_at_our_ends(self) -> int:
        """Frames that came to us and found no room, ever."""
        return self.client.lost() + self.server.lost()

    def path(self, core: str) -> str:
        """Control socket of a core."""
        return str(self.lab.socket_of(self.lab.label(core)))

    def shard(self, core: str, number: int = 0) -> dict[str, Any]:
        """What a core says of a shard; Trouble where it does not answer."""
        return dict(client.rows(self.path(core), "shards")[1][number])

    def owner(self, number: int = 0) -> str:
        """The core that says it is the authority over a shard; "" where none does."""
        return next(self._saying_so(number), "")

    def authorities(self, number: int) -> list[str]:
        """Every core that says so; one, where all is well."""
        return list(self._saying_so(number))

    def _saying_so(self, number: int) -> Iterator[str]:
        for core in cluster.cores(self.wanted):
            with suppress(Trouble):  # it is dead, or frozen
                if self.shard(core, number)["role"] == "active":
                    yield core

    def is_synced(self, number: int = 0) -> bool:
        """Whether a shard has an authority, and that one a backup in sync."""
        owner = self.owner(number)
        return bool(owner) and bool(self.shard(owner, number)["in_sync"])

    def until_synced(self, number: int = 0, patience_s: float = 60.0) -> float:
        """Wait until a shard has a backup in sync; how long that took, s."""
        return until(lambda: self.is_synced(number), f"shard {number} has no backup in sync", patience_s)

    def populate(self, rate: int = 60_000) -> None:
        """Have every resident open its session; RuntimeError where some cannot."""
        for _ in range(6):
            self.generator.populate(0, rate)
            self.generator.wait(RESIDENTS)
            missing = int(np.sum(self.generator.ledger.residents["round"] == 0))
            if not missing:
                return
        raise RuntimeError(f"{missing} of {len(self.generator.ledger.residents)} sessions could not be opened")

    def until_opened(self, connections: int) -> None:
        """Wait until the generator has sent the SYNs of so many connections."""
        until(lambda: self.generator.ledger.orders["next"][OPEN] >= connections, "the generator does not get on", 120.0, 0.0005)


def until(holds: Callable[[], bool], otherwise: str, patience_s: float, every_s: float = 0.01) -> float:
    """Wait until something holds; seconds it took. Trouble that says what does not, if it takes too long."""
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > patience_s:
            raise Trouble(otherwise, f"after {patience_s:g} s")
        time.sleep(every_s)
    return time.monotonic() - began


_BACKLOG, _FRAMES = Path("/proc/sys/net/core/netdev_max_backlog"), 20_000


@contextmanager
def _roomy() -> Iterator[None]:
    """Have this machine's kernel keep more frames between two interfaces: all hops of all namespaces share one queue a CPU.

    By default it has room for 1,000; a burst of one program is a stream's loss then, as it would be in no network.
    """
    before = _BACKLOG.read_text()
    _BACKLOG.write_text(str(max(_FRAMES, int(before))))
    try:
        yield
    finally:
        _BACKLOG.write_text(before)


_LATENCY, _NONE_US = Path("/dev/cpu_dma_latency"), struct.pack("i", 0)


@contextmanager
def sleepless(told: Told) -> Iterator[None]:
    """Have idle CPUs wait instead of sleep, as those of a machine that does nothing but forward do (the kernel's
    `Documentation/power/pm_qos_interface.rst`); to wake a virtual one takes up to a tenth of a millisecond.

    Where one of two cores of a CPU is stopped, the other's packets find that CPU asleep: what they wait for then is the CPU.
    """
    try:
        file = _LATENCY.open("wb", buffering=0)
    except OSError as refused:
        told(f"idle CPUs may sleep: {_LATENCY}: {refused.strerror}")
        yield
        return
    with file:  # until it is closed, also by our death
        file.write(_NONE_US)
        yield


@contextmanager
def scene(name: str, wanted: Wanted, sizes: Sizes, people: People, told: Told) -> Iterator[Scene]:
    """A laboratory with its generator, taken down afterwards; Trouble on a machine with one CPU."""
    if not {OUR_CPU, OUR_CPU + 1} <= os.sched_getaffinity(0):
        raise Trouble("this needs CPUs 0 and 1", "one makes the traffic, on the other are the cores")
    lab = Lab.of_cluster(name, wanted)
    with _roomy(), living(lab, told), _end(lab, "users", "10.9.0.2") as client, _end(lab, "hosts", "10.9.1.2") as server:
        bases = np.array([int(cluster.subscribers_of(shard).network_address) + FIRST for shard in people.shards])
        row = (people.subscribers, people.ports, FIRST_PORT, REMOTE, REMOTE_PORT)
        with Generator(client, server, sizes, bases, row, OUR_CPU) as generator:
            yield Scene(lab, client, server, generator)


def _end(lab: Lab, node: str, own: str) -> End:
    a, b = next(link for link in lab.topology.links if node in (link[0].node, link[1].node))
    far = b if a.node == node else a
    return End(lab.namespace[node], "eth0", own, (lab.namespace[far.node], far.interface))
