"""Where to with IPv6: as `hops`, by the ports' IPv6 addresses and gateways."""

from __future__ import annotations

import numpy as np

from shards import hops, neighbours
from shards.jit import hot, whole
from shards.native import Word
from shards.state import INTERNAL, Row, State

_U = np.uint64
_ONES = _U(0xFFFF_FFFF_FFFF_FFFF)


@hot
def gateway_of(state: State, p: int, side: int) -> int:
    """Row of NEIGHBOUR of the gateway that a port has towards a side, 0 for none."""
    return whole(state.ports[p]["internal_gateway6"] if side == INTERNAL else state.ports[p]["external_gateway6"])


@hot
def _upper_bits(length: int) -> Word:
    """Mask of the upper `length` of 64 bits."""
    if length <= 0:
        return _U(0)
    return _ONES << _U(64 - length) if length < 64 else _ONES


@hot
def is_on_link(port: Row, high: Word, low: Word) -> bool:
    """Whether an address needs no gateway on a port."""
    length = whole(port["length6"])
    other = (high ^ port["address6_high"]) & _upper_bits(length) | (low ^ port["address6_low"]) & _upper_bits(length - 64)
    return length != 0 and other == _U(0)


@hot
def next_hop(state: State, side: int, high: Word, low: Word, whose: int, now: int) -> int:
    """Neighbour for an address on a side: itself where it is on-link at a living port, else a gateway; 0 when no more fit.

    `whose`: `folded` address of the host inside that speaks with it, 0 on the way to a subscriber.
    """
    first, end = hops.ports_of(state, side)
    link = _link_of(state, first, end, high, low)
    if link >= 0 and state.ports[link]["dead"] == 0:
        return neighbours.want6(state, link, high, low, now)
    gateway = _gateway_to(state, side, first, end, folded(high, low), whose)
    if gateway and (link < 0 or hops.leads_itself(state, gateway)):
        return gateway
    return neighbours.want6(state, max(link, first), high, low, now)


@hot
def folded(high: Word, low: Word) -> int:
    """32 bits of an address."""
    both = high ^ low
    return whole((both ^ both >> _U(32)) & _U(0xFFFF_FFFF))


@hot
def _link_of(state: State, first: int, end: int, high: Word, low: Word) -> int:
    """Port at which an address is on-link, -1 for none."""
    for p in range(first, end):
        if is_on_link(state.ports[p], high, low):
            return p
    return -1


@hot
def _gateway_to(state: State, side: int, first: int, end: int, address: int, whose: int) -> int:
    """Row of the gateway for a pair of hosts: of those that answer, else of ports that live, else of all; 0 for none."""
    if end - first == 1:
        return gateway_of(state, first, side)
    best, chosen = -1, 0
    for p in range(first, end):
        gateway = gateway_of(state, p, side)
        if gateway:
            standing = 2 if hops.leads_itself(state, gateway) else int(state.ports[p]["dead"] == 0)
            worth = standing << 32 | hops.weight(state, p, address, whose)
            if worth > best:
                best, chosen = worth, gateway
    return chosen


@hot
def leads(state: State, side: int, hop: int, high: Word, low: Word) -> bool:
    """Whether row `hop` is a right next hop to a host, as `next_hop` says: a gateway of the side, or the host itself."""
    first, end = hops.ports_of(state, side)
    has_gateway = False
    for p in range(first, end):
        gateway = gateway_of(state, p, side)
        if gateway and gateway == hop:
            return end - first > 1 or not is_on_link(state.ports[p], high, low)
        has_gateway |= gateway != 0
    row = state.neighbours[hop & (len(state.neighbours) - 1)]
    direct = not has_gateway or _link_of(state, first, end, high, low) >= 0
    same = row["six"] != 0 and row["high"] == high and neighbours.low_half(row) == low
    return bool(direct and hop < len(state.neighbours) and same and first <= whole(row["own_port"]) < end)
