"""What changed since it was last shipped: a dirty bit per row and tombstones with generation.

Bounded and coalescing: a row that changes a thousand times is one bit, and a snapshot is all bits set. A second level, a bit
per word of the first, lets a reader find few bits among millions. Displacement in the index is no change, and neither is a
refresh: liveness travels as a bitmap of its own. A row whose life was never sent needs no tombstone: flows that are over before
anyone was told cost nothing. The appliance hands the loop a chore that drains this; the path only writes it.
"""

from __future__ import annotations

import numpy as np

from shards.jit import hot, whole
from shards.state import TOMBSTONES, State

_U = np.uint64


@hot
def mark(state: State, half: int) -> None:
    """Row at half-line `half` (a session has an even one: twice its line) changed."""
    word = half >> 6
    state.dirty[word] |= _U(1) << _U(half & 63)
    state.summary[word >> 6] |= _U(1) << _U(word & 63)


@hot
def bury(state: State, half: int, generation: int) -> None:
    """The row's life number `generation` ended. The ring overwrites its oldest; a reader sees that by `core.tombstones`."""
    word, bit = half >> 6, _U(1) << _U(half & 63)
    state.dirty[word] &= ~bit
    if state.shipped[word] & bit == _U(0):
        return
    state.shipped[word] &= ~bit
    core = state.core[0]
    number = whole(core["tombstones"])
    state.tombstones[number & (TOMBSTONES - 1)] = _U(half) | _U(generation) << _U(32)
    core["tombstones"] = (number + 1) & 0xFFFFFFFF
