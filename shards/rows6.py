"""Rows of IPv6 in the state of a core: second lines of sessions, subscriber prefixes, rules and pinholes."""

from __future__ import annotations

import numpy as np

# A session of the IPv6 firewall (see `sessions6`) has two lines. The first is a SESSION whose first two words are its one key,
# a keyed digest of what stands in the second, and which has no mapping, no external endpoint and nothing to translate.
FLOW6 = np.dtype(
    [
        ("internal_high", "u8"),
        ("internal_low", "u8"),
        ("remote_high", "u8"),
        ("remote_low", "u8"),
        ("realm", "u4"),  # internal realm | protocol << 24, protocol as the last next header says
        ("account", "u4"),
        ("internal_port", "u2"),  # query: the identifier; 0 where the protocol has no ports
        ("remote_port", "u2"),
        ("filtering", "u1"),  # whom it lets in beside its remote: FILTERING + 1, 0 nobody
        ("spare", "u1", (19,)),
    ]
)
assert FLOW6.itemsize == 64

# An internal IPv6 prefix: its n-th subscriber is the n-th of an IPv4 prefix, of the same account and shard. No subscriber has
# less than a /64, so the upper half of an address says whose it is.
PREFIX6 = np.dtype(
    [
        ("network", "u8"),  # upper half
        ("mask", "u8"),
        ("realm", "u4"),
        ("prefix", "u2"),  # row of PREFIX
        ("shift", "u1"),  # 64 - length of a subscriber's prefix
        ("tcp", "u1"),  # filtering of TCP
        ("udp", "u1"),  # of UDP and UDP-Lite
        ("other", "u1"),
        ("transparent", "u1"),  # 1: nothing is filtered (RFC 6092 REC-49)
        ("spare", "u1", (5,)),
    ]
)
assert PREFIX6.itemsize == 32

# A rule (see RULE); as a pinhole, what it fits is let in.
RULE6 = np.dtype(
    [
        ("internal_high", "u8"),
        ("internal_low", "u8"),
        ("internal_mask_high", "u8"),
        ("internal_mask_low", "u8"),
        ("remote_high", "u8"),
        ("remote_low", "u8"),
        ("remote_mask_high", "u8"),
        ("remote_mask_low", "u8"),
        ("internal_port_low", "u2"),
        ("internal_port_high", "u2"),
        ("remote_port_low", "u2"),
        ("remote_port_high", "u2"),
        ("directions", "u1"),
        ("action", "u1"),
        ("protocol", "u1"),  # 0 any
        ("spare", "u1"),
        ("number", "u4"),
        ("hits", "u8"),
    ]
)
assert RULE6.itemsize == 88
