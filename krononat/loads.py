"""What each shard costs: packets a second, as two looks into the memory of running cores tell, and sessions.

A hit counts in its session's row and nowhere else, so that nothing is added to the packet path. What ended between two looks is
not counted; for a second's look that is little.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from replication.tables import SESSIONS
from shards.state import EXTENT_LINES, FIREWALL_SESSION6, NAT_SESSION, Array, State

IDLE = 0.1  # of the mean: what a shard without any packet or session counts, so that those are shared out, too


class Extent(NamedTuple):
    """Sessions of one extent at one moment."""

    shard: int
    lives: Array  # uint16
    packets: Array  # uint32, 0 where no session lives


def look(state: State) -> dict[int, Extent]:
    """Every extent of sessions."""
    found = {}
    for number, told in enumerate(state.extents):
        if number and told["kind"] and told["klass"] in SESSIONS:
            rows = state.sessions[number * EXTENT_LINES : (number + 1) * EXTENT_LINES]
            living = (rows["kind"] == NAT_SESSION) | (rows["kind"] == FIREWALL_SESSION6)  # second lines of IPv6 have no kind
            packets = np.where(living, rows["packets"], np.uint32(0))
            found[number] = Extent(int(told["shard"]), rows["generation"].copy(), packets)
    return found


def rates(before: Mapping[int, Extent], after: Mapping[int, Extent], seconds: float) -> dict[int, float]:
    """Packets a second by shard, both directions."""
    found: dict[int, float] = defaultdict(float)
    for number, now in after.items():
        then = before.get(number)
        packets = now.packets
        if then is not None and then.shard == now.shard:
            old = np.where(then.lives == now.lives, then.packets, np.uint32(0))
            packets = np.where(now.packets != 0, now.packets - old, np.uint32(0))  # wraps
        found[now.shard] += float(packets.sum(dtype=np.uint64)) / seconds
    return dict(found)


def together(shards: Iterable[int], packets: Mapping[int, float], sessions: Mapping[int, float]) -> dict[int, float]:
    """Load of each shard in thousandths of the cluster's: half by packets, half by sessions, whatever there is of both."""
    numbers = list(shards)
    parts = [part for part in (_shares(numbers, packets), _shares(numbers, sessions)) if part]
    if not parts:
        return dict.fromkeys(numbers, 1.0)
    least = IDLE * 1000 / len(numbers)
    return {shard: least + sum(part[shard] for part in parts) / len(parts) for shard in numbers}


def _shares(shards: list[int], counts: Mapping[int, float]) -> dict[int, float]:
    total = sum(counts.get(shard, 0.0) for shard in shards)
    return {shard: 1000 * counts.get(shard, 0.0) / total for shard in shards} if total > 0 else {}
