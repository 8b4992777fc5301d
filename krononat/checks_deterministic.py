"""Rules between the fields of a configuration that are about deterministic ports (RFC 7422; see `checks`)."""

from __future__ import annotations

from collections.abc import Iterator

from krononat import deterministic
from krononat.deterministic import Plan, Portion
from krononat.locate import ANY, Complaint, Path
from krononat.models import Config, Mapping, Pool
from krononat.pools import blocks_in, first_block

Complaints = Iterator[Complaint]

_KEYS = ("subscribers-per-address", "ports-per-subscriber", "overflow")


def pools(config: Config) -> Complaints:
    """Every subscriber of a deterministic pool has his ports; of another one nobody has."""
    for number, pool in enumerate(config.pool):
        path: Path = ("pool", number)
        if not deterministic.is_deterministic(pool):
            for key in _KEYS:
                if getattr(pool, key.replace("-", "_")):
                    told = 'needs `allocation = "deterministic"`; this pool is dynamic'
                    yield Complaint((*path, key), told, needs=((*path, "allocation"),))
            continue
        if pool.spare_addresses:
            told = "of a deterministic pool: an address more would give everybody other ports, so none is added while it runs"
            yield Complaint((*path, "spare-addresses"), told, needs=((*path, "allocation"),))
        if _has_blocks(pool):
            wrong = list(_shares(path, pool))
            yield from wrong or _room(config, path, pool)
            yield from _sides(config, path, pool)


def _has_blocks(pool: Pool) -> bool:
    """Whether it can be cut into blocks; where not, `checks` complains."""
    return pool.block_size & (pool.block_size - 1) == 0 and blocks_in(pool) > 0


def _shares(path: Path, pool: Pool) -> Complaints:
    """What a subscriber is to have consists of blocks."""
    wanted, most = pool.ports_per_subscriber, pool.max_blocks_per_subscriber
    needs = ((*path, "block-size"),)
    if wanted is not None and wanted % pool.block_size:
        told = f"{wanted} is no multiple of block-size {pool.block_size}"
        yield Complaint((*path, "ports-per-subscriber"), told, needs=needs)
    elif wanted is not None and wanted > most * pool.block_size:
        told = f"{wanted} ports are {wanted // pool.block_size} blocks of {pool.block_size}, more than the {most} of "
        told += "`max-blocks-per-subscriber`; make `block-size` larger"
        yield Complaint((*path, "ports-per-subscriber"), told, needs=(*needs, (*path, "max-blocks-per-subscriber")))
    if pool.overflow and wanted is None:
        told = "needs `ports-per-subscriber`: else all ports are somebody's, and none is left"
        yield Complaint((*path, "overflow"), told, needs=((*path, "ports-per-subscriber"),))


def _room(config: Config, path: Path, pool: Pool) -> Complaints:
    """There are places for all of them, and in each place all the ports."""
    wanted, hosts = deterministic.subscribers_of(config, pool), sum(map(len, deterministic.spans_of(pool)))
    told = deterministic.plan(config, pool)
    needs = ((*path, "prefixes", ANY), (*path, "block-size"), (*path, "ports"), ("subscribers", ANY, "prefix"))
    if wanted > hosts * told.ratio:
        key = "subscribers-per-address" if pool.subscribers_per_address else "prefixes"
        told_what = f"{wanted:,} subscribers use this pool; {hosts:,} addresses with {told.ratio:,} each have places for "
        yield Complaint((*path, key), f"{told_what}{hosts * told.ratio:,}", needs=needs)
    elif told.blocks * told.ratio > blocks_in(pool) or not told.blocks:
        have = blocks_in(pool) * pool.block_size
        each = max(told.blocks, 1) * pool.block_size
        what = f"{told.ratio:,} subscribers of an address, {each:,} ports for each: {told.ratio * each:,} ports; "
        what += f"an address has {have:,} in whole blocks of {pool.block_size}: add addresses, or make less of either"
        key = "ports-per-subscriber" if pool.ports_per_subscriber else "subscribers-per-address"
        key = key if getattr(pool, key.replace("-", "_")) else "allocation"
        yield Complaint((*path, key), what, needs=needs)
    elif pool.overflow and told.blocks * told.ratio == blocks_in(pool):
        each = told.blocks * pool.block_size
        what = f"{told.ratio:,} subscribers with {each:,} ports each leave nothing of an address for it"
        yield Complaint((*path, "overflow"), what, needs=needs)
    elif pool.overflow and told.blocks >= pool.max_blocks_per_subscriber:
        what = f"a subscriber has {told.blocks} blocks of his own; with `max-blocks-per-subscriber` of "
        what += f"{pool.max_blocks_per_subscriber} he may have no other"
        yield Complaint((*path, "overflow"), what, needs=(*needs, (*path, "max-blocks-per-subscriber")))


def _sides(config: Config, path: Path, pool: Pool) -> Complaints:
    if config.cluster and pool.block_size == 64:
        told = "64 ports cannot be divided between a core and its backup, which would have none for anybody; 128 can"
        yield Complaint((*path, "block-size"), told, needs=((*path, "allocation"),))


def drained(config: Config) -> Complaints:
    """Whose address is closed needs another one."""
    for number, pool in enumerate(config.pool):
        if deterministic.is_deterministic(pool) and pool.drain and not pool.overflow:
            told = "whose ports these are would get none elsewhere: have `overflow = true`, or `exclude` it and restart"
            yield Complaint(("pool", number, "drain"), told, needs=(("pool", number, "overflow"),))


def mappings(config: Config) -> Complaints:
    """A static mapping takes no port of anybody else's, or whose a port is would not be what the configuration says."""
    fixed = list(filter(deterministic.is_deterministic, config.pool))
    if not fixed or not all(map(_has_blocks, fixed)) or any(pools(config)):
        return  # whose a port is cannot be said
    plans = deterministic.plans_of(config)
    for path, mapping in _mappings(config):
        pool = next((pool for pool in config.pool if any(mapping.external.address in prefix for prefix in pool.prefixes)), None)
        known = any(mapping.internal.address in group.prefix for group in config.subscribers)
        if pool and known and deterministic.is_deterministic(pool):
            mine = deterministic.forward(config, mapping.internal.address, plans)
            yield from _stranger(plans[pool.name], mine, pool, (*path, "external"), mapping)


def _stranger(told_of: Plan, mine: Portion | None, pool: Pool, path: Path, mapping: Mapping) -> Complaints:
    needs = (("pool", ANY, "prefixes", ANY), ("subscribers", ANY, "prefix"), ("pool", ANY, "allocation"))
    if mine is None:  # of another pool, which others complain about
        return
    if mapping.external.address != mine.address:
        told = f"{mapping.internal.address} has ports of {mine.address} by `allocation`, and no other address (RFC 6888 REQ-2)"
        yield Complaint(path, told, needs=needs)
        return
    begin = first_block(pool) * pool.block_size
    theirs = begin <= mapping.external.port < begin + told_of.ratio * told_of.blocks * pool.block_size
    if theirs and not mine.first <= mapping.external.port <= mine.last:
        own = f"{mine.first}-{mine.last} of {mapping.internal.address}"
        told = f"{mapping.external} is not one of the ports {own} (`allocation`)"
        yield Complaint(path, told, needs=needs)


def _mappings(config: Config) -> Iterator[tuple[Path, Mapping]]:
    for number, mapping in enumerate(config.mapping):
        yield ("mapping", number), mapping
    for group_number, group in enumerate(config.subscribers):
        for number, subscriber in enumerate(group.subscriber):
            for index, mapping in enumerate(subscriber.mappings):
                yield ("subscribers", group_number, "subscriber", number, "mappings", index), mapping


def lost(config: Config) -> Complaints:
    """Ports of an address that are nobody's."""
    for number, pool in enumerate(config.pool):
        if deterministic.is_deterministic(pool) and not pool.overflow:
            told = deterministic.plan(config, pool)
            left = (blocks_in(pool) - told.ratio * told.blocks) * pool.block_size
            if left >= told.ratio * pool.block_size or 10 * left > blocks_in(pool) * pool.block_size:
                what = f"leaves {left:,} ports of each address unused: give subscribers more of them, or have `overflow`"
                yield Complaint(("pool", number, "ports-per-subscriber" if pool.ports_per_subscriber else "allocation"), what)


REFUSALS = (pools, drained, mappings)
DOUBTS = (lost,)
