"""Where to: the ports of a side, who is on-link at them, and which of their gateways leads to whom.

Of several gateways each pair of hosts has one, by rendezvous hashing: a gateway that goes, or comes, moves what is its own.
By hosts and not by their ports, so whatever two hosts have to do with each other goes one way: connections that belong together
arrive in order and see one path MTU, and so do fragments and ICMP errors, which have no ports. Towards subscribers the remote
does not count: all of a subscriber goes by one router, which may keep its queue.
"""

from __future__ import annotations

import numpy as np

from shards import neighbours
from shards.jit import hot, whole
from shards.state import INTERNAL, REACHABLE, Row, State

_ODD = 0x45D9F3B5  # below 2**31, so that its product with 32 bits is the same number in Python and in 64-bit registers
_GOLDEN = 0x9E3779B1


@hot
def ports_of(state: State, side: int) -> tuple[int, int]:
    """First and last + 1 row of PORT of INTERNAL or EXTERNAL; a port for both sides is of either."""
    settings = state.settings[0]
    first = whole(settings["internal_port"] if side == INTERNAL else settings["external_port"])
    return first, first + whole(settings["internal_ports"] if side == INTERNAL else settings["external_ports"])


@hot
def gateway_of(state: State, p: int, side: int) -> int:
    """Row of NEIGHBOUR of the gateway that a port has towards a side, 0 for none."""
    return whole(state.ports[p]["internal_gateway"] if side == INTERNAL else state.ports[p]["external_gateway"])


@hot
def is_on_link(port: Row, address: int) -> bool:
    """Whether an address belongs to the network of a port."""
    return bool(address & whole(port["mask"]) == whole(port["network"]))


@hot
def names_no_host(port: Row, address: int) -> bool:
    """The core's own address, or the lowest or highest of the link of `port`: a broadcast there (RFC 1122, RFC 2644)."""
    if not is_on_link(port, address):
        return False
    mask = whole(port["mask"])
    host, hosts = address & ~mask, ~mask & 0xFFFFFFFF
    return address == whole(port["address"]) or (hosts > 1 and (host == 0 or host == hosts))


@hot
def names_no_host_at(state: State, side: int, address: int) -> bool:
    """The same, for any port of a side."""
    first, end = ports_of(state, side)
    found = False
    for p in range(first, end):
        found |= names_no_host(state.ports[p], address)
    return found


@hot
def next_hop(state: State, side: int, address: int, whose: int, now: int) -> int:
    """Neighbour for `address` on a side: itself where it is on-link at a living port, else a gateway; 0 when no more fit.

    `whose`: the subscriber that speaks with it (see above); 0 on the way to a subscriber, or to another core.
    """
    first, end = ports_of(state, side)
    link = _link_of(state, first, end, address)
    if link >= 0 and state.ports[link]["dead"] == 0:
        return neighbours.want(state, link, address, now)
    gateway = _gateway_to(state, side, first, end, address, whose)
    # What is on-link at a dead port is left to the others if one of them lives, and else waits for that port.
    if gateway and (link < 0 or leads_itself(state, gateway)):
        return gateway
    return neighbours.want(state, max(link, first), address, now)


@hot
def _link_of(state: State, first: int, end: int, address: int) -> int:
    """Port at which an address is on-link, -1 for none."""
    for p in range(first, end):
        if is_on_link(state.ports[p], address):
            return p
    return -1


@hot
def leads_itself(state: State, at: int) -> bool:
    """Whether what is sent to row `at` goes to that very neighbour, which has answered."""
    row = state.neighbours[at]
    return bool(row["state"] == REACHABLE and row["port"] == row["own_port"])


@hot
def _gateway_to(state: State, side: int, first: int, end: int, address: int, whose: int) -> int:
    """Row of the gateway for a pair of hosts: of those that answer, else of ports that live, else of all; 0 for none."""
    if end - first == 1:
        return gateway_of(state, first, side)
    best, chosen = -1, 0
    for p in range(first, end):
        gateway = gateway_of(state, p, side)
        if gateway:
            standing = 2 if leads_itself(state, gateway) else int(state.ports[p]["dead"] == 0)
            worth = standing << 32 | weight(state, p, address, whose)
            if worth > best:
                best, chosen = worth, gateway
    return chosen


@hot
def weight(state: State, p: int, address: int, whose: int) -> int:
    """What a port weighs for a pair of hosts, 32 bits: the heaviest is theirs."""
    key = int(np.int64(state.settings[0]["seed"][0] >> np.uint64(32)))
    return _mix(_mix(_mix(address ^ key) ^ whose) ^ ((p + 1) * _GOLDEN & 0xFFFFFFFF))


@hot
def _mix(value: int) -> int:
    product = value * _ODD
    return (product ^ product >> 31) & 0xFFFFFFFF


@hot
def leads(state: State, side: int, hop: int, host: int) -> bool:
    """Whether row `hop` is a right next hop to `host`, as `next_hop` says: a gateway of the side, or the host itself."""
    first, end = ports_of(state, side)
    has_gateway = False
    for p in range(first, end):
        gateway = gateway_of(state, p, side)
        if gateway and gateway == hop:
            return end - first > 1 or not is_on_link(state.ports[p], host)
        has_gateway |= gateway != 0
    row = state.neighbours[hop & (len(state.neighbours) - 1)]
    direct = not has_gateway or _link_of(state, first, end, host) >= 0
    own = whole(row["own_port"])
    return bool(direct and hop < len(state.neighbours) and whole(row["address"]) == host and first <= own < end)
