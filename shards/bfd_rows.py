"""What a BFD session is in the state of a core."""

from __future__ import annotations

import numpy as np

# A BFD session with the neighbour of a port (RFC 5880 6.8.1 names these; see `bfd`). Intervals in microseconds, as on the wire.
BFD = np.dtype(
    [
        ("changed_at", "u8"),  # tick, unwrapped: when it came up, or went down
        ("mac", "u8"),  # the peer's, as a number; 0 until it is known
        ("address", "u4"),  # the peer's; 0: no session
        ("discriminator", "u4"),  # ours: random, not 0, of no other session
        ("remote_discriminator", "u4"),  # 0 until it is known
        ("interval", "u4"),  # wished for both ways once it is up; also what we say we can receive
        ("desired", "u4"),  # between packets of ours, now: a second at least while it is not up
        ("remote_required", "u4"),  # between packets of ours; 0: the peer wants none
        ("remote_desired", "u4"),  # between packets of the peer's
        ("transmit_at", "u4"),  # tick
        ("detect_at", "u4"),  # tick at which the peer has been silent for too long, while `watched`
        ("received", "u4"),  # counts packets taken
        ("sent", "u4"),
        ("refused", "u4"),  # counts packets with this peer's address that were not taken
        ("flaps", "u4"),  # counts how often it went down
        ("random", "u4"),  # of the jitter; not 0
        ("hold", "u4"),  # ticks that it must have been up after a failure before packets are sent that way again
        ("port", "u1"),  # row of PORT
        ("state", "u1"),  # bfd.STATES
        ("diagnostic", "u1"),  # bfd.DIAGNOSTICS: why it went down last
        ("remote_state", "u1"),
        ("remote_diagnostic", "u1"),
        ("multiplier", "u1"),
        ("remote_multiplier", "u1"),
        ("remote_demand", "u1"),  # 1: the peer wants no packets while all is well
        ("polling", "u1"),  # 1: asking the peer to confirm `desired`
        ("final", "u1"),  # 1: the peer asked, and is to be answered
        ("watched", "u1"),  # 1: the peer was heard since it was last silent for too long
        ("ever_up", "u1"),  # 1: it was up once, so that down means something
        ("spare", "u1", (40,)),
    ]
)
assert BFD.itemsize == 128
