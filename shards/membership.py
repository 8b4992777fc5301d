"""Addresses come to a pool, and leave it, while packets pass. Needs no compiler.

Whoever configures (`prepare`) writes the new addresses into rows that no packet looks at, and the order of all into the half of
`moved` that none does. The worker, between two breaths, then writes in one store how many there are and which half is in force
(`settle`): a worker that is killed leaves the pool as it was, or as it is to be. What is counted of it is in doubt meanwhile.
What it has not done to the rows after that its successor does, for it is told again; who prepares next clears rows that went.

A row that nobody is to use any more must have no port and no owner of a block; it is free then, whatever else it says: ports
that are held down stay so for who gets the row next, and an account whose last mapping was there is paired anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from shards.state import EXTERNALS_AT_MOST, OPEN, Array, State, external_rows, rows_by

RETURNING = 3  # in EXTERNAL_ADDRESS.closed, beside OPEN, DRAINED, EXCLUDED: to the path of packets all but OPEN are alike
COMING = 4  # the same of one that is not in force yet: `settle` makes it RETURNING

_WORDS, _COUNT = 8, 1  # of a row of POOL, 64 bits each; the one of `externals` and `half`


class Order(NamedTuple):
    """What a worker is to put in force of a pool."""

    pool: int
    externals: int
    half: int


def free_rows(state: State, number: int) -> Array:
    """Rows of a pool that no address in force has, in ascending order."""
    pool = state.pools[number]
    first = int(pool["first_external"])
    return np.setdiff1d(np.arange(first, first + int(pool["rooms"])), external_rows(state, number))


def come_and_go(state: State, number: int, wanted: Array) -> tuple[Array, Array]:
    """(addresses that are new, rows that are to become free) where a pool is to have the addresses `wanted`."""
    rows = external_rows(state, number)
    has = state.externals["address"][rows]
    return np.setdiff1d(wanted, has), rows[~np.isin(has, wanted)]


def prepare(state: State, number: int, wanted: Array, closed: Mapping[int, int], otherwise: int = OPEN) -> Order | None:
    """Write a pool's addresses to be, uint32, ascending; None where that is so. What was prepared before must be in force.

    `closed`: what new ones are at first, and `otherwise` what the rest are. There must be as many free rows.
    """
    rows, free = external_rows(state, number), free_rows(state, number)
    has = state.externals["address"][rows]
    _clear(state, free[state.externals["address"][free] != 0])
    if np.array_equal(has, wanted):
        return _in_force(state, number) if _is_coming(state, rows) else None
    new, _ = come_and_go(state, number, wanted)
    free = free[: len(new)]
    assert len(free) == len(new)
    _write(state, number, free, new, [closed.get(address, otherwise) for address in new.tolist()])
    known, all_rows = np.concatenate([has, new]), np.concatenate([rows, free])
    ordered = all_rows[np.argsort(known)][np.isin(np.sort(known), wanted)]
    half, first = 1 - int(state.pools[number]["half"]), int(state.pools[number]["first_external"])
    moved = (ordered - first - np.arange(len(ordered))) & (EXTERNALS_AT_MOST - 1)
    state.externals["moved"][first : first + len(ordered), half] = moved
    return Order(number, len(ordered), half)


def _write(state: State, number: int, rows: Array, addresses: Array, closed: list[int]) -> None:
    pool, like = state.pools[number], external_rows(state, number)[0]
    state.chunks["side"][rows] = state.chunks["side"][like]
    state.externals["pool"][rows] = number
    state.externals["blocks_free"][rows] = int(pool["end_block"]) - int(pool["first_block"])
    state.externals["closed"][rows] = closed
    state.externals["address"][rows] = addresses


def _clear(state: State, rows: Array) -> None:
    for name in ("address", "closed", "blocks_free"):  # who was paired with one has nothing to expect there
        state.externals[name][rows] = 0


def is_in_force(state: State, orders: Iterable[Order]) -> bool:
    """Whether the worker has done what it was told, all of it."""
    told = list(orders)
    named = all(order == _in_force(state, order.pool) for order in told)
    return named and not any(_is_coming(state, rows_by(state, *order)) for order in told)


def _in_force(state: State, number: int) -> Order:
    pool = state.pools[number].copy()
    return Order(number, int(pool["externals"]), int(pool["half"]))


def _is_coming(state: State, rows: Array) -> bool:
    """Of rows in force: whether a worker was killed before it had done with them; nobody would ever be paired there."""
    return bool((state.externals["closed"][rows] == COMING).any())


def settle(state: State, orders: Iterable[Order]) -> bool:
    """For the worker, between two breaths: put them in force, unless they are; False where a row that would go is in use."""
    return all([_settle(state, order) for order in orders if not is_in_force(state, [order])])


def _settle(state: State, order: Order) -> bool:
    before, rows = external_rows(state, order.pool), rows_by(state, *order)
    gone, new = np.setdiff1d(before, rows), np.setdiff1d(rows, before)
    if is_used(state, gone).any():
        return False
    sides = state.chunks["side"]
    if len(new) and (sides[new[0]] != sides[before[0]]).any():  # the shard has got a backup since it was prepared
        sides[new] = sides[before[0]]
    state.core["in_doubt"][0] += 1  # as `doubt.begin`; nothing moves a store of the interpreter's
    state.pools.view(np.uint64).reshape(-1, _WORDS)[order.pool, _COUNT] = order.externals | order.half << 32
    _recount(state, order.pool, rows, gone)
    state.core["in_doubt"][0] -= 1
    return True


def _recount(state: State, number: int, rows: Array, gone: Array) -> None:
    externals, pool = state.externals, state.pools[number]
    externals["closed"][rows] = np.where(externals["closed"][rows] == COMING, RETURNING, externals["closed"][rows])
    _clear(state, gone)
    pool["blocks_free"] = externals["blocks_free"][rows].sum(dtype=np.int64)
    pool["dry"] = 0


def is_used(state: State, rows: Array) -> Array:
    """Of each row whether somebody has a port or a block there. Of one that is closed, once none has, nobody will have."""
    chunks = state.chunks
    return np.array([bool(chunks["used"][row].any() or chunks["account"][row].any()) for row in rows.tolist()], np.bool_)
