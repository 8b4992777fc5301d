"""Sessions of IPv6 out of a core's memory (see `view`): copies of first lines, with the second ones beside them."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING, Any

import numpy as np

from shards import protocols
from shards.lifetimes import STATE_MASK
from shards.state import EXTENT_LINES, FIREWALL_SESSION6, ICMP6, Array, State

if TYPE_CHECKING:
    from krononat.view import Filter

SLICE = 8192  # lines copied at once: 512 KiB

_ICMP = 1  # what a filter calls ICMP, of either kind


def slices(state: State) -> Iterator[tuple[int, Array, Array]]:
    """(number of the first line, copies of first and of second lines); rows reborn while being copied count as free."""
    for extent in range(min(int(state.core[0]["next_extent"]), len(state.extents))):
        if state.extents[extent]["kind"] == FIREWALL_SESSION6:
            for at in range(extent * EXTENT_LINES, (extent + 1) * EXTENT_LINES, SLICE):
                yield at, *copied(state, at, at + SLICE)


def copied(state: State, first: int, end: int) -> tuple[Array, Array]:
    """Copies of the lines of the rows from `first` on."""
    rows, flows = state.sessions[first:end:2].copy(), state.flows6[first + 1 : end : 2].copy()
    rows["kind"][rows["generation"] != state.sessions["generation"][first:end:2]] = 0
    return rows, flows


def choose(wanted: Filter, rows: Array, flows: Array, states: tuple[str, ...]) -> Array:
    """Boolean column: which of these are wanted."""
    chosen: Array = rows["kind"] == FIREWALL_SESSION6
    for values, value in (
        (flows["internal_port"], wanted.source_port),
        (flows["remote_port"], wanted.destination_port),
        (flows["internal_port"], wanted.external_port),
        (rows["state"] & STATE_MASK, None if wanted.state is None else states.index(wanted.state)),
    ):
        if value is not None:
            chosen &= values == value
    for end, prefix in (("internal", wanted.source), ("remote", wanted.destination), ("internal", wanted.external)):
        if prefix is not None:
            chosen &= _inside(flows, end, prefix)
    if wanted.protocol is not None:
        chosen &= flows["realm"] >> 24 == (ICMP6 if wanted.protocol == _ICMP else wanted.protocol)
    return np.asarray(chosen)


def _inside(flows: Array, end: str, prefix: IPv4Network | IPv6Network) -> Array:
    if prefix.version == 4:
        return np.zeros(len(flows), bool)
    inside: Array = np.ones(len(flows), bool)
    for half, shift in (("high", 64), ("low", 0)):
        mask, network = (np.uint64(int(told) >> shift & (1 << 64) - 1) for told in (prefix.netmask, prefix.network_address))
        inside = inside & (flows[f"{end}_{half}"] & mask == network)
    return inside


def address(flow: Any, end: str) -> str:
    """The internal or remote address of a row's second line."""
    return str(IPv6Address(int(flow[f"{end}_high"]) << 64 | int(flow[f"{end}_low"])))


def protocol(flow: Any) -> str:
    """Name of its protocol."""
    return protocols.name(int(flow["realm"]) >> 24)
