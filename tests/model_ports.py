"""Which external ports a new mapping may get: the part of `model` that judges what the pipeline has chosen (RFC 6888, 7857)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from tests.admission import is_generic
from tests.bed import longest, ordinal_of
from tests.bed_pools import Pool, block_range, first_loose
from tests.outcome import Illegal
from tests.translation import Endpoint, Refused

if TYPE_CHECKING:
    from tests.model import Model

Choose = Callable[[int, Endpoint], Endpoint]  # (protocol, internal endpoint) -> external endpoint


@dataclass
class Subscriber:
    """The external address a subscriber is paired with, and his blocks there."""

    external: int = 0
    blocks: set[int] = field(default_factory=set)
    last: int = 0  # address he is, was, or would have been paired with


class Ports:
    """Ports and blocks of a core's pools."""

    def __init__(self, model: Model) -> None:
        self.model, self.bed = model, model.bed

    def choose(self, protocol: int, internal: Endpoint, choose: Choose) -> Endpoint:
        """The external endpoint that the other side chose, once it is proven legal."""
        subscriber, pool = self.model.subscriber(internal[0]), self.model.pool(internal[0])
        if pool.ratio:
            return self._choose_own(protocol, internal, choose)
        old = any(self._free_port(protocol, subscriber.external, block, pool.block) for block in subscriber.blocks)
        if not old and len(subscriber.blocks) >= pool.blocks:
            raise Refused("ports_exhausted")
        if not old and not any(self._free_blocks(subscriber, pool, protocol)):
            raise Refused("pool_exhausted")
        host, port = choose(protocol, internal)
        block = (host, port // pool.block)
        if old and (host != subscriber.external or block[1] not in subscriber.blocks):
            raise Illegal(f"{IPv4Address(host)}:{port} although the subscriber has free ports in his blocks")
        if not old and block not in self._free_blocks(subscriber, pool, protocol):
            raise Illegal(f"{IPv4Address(host)}:{port} is in no block that this subscriber may take")
        if not self._is_of_our_side(host, port):
            raise Illegal(f"{IPv4Address(host)}:{port} is for the other replica to hand out")
        if not self._is_free(protocol, (host, port)) or port < 1024:
            raise Illegal(f"{IPv4Address(host)}:{port} is owned, held down or reserved")
        subscriber.external = subscriber.last = host
        subscriber.blocks.add(block[1])
        return host, port

    # --- RFC 7422 ---------------------------------------------------------------------------------------------------------

    def own_blocks(self, host: int) -> tuple[int, list[int]]:
        """(external address, blocks) that a subscriber has for ever: the n-th subscriber of a pool has the n-th place of it."""
        pool, prefix = self.model.pool(host), longest(self.bed.subscribers, host)
        assert prefix
        nth = ordinal_of(self.bed, prefix) + (host - int(prefix.network.network_address) >> 32 - prefix.each)
        first = block_range(pool)[0] + nth % pool.ratio * pool.fixed
        return int(pool.network.network_address) + nth // pool.ratio, list(range(first, first + pool.fixed))

    def _choose_own(self, protocol: int, internal: Endpoint, choose: Choose) -> Endpoint:
        """As `choose`, where every subscriber has blocks of his own."""
        subscriber, pool = self.model.subscriber(internal[0]), self.model.pool(internal[0])
        wanted = [(subscriber.external, block) for block in subscriber.blocks]
        wanted = [(host, block) for host, block in wanted if self._free_port(protocol, host, block, pool.block)]
        wanted = wanted + self._own_vacancies(protocol, internal[0]) or self._loose(protocol, internal[0])
        host, port = choose(protocol, internal)
        if (host, port // pool.block) not in wanted:
            raise Illegal(f"{IPv4Address(host)}:{port} is in no block that this subscriber may use")
        if not self._is_of_our_side(host, port) or not self._is_free(protocol, (host, port)):
            raise Illegal(f"{IPv4Address(host)}:{port} is owned, held down or for the other replica to hand out")
        subscriber.external = subscriber.last = host
        subscriber.blocks.add(port // pool.block)
        return host, port

    def _own_vacancies(self, protocol: int, internal: int) -> list[tuple[int, int]]:
        """Blocks of his own that a subscriber does not use yet, and could."""
        subscriber, pool = self.model.subscriber(internal), self.model.pool(internal)
        host, blocks = self.own_blocks(internal)
        if (subscriber.blocks and subscriber.external != host) or (host in self.bed.drained and not subscriber.blocks):
            return []
        vacant = [block for block in blocks if block not in subscriber.blocks]
        return [(host, block) for block in vacant if self._free_port(protocol, host, block, pool.block)]

    def _loose(self, protocol: int, internal: int) -> list[tuple[int, int]]:
        """Blocks that are nobody's own, of which he could have one; Refused if there is none."""
        subscriber, pool = self.model.subscriber(internal), self.model.pool(internal)
        home, _ = self.own_blocks(internal)
        begin, end = first_loose(pool), block_range(pool)[1]
        if begin == end or len([block for block in subscriber.blocks if block >= begin]) >= pool.blocks - pool.fixed:
            raise Refused("ports_exhausted")
        hosts = [host for host in pool.hosts if host not in self.bed.drained]
        hosts = [subscriber.external] if subscriber.blocks else [home] if home in hosts else hosts
        places = set(itertools.product(hosts, range(begin, end))) - self._taken(pool)
        ours = [(host, block) for host, block in places if self._is_of_our_side(host, block * pool.block)]
        free = [(host, block) for host, block in ours if self._free_port(protocol, host, block, pool.block)]
        if not free:
            raise Refused("pool_exhausted")
        return free

    # --- places -----------------------------------------------------------------------------------------------------------

    def _free_port(self, protocol: int, host: int, block: int, size: int) -> int:
        """The first free port of a block, or 0."""
        ports = [port for port in range(block * size, (block + 1) * size) if self._is_of_our_side(host, port)]
        return next((port for port in ports if self._is_free(protocol, (host, port))), 0)

    def _is_of_our_side(self, host: int, port: int) -> bool:
        pool = self.model.pool_of[host]
        return not self.bed.two_sides or self._side_of(pool, port) == self.bed.shard(pool.shard).side

    def _side_of(self, pool: Pool, port: int) -> int:
        """`side_of`; in blocks that are somebody's own all ends are the other side's."""
        own = range(block_range(pool)[0], first_loose(pool))
        return side_of(pool, port % pool.block if port // pool.block in own else port)

    def _is_free(self, protocol: int, external: Endpoint) -> bool:
        if is_generic(protocol):  # they share their places
            alike = {(other, external) for other, _ in (*self.model.owners, *self.model.freed) if is_generic(other)}
            return all(self._rests(key) for key in alike)
        return self._rests((protocol, external))

    def _rests(self, key: tuple[int, Endpoint]) -> bool:
        """Whether nobody has a port, nor has had it lately."""
        freed = self.model.freed.get(key)
        # In whole seconds, rounded so that it is never less than the hold-down.
        rested = freed is None or not self.bed.hold_down_s or self.model.now // 1000 - freed // 1000 > self.bed.hold_down_s
        return rested and key not in self.model.owners

    def _free_blocks(self, subscriber: Subscriber, pool: Pool, protocol: int) -> Iterator[tuple[int, int]]:
        """Blocks that the subscriber may take: nobody's, and not held down wholly."""
        taken = self._taken(pool)
        hosts = [host for host in pool.hosts if host not in self.bed.drained]
        hosts = [subscriber.external] if subscriber.blocks else hosts
        for host, block in itertools.product(hosts, range(*block_range(pool))):
            ours = self._is_of_our_side(host, block * pool.block)
            if (host, block) not in taken and ours and self._free_port(protocol, host, block, pool.block):
                yield host, block

    def stays(self, host: int) -> bool:
        """Whether who has no block will have his next on the address that he had last, as it has one that is nobody's."""
        pool = self.model.pool_of.get(host)
        if pool is None or pool.ratio or host in self.bed.drained:
            return False
        taken = self._taken(pool)
        return any((host, block) not in taken for block in range(*block_range(pool)))

    def _taken(self, pool: Pool) -> set[tuple[int, int]]:
        """(address, block) of those that somebody has, or a static mapping has a port in."""
        taken = {(other.external, block) for other in self.model.subscribers.values() for block in other.blocks}
        statics = (mapping.external for mapping in self.model.owners.values() if mapping.static)
        return taken | {(host, port // pool.block) for host, port in statics}


def side_of(pool: Pool, port: int) -> int:
    """Side of a port where a pool has two: the last of eight blocks, and of eight 64-port chunks in each, is the other's."""
    chunks, chunk = pool.block // 64, port % pool.block // 64
    end = chunks > 1 and chunk >= chunks - max(chunks // 8, 1)
    return int((port // pool.block % 8 == 7) != end)
