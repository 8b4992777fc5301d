"""Whose each frame is, so that a worker may be killed at any moment; and all that the loop needs of its ports, `Rings`.

Who has a frame is one word of memory that outlives the worker, always written **before** the cursor that makes it true:

    FREE        on the free list                   HAND      with the worker; remembers the queue it came by
    RECEIVING   given away to be received into     SENDING   given away to be sent; both remember ring and position

So a successor needs neither luck nor a log (`rings.take_over`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from shards.jit import PURE, hot
from shards.state import Array
from shards.xsk import FRAME_SHIFT

FREE, HAND, RECEIVING, SENDING = range(4)
XDP, MEMIF = range(2)  # kinds of queues

# Where a ring's parts are: cursors and flags in 32-bit words of the region, entries in its 64-bit ones.
RING = np.dtype([("producer", "i8"), ("consumer", "i8"), ("flags", "i8"), ("entries", "i8"), ("mask", "i8"), ("level", "i8")])
QUEUE = np.dtype([("fd", "i8"), ("port", "i8"), ("number", "i8"), ("kind", "i8"), ("control", "i8")])
LOCAL = np.dtype([("free", "i8"), ("turn", "i8"), ("reserve", "i8")])

RESERVE_AT_MOST = 16  # free frames that are never offered to receive into: for what this core itself has to say


class Rings(NamedTuple):
    """Everything the loop needs of its ports. A *queue* below is a row: one queue of one port."""

    frames: Array  # uint8: the umem
    owners: Array  # as in Notes
    ledger: Array
    links: Array
    slots: Array
    halves: Array  # uint16: the region of all rings
    words: Array  # uint32: the same
    longs: Array  # int64: the same
    rx: Array  # RING, by queue; of XDP ones
    tx: Array
    fill: Array
    completion: Array
    control_rx: Array  # of the same queues: rings of their control sockets; a level of 0 where there is none
    control_tx: Array
    lines: Array  # memif_rings.LINE, by queue; of MEMIF ones
    queues: Array  # QUEUE
    first: Array  # int64, by port: its first queue
    width: Array  # int64, by port: how many it has
    pending: Array  # int64, by queue: transmit cursor, ahead of the one the other side sees
    free: Array  # int64: stack of free frames
    local: Array  # LOCAL (1,): height of the stack; the queue whose turn it is; frames that are kept back
    polled: Array  # int32 (n, 2): struct pollfd
    event: Array  # int64: what goes to event descriptors, 1; then room for what comes from them


if not PURE:
    from shards import passing

    passing.by_reference(Rings)


@hot
def owner(kind: int, queue: int, position: int) -> int:
    """The word that says who has a frame."""
    return (kind << 56) | (queue << 32) | position


@hot
def push(rings: Rings, frame: int) -> None:
    """Put a frame on the free list."""
    height = rings.local[0]["free"]
    rings.owners[frame] = FREE
    rings.free[height] = frame
    rings.local[0]["free"] = height + 1


@hot
def recycle(rings: Rings, at: int) -> None:
    """Free a frame that is in hand, by any offset inside it. One that is not is left alone, and counted as refused."""
    frame = at >> FRAME_SHIFT
    if rings.owners[frame] >> 56 == HAND:
        push(rings, frame)
    else:
        rings.ledger[0]["refused"] += 1


@hot
def to_give(rings: Rings) -> int:
    """Free frames that may be given away to be received into."""
    return max(int(rings.local[0]["free"]) - int(rings.local[0]["reserve"]), 0)


def census(rings: Rings) -> dict[str, int]:
    """How many frames are whose; they add up to all there are."""
    counted = np.bincount(rings.owners >> 56, minlength=4)
    return dict(zip(("free", "hand", "receiving", "sending"), counted.tolist(), strict=True))
