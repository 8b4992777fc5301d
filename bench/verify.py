"""`krononat bench verify`: does `krononat shard verify` find what differs?

Two servers, a shard with some thousand TCP connections and its copy in sync. Then one bit of one field of one row of the copy
is changed in the backup's memory, behind its back, `krononat shard verify` is run as an operator would, and the bit is set
right.
Rows, fields and bits are drawn at random among all that a copy must have right.

    verify/found        divergences of 100 that were found, each as the one row that differs
    verify/wrong        rows that were named and were right
    verify/seconds      that one comparison took, with the start of the command
    verify/differing    rows that differ before and after it all
"""

from __future__ import annotations

import json
import mmap
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, NamedTuple

import numpy as np

from bench import report
from bench.cluster.ledger import OPEN, Sizes
from bench.cluster.scene import People, Scene, scene
from bench.report import Result, Told
from krononat.client import Trouble
from krononat.lab import cluster
from krononat.lab.cluster import Wanted
from shards import slabs
from shards.state import MAPPING, NAT_MAPPING, NAT_SESSION, SESSION, State, open_state, read_header, state_bytes

KIND = "veth"
NAME = "kvf"
PLANTED, QUICK_PLANTED = 100, 100
AT_ONCE, QUICK_AT_ONCE = 1, 10  # divergences in one comparison
CONNECTIONS = 5000
_PEOPLE = People((0,), 100, 100)
_MEMORY = "/memfd:krononat-state"

# Of a session and of a mapping: what is each core's own (see `shards.digest`).
OWN = {"sessions": {"expiry", "created", "packets", "rules"}, "mappings": {"sessions"}}
FIELDS = [
    (rows, field)
    for rows, dtype in (("sessions", SESSION), ("mappings", MAPPING))
    for field in dtype.names or ()
    if field not in OWN[rows]
]


class Planted(NamedTuple):
    """One divergence: which bit of which row, and how all cores name the row."""

    rows: str
    local: int
    field: str
    bit: int
    name: tuple[int, int]  # class, row


def run(quick: bool, told: Told) -> list[Result]:
    """Plant, compare, mend, again and again."""
    planted, at_once = (QUICK_PLANTED, QUICK_AT_ONCE) if quick else (PLANTED, AT_ONCE)
    with scene(NAME, Wanted(2, 1, sessions=4 * CONNECTIONS), Sizes(CONNECTIONS), _PEOPLE, told) as here:
        here.until_synced()
        here.generator.open(CONNECTIONS, 5000)
        here.generator.wait(OPEN)
        here.until_synced()
        owner = here.owner()
        backup = here.lab.status(cluster.node_of(str(here.shard(owner)["passive"])))
        with memory_of(backup["pid"]) as state:
            return _figures(here, owner, state, planted, at_once, told)


def _figures(here: Scene, owner: str, state: State, planted: int, at_once: int, told: Told) -> list[Result]:
    dice, found, wrong, took = random.Random(4), 0, 0, []
    differing = len(_verify(here, owner))
    for done in range(0, planted, at_once):
        told(f"{found} of {done} divergences found")
        divergences = draw(state, dice, at_once)
        began = time.monotonic()
        with planting(state, divergences):
            named = _verify(here, owner)
        took.append(time.monotonic() - began)
        found += sum(each.name in named for each in divergences)
        wrong += len(named - {each.name for each in divergences})
    differing += len(_verify(here, owner))
    return [
        report.measured("verify/found", "divergences", [found], planted),
        report.measured("verify/planted", "divergences", [planted]),
        report.measured("verify/wrong", "count", [wrong], 0),
        report.measured("verify/differing", "count", [differing], 0),
        report.measured("verify/seconds", "s", took),
    ]


def _verify(here: Scene, owner: str) -> set[tuple[int, int]]:
    """Class and row of what differs, as the command says."""
    return differing(here.lab.krononat("shard", "verify", "0", "-o", "json", node=cluster.node_of(owner)))


def differing(done: CompletedProcess[str]) -> set[tuple[int, int]]:
    """The same of a command that has ended; Trouble where it has compared nothing, whatever the reason."""
    rows = json.loads(done.stdout or "[]")
    if len(rows) != 1 or rows[0]["error"]:
        raise Trouble("the shard was not compared", rows[0]["error"] if rows else done.stderr.strip())
    found = {(klass, number) for klass, number in rows[0]["differing"]}
    if done.returncode and not found:
        raise Trouble("the shard was not compared", f"exit status {done.returncode}: {done.stderr.strip()}")
    return found


# --- planting -------------------------------------------------------------------------------------------------------------


@contextmanager
def memory_of(pid: int) -> Iterator[State]:
    """The state of the core whose supervisor this is, writable: root may open what another process has open (proc(5))."""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        if os.readlink(link).startswith(_MEMORY):
            descriptor = os.open(link, os.O_RDWR)
            break
    else:
        raise Trouble("the backup's memory is not to be found", f"process {pid} has no {_MEMORY} open")
    try:
        sizes = read_header(os.pread(descriptor, mmap.PAGESIZE, 0))
        yield open_state(mmap.mmap(descriptor, state_bytes(sizes)), sizes)
    finally:
        os.close(descriptor)


def draw(state: State, dice: random.Random, count: int) -> list[Planted]:
    """So many divergences, each in a row of its own."""
    living = {"sessions": state.sessions["kind"] == NAT_SESSION, "mappings": state.mappings["kind"] == NAT_MAPPING}
    found: dict[tuple[str, int], Planted] = {}
    while len(found) < count:
        rows, field = dice.choice(FIELDS)
        local = int(dice.choice(_of_kind(state, rows, living[rows])))
        _, klass, row = slabs.wire_row(state, local if rows == "mappings" else 2 * local)
        bit = dice.randrange(8 * _field(state, rows, field).dtype.itemsize)
        found[rows, local] = Planted(rows, local, field, bit, (int(klass), int(row)))
    return list(found.values())


def _of_kind(state: State, rows: str, living: Any) -> list[int]:
    """Rows that live, in extents of their kind: elsewhere the same bytes are something else."""
    kind, each = (NAT_MAPPING, 2) if rows == "mappings" else (NAT_SESSION, 1)
    of_kind = np.repeat(state.extents["kind"] == kind, len(living) // len(state.extents))
    assert len(living) == each * len(state.sessions)
    return list(np.flatnonzero(living & of_kind))


@contextmanager
def planting(state: State, divergences: list[Planted]) -> Iterator[None]:
    """They are there meanwhile."""
    _flip(state, divergences)
    try:
        yield
    finally:
        _flip(state, divergences)


def _flip(state: State, divergences: list[Planted]) -> None:
    for each in divergences:
        column = _field(state, each.rows, each.field)
        column[each.local] ^= column.dtype.type(1 << each.bit)


def _field(state: State, rows: str, field: str) -> Any:
    return getattr(state, rows)[field]


verify = report.command("verify", KIND, run, "Divergences are planted in a copy, and `shard verify` is to find them.")

if __name__ == "__main__":
    verify()
