"""memif: rings in shared memory between two processes, as VPP and DPDK have them. Layout: FD.io VPP, `memif.h`, version 2.0.

A ring is a header of two cache lines and its descriptors of 16 bytes; cursors are free running and 16 bits wide.

    byte 0 cookie u32 | 4 flags u16 | 6 head u16 | ... | 64 tail u16 | ... | 128 descriptors
    descriptor: 0 flags u16 | 2 region u16 | 4 length u32 | 8 offset u32 | 12 metadata u32

The client (we) owns all memory. It advances the head of both rings, the server their tails. Towards the server (c2s) head says
what was sent, tail what was taken; from it (s2c) head says which buffers were given, tail which of them were filled.
"""

from __future__ import annotations

COOKIE = 0x3E31F20
RING_HEADER_BYTES, DESCRIPTOR_BYTES = 128, 16
FLAGS_AT, HEAD_AT, TAIL_AT = 4, 6, 64  # bytes into a ring
MASK_INTERRUPT = 1  # of a ring's flags: whoever reads it polls, and wants no event
NEXT = 1  # of a descriptor's flags: the packet goes on in the next one
LOG2_ENTRIES_AT_MOST = 14


def ring_bytes(log2_entries: int) -> int:
    """Bytes of a ring."""
    return RING_HEADER_BYTES + (DESCRIPTOR_BYTES << log2_entries)
