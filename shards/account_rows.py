"""What is known of a subscriber, or of a device behind one, and what limits it, in the state of a core."""

from __future__ import annotations

import numpy as np

BLOCKS_AT_MOST = 8
CLASSES = ("tcp", "udp", "icmp", "other")  # of protocols, as the configuration calls them: see accounts.CLASS_OF
PROTOCOL_CLASSES = len(CLASSES)
REASONS = ("sessions", "ports", "protocol", "rate", "blocks", "room", "fragments")  # of refusals, see `refusals`
REFUSAL_REASONS = len(REASONS)

ACCOUNT = np.dtype(
    [
        ("base", "u4"),  # first internal address of the account (written when first used)
        ("parent", "u4"),  # account that is charged as well, 0 none
        ("external", "u4"),  # paired external address: its ordinal + 1, 0 not paired yet
        ("blocks", "u2", (BLOCKS_AT_MOST,)),  # block number + 1
        ("sessions", "u4"),
        ("mappings", "u4"),
        ("tokens", "u4"),  # of the new-session rate, in thousandths
        ("tokens_at", "u4"),  # tick
        ("answered_at", "u4"),  # tick at which it was last told of a refusal (see `refusals`)
        ("told", "u4"),  # second in which the log was last told of a refusal
        ("full_at", "u4"),  # second in which its blocks were found full for the port spaces of `full`, a bit each
        ("limits", "u2"),  # row of LIMITS
        ("shard", "u2"),
        ("pool", "u2"),
        ("full", "u1"),
        ("transparent", "u1"),  # 1: nothing is filtered towards its IPv6 addresses (RFC 6092 REC-49)
        ("sessions_of", "u4", (PROTOCOL_CLASSES,)),  # of `sessions`, by accounts.CLASS_OF
        ("mappings_of", "u4", (PROTOCOL_CLASSES,)),
        ("refused", "u4", (REFUSAL_REASONS,)),  # packets refused, by REASONS
        ("strained", "u1"),  # 1: it has nearly as many blocks as it may have (see `alarms`)
        ("barren", "u1"),  # in the second `full_at` it found no further block for the port spaces of it, a bit each
        ("spare", "u1", (2,)),
    ]
)
assert ACCOUNT.itemsize == 128

# 0 = no limit in each field. `..._of`: by accounts.CLASS_OF.
LIMITS = np.dtype(
    [
        ("sessions", "u4"),
        ("mappings", "u4"),
        ("rate", "u4"),
        ("burst", "u4"),
        ("sessions_each", "u4"),  # of one mapping
        ("reserved", "u4"),  # 1: some protocol has a reserve
        ("spare", "u4", (2,)),
        ("sessions_of", "u4", (PROTOCOL_CLASSES,)),
        ("mappings_of", "u4", (PROTOCOL_CLASSES,)),
        ("reserve", "u4", (PROTOCOL_CLASSES,)),  # of `sessions` and of `mappings`, that others leave to it
        ("spare_bytes", "u1", (48,)),
    ]
)
assert LIMITS.itemsize == 128
