"""What the generator is told, and what it remembers: one row for each connection, resident and datagram. Plain arrays.

Python writes orders and reads the rest while the loop runs in its thread; every word has one writer.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from shards.jit import PURE
from shards.state import Array

# A TCP connection. Times in ns of the monotonic clock, 0: not yet. `round`: of the last answer, + 1. `moved`: something of it
# came from or to another endpoint than before. `closed`: the subscriber has ended it.
CONNECTION = np.dtype(
    [
        ("opened", "i8"),
        ("established", "i8"),
        ("external", "i8"),  # address << 16 | port
        ("round", "u4"),
        ("moved", "u1"),
        ("refused", "u1"),
        ("closed", "u1"),
        ("spare", "u1"),
    ]
)
assert CONNECTION.itemsize == 32

# One of the population of UDP sessions.
RESIDENT = np.dtype([("external", "i8"), ("round", "u4"), ("moved", "u1"), ("spare", "u1", (3,))])

# A datagram of one direction of the stream. `times` it came; `late`: after one with a higher number (RFC 4737).
DATAGRAM = np.dtype([("sent", "i8"), ("came", "i8"), ("times", "u1"), ("late", "u1"), ("spare", "u1", (6,))])

# Who there is: number n is of base n % bases, there of subscriber, then of port, then of remote.
PEOPLE = np.dtype([(name, "i8") for name in ("subscribers", "ports", "first_port", "remote", "remote_port")])

# What is to be done, by kind (below): numbers from `next` to `end`, `rate` a second, in a round. `base_ns` and `done` keep the
# pace; `missed`: how often the loop came so late that it gave up catching up.
ORDER = np.dtype([(name, "i8") for name in ("next", "end", "rate", "round", "base_ns", "done", "missed", "skipped")])
OPEN, ASK, RESIDENTS, STREAM_OUT, STREAM_IN, CLOSE = range(6)
KINDS = 6

TALLY = np.dtype([(name, "i8") for name in ("stop", "turns", "sent", "received", "full", "broken", "unknown", "moved")])


class Ledger(NamedTuple):
    """All of it."""

    bases: Array  # int64: address of the first subscriber of each shard
    people: Array  # PEOPLE (1,)
    orders: Array  # ORDER, by kind
    connections: Array
    residents: Array
    externals: Array  # int64, by flow of the stream: its external endpoint, 0 not seen yet
    out: Array  # DATAGRAM: the stream outbound
    into: Array  # and inbound
    high: Array  # int64 (2,): highest number that came, outbound and inbound
    tally: Array  # TALLY (1,)
    client_macs: Array
    server_macs: Array


if not PURE:
    from shards import passing

    passing.by_reference(Ledger)


class Sizes(NamedTuple):
    """How much it can remember."""

    connections: int = 1
    residents: int = 1
    datagrams: int = 1
    flows: int = 64


def new_ledger(sizes: Sizes, bases: Array, people: tuple[int, ...], client_macs: Array, server_macs: Array) -> Ledger:
    """An empty one, all of its memory in place. `people`: the fields of PEOPLE."""
    return Ledger(
        bases=np.array(bases, np.int64),
        people=np.array([people], PEOPLE),
        orders=np.zeros(KINDS, ORDER),
        connections=_in_place(sizes.connections, CONNECTION),
        residents=_in_place(sizes.residents, RESIDENT),
        externals=np.zeros(sizes.flows, np.int64),
        out=_in_place(sizes.datagrams, DATAGRAM),
        into=_in_place(sizes.datagrams, DATAGRAM),
        high=np.full(2, -1, np.int64),
        tally=np.zeros(1, TALLY),
        client_macs=client_macs,
        server_macs=server_macs,
    )


def _in_place(rows: int, dtype: np.dtype[Any]) -> Array:
    """Rows of zeros that have been written once: the kernel gives memory when it is touched, and to touch 2 MiB for the first
    time takes milliseconds (more in a virtual machine), which would be a silence of the generator's own.
    """
    made: Array = np.empty(rows, dtype)
    made.view(np.uint8).fill(0)
    return made
