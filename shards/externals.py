"""The external addresses of a pool in ascending order, wherever their rows are.

A row never moves: mappings' ports, chunks, accounts that are paired name it. So an address that comes later gets a spare row,
and `moved` says how much further on the row of each place is:

    row      0    1    2    3    4    5
    address  .4   .5   .6   .7   .1   -        .1 was added; a place is looked up, then its row
    moved    4    -1   -1   -1   -1

Whatever counts the addresses of a pool (which of them a subscriber is paired with first) counts places, which are alike on
every core that has the same addresses, in whichever order these have come there.
"""

from __future__ import annotations

from shards.jit import hot, whole
from shards.state import EXTERNALS_AT_MOST, Row, State


@hot
def nth(state: State, pool: Row, place: int) -> int:
    """Row of the pool's address that has a place in ascending order, from 0 on; it must have so many."""
    first = whole(pool["first_external"])
    moved = whole(state.externals[first + place]["moved"][whole(pool["half"])])
    return first + ((place + moved) & (EXTERNALS_AT_MOST - 1))


@hot
def place_of(state: State, pool: Row, address: int) -> int:
    """Place of an address among the pool's, -1 if it is none of them."""
    count = whole(pool["externals"])
    offset = address - whole(state.externals[nth(state, pool, 0)]["address"])
    if offset < 0 or address > whole(state.externals[nth(state, pool, count - 1)]["address"]):
        return -1
    # A pool of one prefix has no gaps. A bisection's unforeseen branches took a tenth of a new session's time.
    if offset < count and whole(state.externals[nth(state, pool, offset)]["address"]) == address:
        return offset
    return _bisect(state, pool, count, address)


@hot
def _bisect(state: State, pool: Row, count: int, address: int) -> int:
    low, high = 0, count - 1
    while low < high:
        middle = (low + high) >> 1
        if whole(state.externals[nth(state, pool, middle)]["address"]) < address:
            low = middle + 1
        else:
            high = middle
    return low if whole(state.externals[nth(state, pool, low)]["address"]) == address else -1
