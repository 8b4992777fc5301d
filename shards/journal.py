"""What changed since it was last shipped: a dirty bit per row and tombstones with generation.

Bounded and coalescing: a row that changes a thousand times is one bit, and a snapshot is all bits set. Displacement in the
index is no change, and neither is a refresh: liveness travels as a bitmap of its own. The appliance hands the loop a chore that
drains this; the path only writes it.
"""

from __future__ import annotations

import numpy as np

from shards.jit import hot, whole
from shards.state import TOMBSTONES, State


@hot
def mark(state: State, half: int) -> None:
    """Row at half-line `half` (a session has an even one: twice its line) changed."""
    state.dirty[half >> 6] |= np.uint64(1) << np.uint64(half & 63)


@hot
def bury(state: State, half: int, generation: int) -> None:
    """The row's life number `generation` ended. The ring overwrites its oldest; a reader sees that by `core.tombstones`."""
    state.dirty[half >> 6] &= ~(np.uint64(1) << np.uint64(half & 63))
    core = state.core[0]
    number = whole(core["tombstones"])
    state.tombstones[number & (TOMBSTONES - 1)] = np.uint64(half) | np.uint64(generation) << np.uint64(32)
    core["tombstones"] = (number + 1) & 0xFFFFFFFF
