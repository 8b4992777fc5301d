"""A cluster laboratory whose subscribers and Internet are a generator: what every bench of several servers begins with."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from bench.cluster.ends import End
from bench.cluster.generator import Generator
from bench.cluster.ledger import Sizes
from bench.report import Told
from krononat.client import Trouble
from krononat.lab import cluster
from krononat.lab.cluster import Wanted
from krononat.lab.laboratory import Lab, living

OUR_CPU = 0  # the generator's; the cores take the last one
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

    def lost_at_our_ends(self) -> int:
        """Frames that came to us and found no room, ever."""
        return self.client.lost() + self.server.lost()


@contextmanager
def scene(name: str, wanted: Wanted, sizes: Sizes, people: People, told: Told) -> Iterator[Scene]:
    """A laboratory with its generator, taken down afterwards; Trouble on a machine with one CPU."""
    if not {OUR_CPU, OUR_CPU + 1} <= os.sched_getaffinity(0):
        raise Trouble("this needs CPUs 0 and 1", "one makes the traffic, on the other are the cores")
    lab = Lab.of_cluster(name, wanted)
    with living(lab, told), _end(lab, "users", "10.9.0.2") as client, _end(lab, "hosts", "10.9.1.2") as server:
        bases = np.array([int(cluster.subscribers_of(shard).network_address) + FIRST for shard in people.shards])
        row = (people.subscribers, people.ports, FIRST_PORT, REMOTE, REMOTE_PORT)
        with Generator(client, server, sizes, bases, row, OUR_CPU) as generator:
            yield Scene(lab, client, server, generator)


def _end(lab: Lab, node: str, own: str) -> End:
    return End(lab.namespace[node], "eth0", own, (lab.namespace["tor"], node))
