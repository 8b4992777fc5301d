"""What is written about frames, in memory of its own that outlives a worker: whose they are, what was lost, memif's cursors.

It lies apart from the frames because a memif server maps those, and must not be able to touch what decides whose they are.

    notes (memfd):  owners: int64 for each frame | ledger: a cache line | links: of memif ports | slots: of their rings
"""

from __future__ import annotations

import mmap
import os
from typing import Any, NamedTuple

import numpy as np

from shards.state import Array

# What workers tell their successors: how many there were, frames lost with the dead, frames that were not in hand when freed.
LEDGER = np.dtype([("attached", "i8"), ("lost", "i8"), ("refused", "i8"), ("spare", "u1", (40,))])
assert LEDGER.itemsize == 64

LINKS_AT_MOST = 8  # memif ports of a core
LINK_WORDS = 32  # int64 of a memif port, see `memif`
SLOTS = 1 << 14  # of a memif ring, at most


class Notes(NamedTuple):
    """What is written about frames."""

    owners: Array  # int64, by frame: kind << 56 | queue << 32 | position
    ledger: Array  # LEDGER (1,)
    links: Array  # int64 (LINKS_AT_MOST * LINK_WORDS,)
    slots: Array  # int64 (LINKS_AT_MOST * 2 * SLOTS,): which frame is at which entry of a memif port's two rings


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
