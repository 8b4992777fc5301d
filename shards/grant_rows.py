"""What is known, in the state of a core, of a mapping that a subscriber asked for (PCP, RFC 6887; NAT-PMP, RFC 6886)."""

from __future__ import annotations

import numpy as np

DYNAMIC, CONFIGURED, GRANTED = range(3)  # `static` of a mapping's row: what keeps it while no session uses it

# Who asked. ADOPTED: nobody we know of; the mapping came from another core, its nonce and the end of its lifetime did not.
NOBODY, PCP, NAT_PMP, ADOPTED = range(4)
ORIGINS = ("", "pcp", "nat-pmp", "adopted")

NONCE_BYTES = 12
SECONDS = 1000  # ticks in one; times here are seconds, which do not wrap while a lifetime lasts

# Of a mapping's row, which may have ended since: it lives as long as this very life of the row (`generation`) is GRANTED.
GRANT = np.dtype(
    [
        ("half", "u4"),  # half-line of the mapping
        ("expires_s", "u4"),  # second of the packets' clock
        ("granted_s", "u4"),  # the same: when it was asked for first
        ("account", "u4"),  # of the subscriber
        ("generation", "u2"),
        ("origin", "u1"),  # NOBODY: the row is free
        ("spare", "u1"),
        ("nonce", "u1", (NONCE_BYTES,)),
    ]
)
assert GRANT.itemsize == 32
