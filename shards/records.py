"""What travels between the replicas of a shard: flat little-endian rows, whose layout goes by the version of the frames they
travel in (`replication.frames`; N and N-1 are spoken).

A row is addressed by its class and its number within it, which are the same on every core that has a replica, and named with
the generation of its life. A record carries what is true everywhere: addresses and ports, ages and remaining lifetimes. It
carries nothing that a core counts for itself: ticks, accounts, next hops, checksum differences. Those the receiver makes anew.
"""

from __future__ import annotations

import numpy as np

# Flags of a session: its packets turn round inside; they are not translated, so it has no mapping; what remains to it has the
# slack of a copy in it already (see `tcp.slack`; who does not know the flag lets it live that much longer).
HAIRPIN, UNTRANSLATED, COPIED = 1, 2, 4

SESSION_RECORD = np.dtype(
    [
        ("row", "<u4"),
        ("mapping_row", "<u4"),
        ("internal_address", "<u4"),
        ("remote_address", "<u4"),
        ("external_address", "<u4"),
        ("internal_realm", "<u4"),
        ("external_realm", "<u4"),
        ("age_s", "<u4"),  # since it was created
        ("remaining", "<u4"),  # ms it would live on without a packet
        ("packets", "<u4"),
        ("internal_port", "<u2"),
        ("remote_port", "<u2"),
        ("external_port", "<u2"),
        ("generation", "<u2"),
        ("rules", "<u2"),
        ("klass", "u1"),
        ("mapping_klass", "u1"),
        ("protocol", "u1"),
        ("state", "u1"),
        ("flags", "u1"),
        ("spare", "u1", (9,)),
    ]
)
assert SESSION_RECORD.itemsize == 64

# A session of IPv6 takes two of these. The first has no mapping and no external endpoint; of the second, whose class is
# CONTINUED, the first eight fields, `row` to `age_s`, are the quarters of the internal and of the remote address.
CONTINUED = 255

# Flags of a mapping; a shadow is not found by its internal endpoint (see `apply`), and one that was asked for stays without a
# session until who has the authority ends it (see `grants`).
STATIC, SHADOW, ASKED = 1, 2, 4

MAPPING_RECORD = np.dtype(
    [
        ("row", "<u4"),
        ("internal_address", "<u4"),
        ("internal_realm", "<u4"),
        ("external_address", "<u4"),
        ("internal_port", "<u2"),
        ("external_port", "<u2"),
        ("generation", "<u2"),
        ("klass", "u1"),
        ("protocol", "u1"),
        ("flags", "u1"),
        ("block", "u1"),  # which of its subscriber's blocks the port lies in, + 1; 0: in none of them
        ("spare", "u1", (6,)),
    ]
)
assert MAPPING_RECORD.itemsize == 32

TOMBSTONE = np.dtype([("row", "<u4"), ("generation", "<u2"), ("klass", "u1"), ("spare", "u1")])
assert TOMBSTONE.itemsize == 8

# A port that is held down: nobody's, and not to be handed out until it is old enough.
HOLD = np.dtype(
    [
        ("address", "<u4"),
        ("port", "<u2"),
        ("age_s", "<u2"),  # since it was freed
        ("space", "u1"),  # ports.port_space
        ("spare", "u1", (3,)),
    ]
)
assert HOLD.itemsize == 12
