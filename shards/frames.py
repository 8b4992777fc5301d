"""Whose each frame is, so that a worker may be killed at any moment; and all that the loop needs of its ports, `Rings`.

Who has a frame is one word of memory that outlives the worker, always written **before** the cursor that makes it true:

    FREE        on the free list                   HAND      with the worker; remembers the queue it came by
    RECEIVING   given away to be received into     SENDING   given away to be sent; both remember ring and position

So a successor needs neither luck nor a log (`rings.take_over`). What is written about frames (the notes) lies apart from them:
a memif peer maps the frames, and must not be able to touch what decides whose they are.

    notes (memfd):  owners: int64 for each frame | ledger: a cache line | links: of memif ports | slots: of their rings
"""

from __future__ import annotations

import mmap
import os
from typing import Any, NamedTuple

import numpy as np

from shards.jit import PURE, hot
from shards.state import Array
from shards.xsk import FRAME_SHIFT

FREE, HAND, RECEIVING, SENDING = range(4)
XDP, MEMIF = range(2)  # kinds of queues

# What workers tell their successors: how many there were, frames lost with the dead, frames that were not in hand when freed.
LEDGER = np.dtype([("attached", "i8"), ("lost", "i8"), ("refused", "i8"), ("spare", "u1", (40,))])
assert LEDGER.itemsize == 64

LINKS_AT_MOST = 8  # memif ports of a core
LINK_WORDS = 32  # int64 of a memif port, see `memif`
SLOTS = 1 << 14  # of a memif ring, at most

# Where a ring's parts are: cursors and flags in 32-bit words of the region, entries in its 64-bit ones.
RING = np.dtype([("producer", "i8"), ("consumer", "i8"), ("flags", "i8"), ("entries", "i8")])
QUEUE = np.dtype([("fd", "i8"), ("port", "i8"), ("number", "i8"), ("kind", "i8")])
LOCAL = np.dtype([("free", "i8"), ("turn", "i8")])


class Notes(NamedTuple):
    """What is written about frames."""

    owners: Array  # int64, by frame: kind << 56 | queue << 32 | position
    ledger: Array  # LEDGER (1,)
    links: Array  # int64 (LINKS_AT_MOST * LINK_WORDS,)
    slots: Array  # int64 (LINKS_AT_MOST * 2 * SLOTS,): which frame is at which entry of a memif port's two rings


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
    lines: Array  # memif.LINE, by queue; of MEMIF ones
    queues: Array  # QUEUE
    first: Array  # int64, by port: its first queue
    width: Array  # int64, by port: how many it has
    pending: Array  # int64, by queue: transmit cursor, ahead of the one the other side sees
    free: Array  # int64: stack of free frames
    local: Array  # LOCAL (1,): height of the stack; the queue whose turn it is
    polled: Array  # int32 (n, 2): struct pollfd
    event: Array  # int64 (1,): what goes to, and comes from, event descriptors; never 0
    mask: int  # entries of every XDP ring - 1


if not PURE:
    from shards import passing

    passing.by_reference(Rings)


def notes_bytes(frames: int) -> int:
    """Size of what is written about so many frames. Sparse: a core without memif ports takes none for them."""
    told = 8 * (frames + LINKS_AT_MOST * (LINK_WORDS + 2 * SLOTS)) + LEDGER.itemsize
    return -(-told // mmap.PAGESIZE) * mmap.PAGESIZE


def new_notes(frames: int) -> int:
    """Descriptor of fresh memory for what is written about so many frames."""
    descriptor = os.memfd_create("krononat-notes", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, notes_bytes(frames))
    return descriptor


def map_notes(descriptor: int, frames: int) -> mmap.mmap:
    """That memory as a buffer, shared with everyone who maps it."""
    return mmap.mmap(descriptor, notes_bytes(frames), mmap.MAP_SHARED)


def notes_of(memory: Any, frames: int) -> Notes:
    """Arrays over that memory."""
    arrays, at = [], 0
    for dtype, count in (
        ("i8", frames),
        (LEDGER, 1),
        ("i8", LINKS_AT_MOST * LINK_WORDS),
        ("i8", LINKS_AT_MOST * 2 * SLOTS),
    ):
        arrays.append(np.frombuffer(memory, dtype, count, at))
        at += arrays[-1].nbytes
    return Notes(*arrays)


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


def census(rings: Rings) -> dict[str, int]:
    """How many frames are whose; they add up to all there are."""
    counted = np.bincount(rings.owners >> 56, minlength=4)
    return dict(zip(("free", "hand", "receiving", "sending"), counted.tolist(), strict=True))
