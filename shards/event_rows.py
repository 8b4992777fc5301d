"""What a row of the log is, in the state of a core."""

from __future__ import annotations

import numpy as np

# What happened, for whoever keeps logs (RFC 8158): a cache line each.
EVENT = np.dtype(
    [
        ("tick", "u8"),  # of the boot clock, unwrapped
        ("internal_address", "u4"),  # block: the subscriber's first
        ("internal_realm", "u4"),  # realm | protocol << 24
        ("external_address", "u4"),
        ("external_realm", "u4"),
        ("remote_address", "u4"),  # sessions only
        ("account", "u4"),
        ("half", "u4"),  # half-line of the row, 0 none
        ("packets", "u4"),  # session ended: both directions; refusal: refused so far
        ("internal_port", "u2"),
        ("external_port", "u2"),  # block: its first
        ("external_last", "u2"),  # block: its last; else the same
        ("remote_port", "u2"),
        ("generation", "u2"),  # of the row
        ("kind", "u1"),  # events.SESSION_CREATED ...: the natEvent of IPFIX
        ("verdict", "u1"),  # refusal: why
        ("spare", "u1", (12,)),
    ]
)
assert EVENT.itemsize == 64
