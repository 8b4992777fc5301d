"""The packets in flight: a table with a row per packet, a column per fact.

Each stage reads the columns to its left and fills its own:

    receive: port at length | parse: l3 .. direction | lookup: key0 key1 ref | serve: verdict .. detail | rewrite: out_*

The last four are of packets that one core passes to another (`shunt`) and of fragments; the fast path does not know them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from shards.state import Array

BURST = 256  # packets in flight at most

TURNED_BARE = -2  # in `turned`: its first half goes by the mapping, without a session

PITCH = BURST + 8  # words from column to column: a power of two would put a row of all columns into two sets of the L1 cache


class Burst(NamedTuple):
    """Columns of int64 (keys: uint64), `BURST` long. Offsets are absolute in the frame memory; addresses host integers."""

    # receive
    port: Array  # row of PORT it came in by
    at: Array  # offset of its Ethernet header
    length: Array  # bytes of frame
    deadline: Array  # tick until which a frame that was held before may go on waiting; 0 for one that was not
    # parse (l3 and l4 are known to lie inside the frame)
    l3: Array
    l4: Array
    ip_length: Array  # of the whole IP packet
    protocol: Array
    source: Array
    destination: Array
    source_port: Array  # ICMP query: identifier on the querying side, else 0
    destination_port: Array
    tcp_flags: Array
    icmp_error: Array  # 1: it carries an embedded packet
    six: Array  # 1: IPv6, whose addresses stay in the frame
    direction: Array
    # lookup
    key0: Array
    key1: Array
    ref: Array  # unit of the arena, 0 miss
    # serve
    verdict: Array
    session: Array  # line, 0 none
    mapping: Array  # half-line, for what goes by mapping alone
    next_hop: Array  # row of NEIGHBOUR
    turned: Array  # line of the first session of a hairpinned packet, -1 where another core has that; TURNED_BARE; else 0
    detail: Array  # what the verdict's sentence wants to name: rule number, MTU of the next link
    # rewrite
    out_port: Array
    out_at: Array
    out_length: Array
    # shunt
    outer: Array  # of a packet that came shunted: row of PORT it really came by + 1; else 0
    shard: Array  # row of SHARD + 1: whose it is; of what came shunted, for which its sender believes us to have the authority
    # fragments (nor these)
    part: Array  # of a first fragment: row of FRAGMENTED + 1; of one behind it the same, negative; else 0
    identity: Array  # IP identification that it leaves with + 1; 0: its own


def new_burst() -> Burst:
    """Empty columns, one behind the other: so compiled code reaches all of them from one address (see `passing`)."""
    block = np.zeros((len(Burst._fields), PITCH), np.int64)
    columns = {name: block[number, :BURST] for number, name in enumerate(Burst._fields)}
    return Burst(**{name: column.view(np.uint64) if name in ("key0", "key1") else column for name, column in columns.items()})
