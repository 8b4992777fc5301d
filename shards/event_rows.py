"""What a row of the log is, and what a row of the alarms, in the state of a core."""

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
        ("packets", "u4"),  # session ended: both directions; refusal: refused so far; threshold: percent
        ("internal_port", "u2"),
        ("external_port", "u2"),  # block: its first
        ("external_last", "u2"),  # block: its last; else the same
        ("remote_port", "u2"),
        ("generation", "u2"),  # of the row
        ("kind", "u1"),  # events.SESSION_CREATED ...: the natEvent of IPFIX
        ("verdict", "u1"),  # refusal: why
        ("alarm", "u1"),  # threshold: row of ALARM, the last one of all that do not fit, + 1
        ("level", "u1"),  # threshold: 0 below, 1 warning, 2 critical
        ("spare", "u1", (10,)),
    ]
)
assert EVENT.itemsize == 64

# How full something is (see `alarms`): the index, the rows, what subscribers may have, then each pool.
ALARM = np.dtype(
    [
        ("percent", "u2"),  # in use; of subscribers' blocks 0
        ("level", "u1"),  # 0 none, 1 warning, 2 critical
        ("spare", "u1"),
        ("since", "u4"),  # tick at which the level became what it is
        ("count", "u4"),  # subscribers' blocks: how many subscribers are strained
        ("raised", "u4"),  # counts rises of the level
    ]
)
assert ALARM.itemsize == 16
ALARM_INDEX, ALARM_ROWS, ALARM_SUBSCRIBERS, ALARM_POOLS = range(4)
