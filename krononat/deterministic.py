"""Deterministic ports (RFC 7422): whose an external port is, by the configuration alone, in both directions.

The subscribers of a pool are counted in the order of the file, its addresses in ascending order, those not that are excluded
or kept for ICMP. Subscriber n has place n mod R of address n div R (R: `subscribers-per-address`, the compression ratio;
"sequential" in the words of RFC 7422 section 2): so many whole blocks, one after the other, from the first block of the pool's
ports on. What lies behind all of these places is nobody's: with `overflow` it is given dynamically, and logged.

`shards.ports.fixed_place` says the same of a core's state; a test holds the two against each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import Literal, NamedTuple

from krononat.models import Config, Pool, Subscribers
from krononat.pools import blocks_in, first_block, subscribers_in

Kind = Literal["deterministic", "static", "dynamic", "unused"]


class Portion(NamedTuple):
    """Ports `first` to `last` of an external address, all of them one subscriber's."""

    address: IPv4Address
    first: int
    last: int


class Owner(NamedTuple):
    """Whose an external port is, and why: where it is "dynamic" only the log of blocks knows; "unused": nobody's ever."""

    kind: Kind
    pool: str
    subscriber: IPv4Network | None
    first: int
    last: int


class Plan(NamedTuple):
    """What a deterministic pool comes down to."""

    ratio: int  # subscribers of an address
    blocks: int  # of each subscriber
    overflow: bool


def plan(config: Config, pool: Pool) -> Plan:
    """Of a deterministic pool, with what the file leaves out: as many of an address as there must be, then all of its ports."""
    addresses = max(sum(map(len, spans_of(pool))), 1)
    ratio = pool.subscribers_per_address or max(-(-subscribers_of(config, pool) // addresses), 1)
    if pool.ports_per_subscriber is not None:
        return Plan(ratio, pool.ports_per_subscriber // pool.block_size, pool.overflow)
    return Plan(ratio, min(blocks_in(pool) // ratio, pool.max_blocks_per_subscriber), pool.overflow)


def groups_of(config: Config, pool: Pool) -> Iterator[tuple[int, Subscribers]]:
    """(number of its first subscriber, prefix) of those that use a pool."""
    first = 0
    for group in config.subscribers:
        if group.pool == pool.name:
            yield first, group
            first += subscribers_in(group)


def subscribers_of(config: Config, pool: Pool) -> int:
    """How many use a pool."""
    return sum(subscribers_in(group) for _, group in groups_of(config, pool))


def plans_of(config: Config) -> dict[str, Plan]:
    """The plans of all deterministic pools, by name."""
    return {pool.name: plan(config, pool) for pool in filter(is_deterministic, config.pool)}


def spans_of(pool: Pool) -> list[range]:
    """The addresses that have places, as numbers in their order: what is left of each prefix."""
    absent = [_ends(prefix) for prefix in pool.exclude]
    absent += [(int(pool.icmp_address),) * 2] if pool.icmp_address else []
    return [span for prefix in sorted(pool.prefixes) for span in _left(*_ends(prefix), sorted(absent)) if span]


def addresses_of(pool: Pool) -> list[IPv4Address]:
    """The same one by one."""
    return [IPv4Address(host) for span in spans_of(pool) for host in span]


def _ends(prefix: IPv4Network) -> tuple[int, int]:
    return int(prefix.network_address), int(prefix.broadcast_address)


def _left(low: int, high: int, absent: list[tuple[int, int]]) -> Iterator[range]:
    """What is left of `low` to `high`, both included, without others in ascending order, which may overlap."""
    for first, last in absent:
        yield range(low, min(first, high + 1))
        low = max(low, last + 1)
    yield range(low, high + 1)


def _nth(spans: list[range], nth: int) -> IPv4Address:
    """The address of this ordinal."""
    for span in spans:
        if nth < len(span):
            return IPv4Address(span[nth])
        nth -= len(span)
    raise IndexError("there are not so many addresses")


def _ordinal(spans: list[range], address: IPv4Address) -> int:
    """Ordinal of an address; -1: it has no places."""
    before = 0
    for span in spans:
        if int(address) in span:
            return before + span.index(int(address))
        before += len(span)
    return -1


# --- both ways --------------------------------------------------------------------------------------------------------------


def forward(config: Config, subscriber: IPv4Address, plans: Mapping[str, Plan] | None = None) -> Portion | None:
    """The ports that are for ever those of whoever has an internal address; None: he is nobody here, or his pool is dynamic.

    `plans`: `plans_of` this configuration, of whoever asks often.
    """
    for pool in filter(is_deterministic, config.pool):
        for first, group in groups_of(config, pool):
            if subscriber in group.prefix:
                offset = int(subscriber) - int(group.prefix.network_address) >> 32 - group.each
                return _portion(pool, first + offset, plans[pool.name] if plans else plan(config, pool))
    return None


def _portion(pool: Pool, number: int, told: Plan) -> Portion:
    nth, place = divmod(number, told.ratio)
    first = (first_block(pool) + place * told.blocks) * pool.block_size
    return Portion(_nth(spans_of(pool), nth), first, first + told.blocks * pool.block_size - 1)


def reverse(config: Config, address: IPv4Address, port: int, protocol: str = "") -> Owner | None:
    """Whose an external port is; None: no pool has the address. `protocol`: tcp or udp, for static mappings ("": either)."""
    pool = next((pool for pool in config.pool if any(address in prefix for prefix in pool.prefixes)), None)
    if pool is None:
        return None
    return _static(config, pool, address, port, protocol) or _placed(config, pool, address, port)


def _static(config: Config, pool: Pool, address: IPv4Address, port: int, protocol: str) -> Owner | None:
    for mapping in config.mappings():
        if mapping.external == (address, port) and protocol in ("", mapping.protocol):
            return Owner("static", pool.name, _unit(config, mapping.internal.address), port, port)
    return None


def _unit(config: Config, internal: IPv4Address) -> IPv4Network:
    """The subscriber to whom an internal address belongs."""
    group = next(group for group in config.subscribers if internal in group.prefix)
    return IPv4Network((internal, group.each), strict=False)


def _placed(config: Config, pool: Pool, address: IPv4Address, port: int) -> Owner:
    begin, end = first_block(pool) * pool.block_size, (first_block(pool) + blocks_in(pool)) * pool.block_size
    nth = _ordinal(spans_of(pool), address)
    if nth < 0 or not begin <= port < end:
        return Owner("unused", pool.name, None, port, port)
    if not is_deterministic(pool):
        first = port // pool.block_size * pool.block_size
        return Owner("dynamic", pool.name, None, first, first + pool.block_size - 1)
    told = plan(config, pool)
    place, number = divmod(port - begin, told.blocks * pool.block_size)[0], nth * told.ratio
    first = begin + place * told.blocks * pool.block_size
    if place >= told.ratio:
        first = port // pool.block_size * pool.block_size
        return Owner("dynamic" if told.overflow else "unused", pool.name, None, first, first + pool.block_size - 1)
    owner = _numbered(config, pool, number + place)
    return Owner("deterministic" if owner else "unused", pool.name, owner, first, first + told.blocks * pool.block_size - 1)


def _numbered(config: Config, pool: Pool, number: int) -> IPv4Network | None:
    """A pool's subscriber of a number; None: it has fewer."""
    for first, group in groups_of(config, pool):
        if first <= number < first + subscribers_in(group):
            internal = int(group.prefix.network_address) + (number - first << 32 - group.each)
            return IPv4Network((internal, group.each))
    return None


def is_deterministic(pool: Pool) -> bool:
    """Whether a pool's subscribers have ports of their own."""
    return pool.allocation == "deterministic"
