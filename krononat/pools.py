"""How many subscribers, addresses and blocks a configuration has: what checks, composition and others count alike."""

from __future__ import annotations

from krononat.models import Pool, Subscribers


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
