"""memif: rings in shared memory between two processes, as VPP and DPDK have them. Layout: FD.io VPP, `memif.h`, version 2.0.

A ring is a header of two cache lines and its descriptors of 16 bytes; cursors are free running and 16 bits wide.

    byte 0 cookie u32 | 4 flags u16 | 6 head u16 | ... | 64 tail u16 | ... | 128 descriptors
    descriptor: 0 flags u16 | 2 region u16 | 4 length u32 | 8 offset u32 | 12 metadata u32

The client (we) owns all memory. It advances the head of both rings, the server their tails. Towards the server (c2s) head says
what was sent, tail what was taken; from it (s2c) head says which buffers were given, tail which of them were filled.
"""

from __future__ import annotations

import mmap
from typing import TypedDict

from shards.notes import SLOTS
from shards.xsk import FRAME_BYTES, HEADROOM

COOKIE = 0x3E31F20
RING_HEADER_BYTES, DESCRIPTOR_BYTES = 128, 16
MASK_INTERRUPT = 1  # of a ring's flags: whoever reads it polls, and wants no event
NEXT = 1  # of a descriptor's flags: the packet goes on in the next one
LOG2_ENTRIES_AT_MOST = 14
FRAMES_REGION = 1  # index of the region that packets lie in; 0 has the rings

assert SLOTS == 1 << LOG2_ENTRIES_AT_MOST

# In a ring: places in 16-bit words, and of its entries in 64-bit ones.
FLAGS, HEAD, TAIL = 2, 3, 32
ENTRIES = RING_HEADER_BYTES // 8

BUFFER_BYTES = FRAME_BYTES - HEADROOM  # that a server may fill, of each frame

# A port's words in the notes' `links`: its cursors (64 bits, never wrapping), the connection they belong to (0: none), whether
# its other side broke the rules, bad descriptors, frames from the kernel; then counts by `outcomes`.
CONNECTION, GIVEN, FILLED, SENT, TAKEN, BROKEN, REFUSED, FROM_KERNEL, OUTCOME = range(9)


class Connection(TypedDict):
    """Rings that a server has mapped: a number that no other one has, descriptors of their region and their events."""

    number: int
    region: int
    out_event: int
    back_event: int
    log2_entries: int


class Line(TypedDict):
    """A memif port: its number, the descriptor of its tap, two own and two broadcast addresses (-1: none), who is there.

    `bfd`: whether BFD to its own addresses is the worker's and not the kernel's.
    """

    port: int
    tap: int
    own: list[int]
    broadcast: list[int]
    bfd: bool
    own6: list[int]  # the quarters of two
    connection: Connection | None


def ring_bytes(log2_entries: int) -> int:
    """Bytes of a ring."""
    return RING_HEADER_BYTES + (DESCRIPTOR_BYTES << log2_entries)


LINE_BYTES = -(-2 * ring_bytes(LOG2_ENTRIES_AT_MOST) // mmap.PAGESIZE) * mmap.PAGESIZE  # room for a port's two rings
