"""How long sessions live without a packet: one number for each value that `state` of a session's row can have.

The low four bits are one of STATES, the high four the number of its timer: 0 for its protocol's own, else that of the row of
PORT_TIMER for its destination port (RFC 4787 REQ-5a), + 1. So a hit looks one number up, whichever port it is for, and what a
segment does to a connection leaves its timer alone. Nothing here needs the compiler.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

STATES = (
    "none", "init", "established", "fin_out", "fin_in", "closing", "reset", "udp", "query", "init_in", "answered", "generic",
)  # fmt: skip
STATE_BITS, STATE_MASK = 4, 15
SLACK = 22_000  # ticks that a copy outlives its original: more than pass between two words about liveness, one of them lost
TIMERS = 16  # that there can be, the protocols' own among them

# Which lifetime a state has (RFC 5382 REQ-5, RFC 7857 2.1 and 2.2, RFC 4787 REQ-5, RFC 5508 REQ-2, RFC 6092 REC-12), and the
# protocol whose destination ports may have another one.
_PICTURE = """
none         opening      -
init         opening      -
established  established  6
fin_out      established  6
fin_in       established  6
closing      closing      -
reset        closing      -
udp          udp          17
query        icmp         -
init_in      opening      -
answered     opening      -
generic      generic      -
"""
FOLLOWS = {name: (lifetime, protocol) for name, lifetime, protocol in map(str.split, _PICTURE.strip().splitlines())}
LIFETIMES = ("established", "opening", "closing", "udp", "icmp", "generic")

# Destination ports of a protocol whose sessions have a timer of their own.
PORT_TIMER = np.dtype([("low", "u2"), ("high", "u2"), ("protocol", "u1"), ("spare", "u1", (3,))])
assert PORT_TIMER.itemsize == 8


def lay(settings: Any, ticks: Mapping[str, int], ports: Sequence[tuple[int, int]] = ()) -> None:
    """Write `lifetimes` into a row of SETTINGS. `ticks`: by LIFETIMES; `ports`: (protocol, ticks) of each row of PORT_TIMER."""
    for timer in range(TIMERS):
        protocol, own = ports[timer - 1] if 0 < timer <= len(ports) else (0, 0)
        for state, name in enumerate(STATES):
            lifetime, overridden_of = FOLLOWS[name]
            settings["lifetimes"][timer << STATE_BITS | state] = own if overridden_of == str(protocol) else ticks[lifetime]
