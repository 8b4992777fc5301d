"""Generic protocols: all but ICMP, TCP and UDP, which have nothing that could be a port (see `protocols`).

A mapping of one is (internal address, protocol) <-> external address. It takes a *place* in a block of its subscriber, as if it
were a port, in a space of its own: so it is counted, logged and replicated as any mapping is, and the block, and with it the
paired address (RFC 6888 REQ-2), stays the subscriber's. No packet shows it: in sessions and in keys both ports are 0.
The place of a static mapping is the number of its protocol, below all that is handed out.
"""

from __future__ import annotations

import numpy as np

from shards.jit import hot, inlined, whole
from shards.native import read16
from shards.protocols import AH, GRE, LEAST, UNTRANSLATABLE
from shards.state import ICMP, TCP, UDP, Array, State
from shards.verdict import AH_NOT_SERVED, BAD_L4_HEADER, PROTOCOL_NOT_SERVED, SOURCE_ROUTED, UNDECIDED

_LEAST = np.array([LEAST.get(number, 0) for number in range(256)], np.uint8)
_TRANSLATABLE = np.array([number not in UNTRANSLATABLE for number in range(256)], np.uint8)
_ROUTED = 0x4000  # bit R of GRE (RFC 1701), by which the payload would be sent on a way of its sender's choice


@inlined
def is_generic(protocol: int) -> bool:
    """Whether a protocol's packets are told apart by their addresses alone."""
    return protocol != TCP and protocol != UDP and protocol != ICMP


@hot
def refuse(state: State, protocol: int) -> int:
    """Verdict on a generic protocol, or UNDECIDED: what `other-protocols` of [nat] names is translated, nothing else."""
    if protocol == AH:
        return AH_NOT_SERVED
    return UNDECIDED if whole(state.protocols[protocol]) != 0 else PROTOCOL_NOT_SERVED


@hot
def can_be_translated(protocol: int) -> bool:
    """Whether a configuration may have a protocol translated."""
    return not is_generic(protocol) or whole(_TRANSLATABLE[protocol]) != 0


@hot
def look(frames: Array, protocol: int, l4: int, end: int) -> int:
    """Verdict on the header of a generic protocol that ends before `end`: whether it is there at all, and asks for no harm.

    RFC 2784 2.3 has receivers discard GRE with routing; it is source routing by another name (RFC 7126 4.3).
    """
    if end - l4 < whole(_LEAST[protocol]):
        return BAD_L4_HEADER
    if protocol == GRE and read16(frames, l4) & _ROUTED:
        return SOURCE_ROUTED
    return UNDECIDED


@hot
def place(protocol: int, port: int) -> int:
    """Where the owner of an external endpoint is to be looked for: its port, or of a generic protocol the static place."""
    return protocol if is_generic(protocol) else port
