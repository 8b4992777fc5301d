"""How much memory a connection takes, and how many connections a configured memory holds: read off the layout, not measured.

`krononat bench memory` measures the same with ten million of them. A connection is a session, which is a line of the arena, and
its share of a mapping, half a line; both are entered in the index. What does not grow with connections is not in it.
"""

from __future__ import annotations

from typing import NamedTuple

from shards import cuckoo
from shards.account_rows import ACCOUNT
from shards.state import CHUNK_PORTS, EXTENT_LINES, MAPPING, SESSION, Sizes, State, new_state

LOAD = 0.85  # of the index: beyond it, finding room for a new key costs ever more
KEYS_A_SESSION, KEYS_A_MAPPING = 2, 1
MAPPINGS_EACH = CHUNK_PORTS - 1  # of a subscriber, in the figures that are published: a chunk of 64 ports but one

_SMALLEST = Sizes(**{**dict.fromkeys(Sizes._fields, 1), "buckets": 2, "neighbours": 2})


class Room(NamedTuple):
    """How many connections fit, with as many sessions a mapping as asked for, and which part of the memory is full first."""

    connections: int
    bound: str


def per_connection(sessions_each: float = 1.0, load: float = LOAD) -> dict[str, float]:
    """Bytes that one connection takes in each section of the state, `sessions_each` of them sharing a mapping."""
    state = new_state(_SMALLEST)
    session, mapping = _per_session(state, load), _per_mapping(state, load)
    sections = {**session, **mapping}
    return {name: session.get(name, 0.0) + mapping.get(name, 0.0) / sessions_each for name in sections}


def _per_session(state: State, load: float) -> dict[str, float]:
    lines = len(state.sessions)
    return {
        "words": SESSION.itemsize,
        "tags": KEYS_A_SESSION * _slot(state) / load,
        "links": state.links.nbytes / lines,
        "dirty": state.dirty.nbytes / lines,
        "summary": state.summary.nbytes / lines,
        "shipped": state.shipped.nbytes / lines,
    }


def _per_mapping(state: State, load: float) -> dict[str, float]:
    halves = len(state.mappings)
    return {
        "words": MAPPING.itemsize,
        "tags": KEYS_A_MAPPING * _slot(state) / load,
        "links": state.links.nbytes / halves,  # not used, but on the pages of those that are
        "dirty": state.dirty.nbytes / halves,
        "summary": state.summary.nbytes / halves,
        "shipped": state.shipped.nbytes / halves,
        "owners": state.owners.itemsize,
        "chunks": state.chunks.itemsize / CHUNK_PORTS,
        "accounts": ACCOUNT.itemsize / MAPPINGS_EACH,
    }


def _slot(state: State) -> float:
    return float(state.tags[0].nbytes / cuckoo.SLOTS)


def room(sizes: Sizes, sessions_each: float = 1.0) -> Room:
    """Connections that memory of these sizes holds."""
    lines = (sizes.extents - 1) * EXTENT_LINES
    keys = KEYS_A_SESSION + KEYS_A_MAPPING / sessions_each
    bounds = {
        "rows": int(lines / (1 + MAPPING.itemsize / SESSION.itemsize / sessions_each)),
        "index": int(sizes.buckets * cuckoo.SLOTS * LOAD / keys),
    }
    bound = min(bounds, key=lambda name: bounds[name])
    return Room(bounds[bound], bound)
