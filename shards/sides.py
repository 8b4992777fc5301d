"""Which replica of a shard may hand out which ports, drawn for blocks of eight chunks of 64 ports; rows are blocks:

    0 0 0 0 0 0 0 1      blocks 0 to 6 of every eight: of side 0
    1 1 1 1 1 1 1 0      block 7: of side 1

Most of a block is of the side that hands the block out, its end is the other side's: so whoever has the authority can give
every subscriber ports, whichever block he has, and two that cannot hear each other never give the same. Blocks that are
somebody's own by configuration (RFC 7422) are all like 0 to 6: nobody shall have less than his neighbour. Needs no compiler.
"""

from __future__ import annotations

import numpy as np

from shards.state import CHUNK_PORTS, State, external_rows

OTHER_EACH = 8  # of the blocks, and of the chunks of a block, one in so many is the other side's; of two chunks one is


def lay(state: State, number: int) -> None:
    """Say whose each chunk of a pool is, alike on every core. Without, all of them are of side 0: a shard without a backup."""
    pool = state.pools[number]
    each = int(pool["block_size"]) // CHUNK_PORTS
    block, chunk = np.divmod(np.arange(65536 // CHUNK_PORTS), each)
    at_end = (each > 1) & (chunk >= each - max(each // OTHER_EACH, 1))
    loose = (block < int(pool["first_block"])) | (block >= int(pool["loose_block"]))
    other = (block % OTHER_EACH == OTHER_EACH - 1) & loose
    state.chunks["side"][external_rows(state, number)] = other ^ at_end
