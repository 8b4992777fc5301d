"""Copies of a core's rows, as replication would make them, and what they hold."""

from __future__ import annotations

import numpy as np

from shards.state import NAT_MAPPING, State
from tests.bare_core import Core
from tests.bed import answer, fill_shards


def mappings(state: State) -> list[tuple[int, tuple[int, int], tuple[int, int]]]:
    """(protocol, external, internal endpoint) of every mapping."""
    halves = np.unique(state.owners[(state.owners > 0) & (state.owners < 1 << 31)])
    rows = state.mappings[halves]
    assert np.all(rows["kind"] == NAT_MAPPING)
    return [
        (
            int(row["internal_realm"]) >> 24,
            (int(row["external_address"]), int(row["external_port"])),
            (int(row["internal_address"]), int(row["internal_port"])),
        )
        for row in rows
    ]


def replicate(source: State, target: Core, now: int) -> None:
    """Give a core the rows of another, and all that follows from them; it stays who it is."""
    ports = target.state.ports.copy()
    for name in State._fields:
        np.copyto(getattr(target.state, name), getattr(source, name))
    np.copyto(target.state.ports, ports)
    fill_shards(target.state, target.bed, now)
    answer(target.state, target.bed)
