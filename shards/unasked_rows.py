"""Rows of who asked for a connection that nothing permits, and will be told so later (see `unasked`)."""

from __future__ import annotations

import numpy as np

# A row is the columns of a burst that cannot be read from the packet again, and what its frame had before the IP header.
UNASKED = np.dtype(
    [
        ("mac", "u8"),  # of who sent us the frame
        ("due", "u4"),  # tick from which on its sender may be told
        ("source", "u4"),  # IPv4 only; of a hairpinned packet the external one
        ("destination", "u4"),
        ("source_port", "u2"),
        ("destination_port", "u2"),
        ("l4", "u2"),  # bytes from the IP header to the transport's
        ("ip_length", "u2"),
        ("shard", "u2"),  # as in a burst
        ("verdict", "u1"),  # what it was dropped with
        ("port", "u1"),  # row of PORT
        ("outer", "u1"),  # as in a burst
        ("six", "u1"),
        ("protocol", "u1"),
        ("turned", "u1"),  # 1: a hairpin, refused by its second half
        ("spare", "u1", (4,)),
    ]
)
assert UNASKED.itemsize == 40

UNASKED_ROWS = 1024  # six seconds of the hundred errors a second that are the default, and more; a power of two
QUOTE_BYTES = 1280 - 40 - 8  # kept of each packet: what an ICMPv6 error may quote (RFC 4443 2.4 c)
