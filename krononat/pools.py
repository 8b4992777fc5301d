"""How many subscribers, addresses and blocks a configuration has: what checks, composition and others count alike."""

from __future__ import annotations

from collections.abc import Sequence

from krononat.models import Pool, Subscribers

EXTERNALS_AT_MOST = 1 << 16  # addresses and room for more, of a core; as shards.state, which need not be loaded for a check
SPARE_AT_LEAST = 16  # addresses that there is room for beside those of a pool that says nothing of it


def subscribers_in(group: Subscribers) -> int:
    """How many subscribers a prefix holds."""
    return 1 << max(group.each - group.prefix.prefixlen, 0)


def first_block(pool: Pool) -> int:
    """First block that lies wholly in the pool's ports."""
    return -(-pool.ports.low // pool.block_size)


def blocks_in(pool: Pool) -> int:
    """Whole blocks that each address of the pool has."""
    return max((pool.ports.high + 1) // pool.block_size - first_block(pool), 0)


def externals_in(pool: Pool) -> int:
    """External addresses of the pool that are handed out."""
    return sum(prefix.num_addresses for prefix in pool.prefixes) - (pool.icmp_address is not None)


def externals_of(pool: Pool) -> list[int]:
    """The same addresses as numbers, in ascending order."""
    return [int(host) for prefix in sorted(pool.prefixes) for host in prefix if host != pool.icmp_address]


def spare_in(pools: Sequence[Pool]) -> list[int]:
    """How many addresses may be added to each while the appliance runs; what is not asked for is given as far as it goes."""
    left = EXTERNALS_AT_MOST - sum(externals_in(pool) + (pool.spare_addresses or 0) for pool in pools)
    found = []
    for pool in pools:
        usual = 0 if pool.allocation == "deterministic" else max(externals_in(pool), SPARE_AT_LEAST)
        given = min(usual, max(left, 0)) if pool.spare_addresses is None else pool.spare_addresses
        left -= given if pool.spare_addresses is None else 0
        found.append(given)
    return found
