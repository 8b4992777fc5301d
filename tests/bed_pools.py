"""The part of a bed that is about pools: external addresses, and how they are handed out."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import TYPE_CHECKING

import numpy as np

from shards import membership, sides
from shards.state import State, pack_filtering
from tests.frames import ICMP, TCP, UDP

if TYPE_CHECKING:
    from tests.bed import Bed

FILTERINGS = ("endpoint-independent", "address-dependent", "address-and-port-dependent")


@dataclass(frozen=True)
class Pool:
    """External addresses and how they are handed out."""

    network: IPv4Network
    name: str = "main"
    block: int = 512
    blocks: int = 8
    ports: tuple[int, int] = (1024, 65535)
    filtering: str = FILTERINGS[0]
    shard: int = 0
    own: tuple[str, str] = ("", "")  # filtering of TCP and of UDP, where it is another
    ratio: int = 0  # subscribers of an address who have blocks of their own there (RFC 7422)
    fixed: int = 0  # blocks that each of them has
    spare: int = 0  # addresses that there is room for beside those
    more: frozenset[int] = frozenset()  # addresses that came later,
    less: frozenset[int] = frozenset()  # and that went

    @property
    def hosts(self) -> list[int]:
        """Its addresses now, in ascending order."""
        return sorted({*map(int, self.network), *self.more} - self.less)

    def filtering_of(self, protocol: int) -> str:
        """Who may write to a mapping of this protocol."""
        return {TCP: self.own[0], UDP: self.own[1]}.get(protocol) or self.filtering


def fill_pools(state: State, bed: Bed) -> None:
    first = 0
    for number, pool in enumerate(bed.pools):
        hosts = pool.network.num_addresses
        row = state.pools[number]
        row["first_external"], row["externals"], row["block_size"] = first, hosts, pool.block
        row["rooms"] = hosts + pool.spare
        row["first_block"], row["end_block"] = block_range(pool)
        row["blocks_free"] = hosts * (int(row["end_block"]) - int(row["first_block"]))
        row["ratio"], row["fixed_each"] = pool.ratio, pool.fixed
        row["loose_block"] = first_loose(pool)
        state.externals["nth"][first : first + hosts] = first + np.arange(hosts)
        row["shard"] = pool.shard
        row["blocks_each"], row["filtering"] = pool.blocks, _filtering(pool)
        state.externals["address"][first : first + hosts] = int(pool.network.network_address) + np.arange(hosts)
        state.externals["pool"][first : first + hosts + pool.spare] = number
        if bed.two_sides:
            sides.lay(state, number)
        first += hosts + pool.spare


def fill_members(state: State, bed: Bed) -> None:
    """Let the pools have the addresses that they have now: what supervisor and worker do."""
    for number, pool in enumerate(bed.pools):
        order = membership.prepare(state, number, np.array(pool.hosts, np.uint32), {})
        assert order is None or membership.settle(state, [order]), "an address that is to go is in use"


def _filtering(pool: Pool) -> int:
    return pack_filtering(*(FILTERINGS.index(pool.filtering_of(protocol)) for protocol in (ICMP, TCP, UDP)))


def block_range(pool: Pool) -> tuple[int, int]:
    """First and last + 1 number of the blocks that lie wholly in the pool's port range."""
    low, high = pool.ports
    return -(-low // pool.block), (high + 1) // pool.block


def first_loose(pool: Pool) -> int:
    """First block that is nobody's own; where nothing may be had beside one's own, there is none."""
    first, end = block_range(pool)
    return end if pool.ratio and pool.blocks == pool.fixed else first + pool.ratio * pool.fixed
