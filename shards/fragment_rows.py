"""What is known of datagrams in fragments, in the state of a core."""

from __future__ import annotations

import numpy as np

FRAGMENTS = 1 << 12  # datagrams in fragments at once
PIECES_EACH = 128  # fragments of one datagram: 65,535 bytes by 576
SHARES, IDENTITIES = 1 << 12, 1 << 12

# A datagram that comes in fragments (see `fragments`). Neither replicated nor kept when the worker changes.
FRAGMENTED = np.dtype(
    [
        ("source_high", "u8"),  # its name, as `datagrams.name` has it: what all of its fragments say
        ("source", "u8"),
        ("destination_high", "u8"),
        ("destination", "u8"),
        ("realm", "u4"),
        ("id", "u4"),
        ("protocol", "u1"),
        ("phase", "u1"),  # fragments.WAITING ...; 0 free
        ("verdict", "u1"),  # of the first fragment
        ("turned", "u1"),  # passed on: 1 as the second half of a hairpin
        ("expiry", "u4"),  # tick
        ("born", "u4"),  # tick
        ("new_source", "u4"),  # what the first fragment was translated to; of IPv6 nothing is
        ("new_destination", "u4"),
        ("new_id", "u2"),
        ("next_hop", "u2"),
        ("shard", "u2"),  # passed on: row of SHARD
        ("share", "u2"),  # of `shares`, that pays for it
        ("end", "u4"),  # bytes of its whole payload, 0 not known yet
        ("got", "u4"),  # of these have come
        ("pieces", "u2"),  # rows of `covered` in use
        ("held", "u2"),  # of its fragments wait for the first
    ]
)
assert FRAGMENTED.itemsize == 80
