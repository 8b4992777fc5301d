"""External ports: a paired address and blocks of ports for each account, ports derived first (RFC 4787, 6056, 6888, 7857).

The port of a mapping is a keyed function of its internal endpoint within the block, or the next free one. So it is hard to
guess, and a backup that never received the mapping makes the same one, nearly always. A freed port is held down: `owners` then
says in which second it was freed, which needs neither list nor timer. Blocks are made of 64-port chunks; each carries the
replica side that may hand it out and the epoch in which it was. In a deterministic pool (RFC 7422) each subscriber has blocks
of his own, taken when first used; what lies behind all of those is loose: blocks for whoever has used his own up.

Of a shard with two replicas each hands out new ports from chunks of its own side only (see `sides`), so what two have given
that could not hear each other is united without a clash.
"""

from __future__ import annotations

import numpy as np

from shards import alarms, events, externals
from shards.account_rows import BLOCKS_AT_MOST
from shards.jit import hot, whole
from shards.native import Word
from shards.sides import OTHER_EACH
from shards.state import CHUNK_PORTS, HELD, ICMP, OPEN, PORT_SPACES, TCP, UDP, Array, Row, State
from shards.verdict import (
    BLOCKS_RETURNED,
    BLOCKS_TAKEN,
    POOL_EXHAUSTED,
    PORTS_DERIVED,
    PORTS_EXHAUSTED,
    PORTS_MOVED,
)

_FOR_PORT, _FOR_ADDRESS, _FOR_BLOCK = 1, 2, 3  # what a derived number is for: they must not repeat each other

_U = np.uint64


@hot
def _rotate(x: Word, bits: int) -> Word:
    return (x << _U(bits)) | (x >> _U(64 - bits))


@hot
def siphash(secret0: Word, secret1: Word, word0: Word, word1: Word) -> Word:
    """SipHash-2-4 of the sixteen bytes of two little-endian words under a 128-bit key (Aumasson and Bernstein, 2012)."""
    v0: Word = _U(secret0) ^ _U(0x736F6D6570736575)
    v1: Word = _U(secret1) ^ _U(0x646F72616E646F6D)
    v2: Word = _U(secret0) ^ _U(0x6C7967656E657261)
    v3: Word = _U(secret1) ^ _U(0x7465646279746573)
    message: Word = _U(word0)
    for block in range(4):
        # Third block: the length, sixteen, in the top byte. Fourth: no message, the two remaining of four final rounds.
        if block == 1:
            message = _U(word1)
        elif block == 2:
            message = _U(16 << 56)
        elif block == 3:
            message = _U(0)
            v2 ^= _U(0xFF)
        v3 ^= message
        for _ in range(4 if block == 3 else 2):
            v0 = v0 + v1
            v1 = _rotate(v1, 13) ^ v0
            v0 = _rotate(v0, 32)
            v2 = v2 + v3
            v3 = _rotate(v3, 16) ^ v2
            v0 = v0 + v3
            v3 = _rotate(v3, 21) ^ v0
            v2 = v2 + v1
            v1 = _rotate(v1, 17) ^ v2
            v2 = _rotate(v2, 32)
        v0 ^= message
    return v0 ^ v1 ^ v2 ^ v3


@hot
def derive(settings: Array, purpose: int, address: int, realm: int, protocol: int, port: int, below: int) -> int:
    """A number below `below` (at most 2**31) that only the holder of the secret can foretell (RFC 6056 3.3.3)."""
    secret = settings[0]["secret"]
    word0 = _U(address) | _U(realm) << _U(32) | _U(protocol) << _U(56)
    word1 = _U(port) | _U(purpose) << _U(32)
    return whole(np.int64(siphash(secret[0], secret[1], word0, word1) >> _U(33)) % below)


@hot
def port_space(protocol: int) -> int:
    """Each protocol has ports (identifiers) of its own: column of `owners`."""
    if protocol in (TCP, UDP):
        return 1 if protocol == TCP else 2
    return 0 if protocol == ICMP else 3  # generic protocols share one: none of them shows it


@hot
def is_free(owner: int, now: int, hold_down_s: int) -> bool:
    """Whether a port may be handed out: never used, or freed at least the hold-down ago (RFC 6888 REQ-8)."""
    if owner == 0:
        return True
    if owner & HELD == 0:
        return False
    # `>`: the second in which it was freed had begun before, so at `==` a part of the last one may be missing.
    return hold_down_s == 0 or ((now // 1000 - owner) & 0x7FFFFFFF) > hold_down_s


@hot
def claim(
    state: State, holder: int, protocol: int, address: int, realm: int, port: int, aside: bool, now: int
) -> tuple[int, int, int]:
    """(verdict or 0, external ordinal, external port) for a new mapping of the subscriber account `holder`.

    Nothing is marked as owned yet, but a block may have been taken: only if none of the subscriber's own has a free port of our
    side. They are searched once a second at most (4,096 ports each time would be 4 us for every packet of a scanning host).

    `aside`: rather a port of the other side, as long as its blocks have one. After a takeover what seems free on ours may be a
    connection's that nobody had told us of; it shall find its port when it speaks up, and nobody else shall have got it.
    """
    account = state.accounts[holder]
    pool = state.pools[whole(account["pool"])]
    size, space = whole(pool["block_size"]), port_space(protocol)
    side = whole(state.shards[whole(pool["shard"])]["side"])
    number = derive(state.settings, _FOR_PORT, address, realm, protocol, port, 1 << 31)
    if aside:
        found, _, _ = _search_blocks(state, account, space, 1 - side, number, 0, now)
        if found >= 0:
            return _claimed(state, whole(account["external"]) - 1, found, False)
    begin = _begin_at(state, holder, number, space, now)
    found, derived, vacant = _search_blocks(state, account, space, side, number, begin, now)
    if found >= 0:
        return _claimed(state, whole(account["external"]) - 1, found, derived)
    if vacant < 0:
        return PORTS_EXHAUSTED, 0, 0
    verdict, taken = _take_block(state, holder, vacant, realm, space, now)
    if verdict:
        return verdict, 0, 0
    external, block = whole(account["external"]) - 1, whole(account["blocks"][taken]) - 1
    base, length = _span(state, external, block, size, side)
    found = _free_port(state, external, space, base, length, number % length, now)
    return _claimed(state, external, found, taken == begin and found == base + number % length)


@hot
def _search_blocks(
    state: State, account: Row, space: int, side: int, number: int, begin: int, now: int
) -> tuple[int, bool, int]:
    """(free port of a side in the account's blocks or -1, whether it is the first choice, row for a further block or -1).

    `begin`: which of its blocks is the first to be searched.
    """
    pool = state.pools[whole(account["pool"])]
    size, vacant = whole(pool["block_size"]), -1
    full = _is_full(account, _search(space, side), now)
    most = min(whole(pool["blocks_each"]), BLOCKS_AT_MOST)
    for j in range(most):
        k = begin + j if begin + j < most else begin + j - most
        block = whole(account["blocks"][k]) - 1
        if block < 0:
            vacant = k if vacant < 0 else vacant
            continue
        if full:
            continue
        base, length = _span(state, whole(account["external"]) - 1, block, size, side)
        found = _free_port(state, whole(account["external"]) - 1, space, base, length, number % max(length, 1), now)
        if found >= 0:
            return found, k == begin and found == base + number % length, vacant
    _remember_full(account, _search(space, side), now)
    return -1, False, vacant


@hot
def _search(space: int, side: int) -> int:
    """Number of what is searched for: a port of a protocol and a side."""
    return side * PORT_SPACES + space


@hot
def _is_full(account: Row, search: int, now: int) -> bool:
    """Whether no block of the account can have a free port: none was found in this second, and none was released since."""
    return bool((whole(account["full"]) >> search & 1) != 0 and whole(account["full_at"]) == (now // 1000 & 0xFFFFFFFF))


@hot
def _remember_full(account: Row, search: int, now: int) -> None:
    second = now // 1000 & 0xFFFFFFFF
    if whole(account["full_at"]) != second:
        account["full"], account["barren"], account["full_at"] = 0, 0, second
    account["full"] = whole(account["full"]) | 1 << search


@hot
def first_choice(state: State, holder: int, protocol: int, address: int, realm: int, port: int) -> tuple[int, int]:
    """(external ordinal, external port) that `claim` tries first; ordinal -1 where the account has no block yet."""
    account = state.accounts[holder]
    pool, external = state.pools[whole(account["pool"])], whole(account["external"]) - 1
    number = derive(state.settings, _FOR_PORT, address, realm, protocol, port, 1 << 31)
    block = whole(account["blocks"][_favourite(pool, number)]) - 1
    if block < 0:
        return -1, 0
    side = whole(state.shards[whole(pool["shard"])]["side"])
    base, length = _span(state, external, block, whole(pool["block_size"]), side)
    return (external, base + number % length) if length else (-1, 0)


@hot
def _span(state: State, external: int, block: int, size: int, side: int) -> tuple[int, int]:
    """(first port, how many) of a block that a side may hand out: all of it, all but its end, its end, or none."""
    each = size // CHUNK_PORTS
    first = state.chunks[external, block * each]["side"] == side
    last = state.chunks[external, (block + 1) * each - 1]["side"] == side
    end = CHUNK_PORTS * _chunks_at_end(each)
    if first:
        return block * size, size if last else size - end
    return (block + 1) * size - end, end if last else 0


@hot
def _chunks_at_end(each: int) -> int:
    """How many of the `each` chunks of a block are its end, which is of the other side where there are two."""
    return max(each // OTHER_EACH, 1) if each > 1 else 0


@hot
def _claimed(state: State, external: int, port: int, derived: bool) -> tuple[int, int, int]:
    state.counters[PORTS_DERIVED if derived else PORTS_MOVED, 0] += 1
    return 0, external, port


@hot
def _free_port(state: State, external: int, space: int, base: int, size: int, start: int, now: int) -> int:
    """First free one of the `size` ports from `base` on, beginning with the `start`-th, round; -1 if all are taken or held."""
    owners = state.owners[space, external]
    hold_down_s = whole(state.settings[0]["hold_down_s"])
    for k in range(size):
        offset = start + k
        if offset >= size:
            offset -= size
        if is_free(whole(owners[base + offset]), now, hold_down_s):
            return base + offset
    return -1


@hot
def _take_block(state: State, holder: int, k: int, realm: int, space: int, now: int) -> tuple[int, int]:
    """Give the account its `k`-th block, or one of its own: (verdict or 0, which of its blocks it is).

    On its paired address, as long as it has ports there; else on the one it had last, or that a static mapping of its own has,
    or on any.
    """
    account = state.accounts[holder]
    pool = state.pools[whole(account["pool"])]
    if pool["ratio"] != 0:
        return _take_fixed_block(state, holder, realm, space, now)
    search = _search(space, whole(state.shards[whole(pool["shard"])]["side"]))
    if pool["blocks_free"] == 0 or (not holds_a_block(account) and _is_dry(pool, search, now)):
        return POOL_EXHAUSTED, k
    start, count = _first_place(state, account, pool, realm), whole(pool["externals"])
    if _take_loose_block(state, holder, k, start, 1 if holds_a_block(account) else count, realm, space, now):
        return 0, k
    if not holds_a_block(account):
        _remember_dry(pool, search, now)
    return POOL_EXHAUSTED, k


@hot
def _first_place(state: State, account: Row, pool: Row, realm: int) -> int:
    """Place of the address that a block is looked for on first: where the account has some, or had one last; else any."""
    paired = whole(account["external"])
    place = externals.place_of(state, pool, whole(state.externals[paired - 1]["address"])) if paired else -1
    if place >= 0:
        return place
    return derive(state.settings, _FOR_ADDRESS, whole(account["base"]), realm, 0, 0, whole(pool["externals"]))


@hot
def _take_loose_block(state: State, holder: int, k: int, start: int, tries: int, realm: int, space: int, now: int) -> bool:
    """Give the account a block that is nobody's own as its `k`-th; `start`: place of the first address, of `tries` of them."""
    account = state.accounts[holder]
    pool = state.pools[whole(account["pool"])]
    for j in range(tries):
        external = externals.nth(state, pool, (start + j) % whole(pool["externals"]))
        if state.externals[external]["blocks_free"] == 0 or not _may_pair(state, account, external):
            continue
        begin = derive(state.settings, _FOR_BLOCK, whole(account["base"]), realm, 0, k, 1 << 30)
        block = _free_block(state, external, pool, begin, space, now)
        if block >= 0:
            hand_out(state, holder, k, external, block, now)
            return True
    return False


@hot
def hand_out(state: State, holder: int, k: int, external: int, block: int, now: int) -> None:
    """A block is the account's `k`-th from now on. One of its own may have static mappings in it: it did not count as free."""
    account = state.accounts[holder]
    pool = state.pools[whole(account["pool"])]
    size = whole(pool["block_size"])
    vacant = is_vacant(state, external, block, size // CHUNK_PORTS)
    own_block(state, external, block, size, holder + 1)
    account["external"] = external + 1
    account["full"] = 0
    account["blocks"][k] = block + 1  # last: an account without the block owns none of its chunks (see recovery)
    pool["blocks_free"] -= 1 if vacant else 0
    state.externals[external]["blocks_free"] -= 1 if vacant else 0
    state.counters[BLOCKS_TAKEN, 0] += 1
    events.block(state, events.BLOCK_ALLOCATED, holder, external, block * size, size, now)
    alarms.look_at_subscriber(state, holder, now)


# --- blocks of one's own (RFC 7422) ---------------------------------------------------------------------------------------


@hot
def _take_fixed_block(state: State, holder: int, realm: int, space: int, now: int) -> tuple[int, int]:
    """Give the account one of the blocks that are its own by configuration, else, where there are such, a loose one."""
    account = state.accounts[holder]
    pool = state.pools[whole(account["pool"])]
    external, _ = fixed_place(state, holder)
    mine = external >= 0 and _may_pair(state, account, external)
    k = _take_own(state, holder, 0, whole(pool["fixed_each"]), space, now)
    if k >= 0:
        return 0, k
    k = _loose_vacancy(account, pool)
    if k < 0:
        return PORTS_EXHAUSTED, 0
    found = _take_beside(state, holder, k, external if mine else -1, realm, space, now)
    return 0 if found else POOL_EXHAUSTED, k


@hot
def _take_own(state: State, holder: int, begin: int, end: int, space: int, now: int) -> int:
    """Give the account the first of its own blocks `begin` to `end - 1` that it has not yet and that has a free port; else -1.

    None where its address is not his to have now. Found in vain, all of them are left alone for a second (see `_is_full`).
    """
    account = state.accounts[holder]
    pool = state.pools[whole(account["pool"])]
    search = _search(space, whole(state.shards[whole(pool["shard"])]["side"]))
    if whole(account["barren"]) >> search & 1 and whole(account["full_at"]) == (now // 1000 & 0xFFFFFFFF):
        return -1
    external, first = fixed_place(state, holder)
    if external < 0 or not _may_pair(state, account, external):
        return -1
    if account["external"] != external + 1 and holds_a_block(account):
        return -1
    for k in range(begin, end):
        if account["blocks"][k] == 0 and _is_free_block(state, external, first + k, pool, space, now):
            hand_out(state, holder, k, external, first + k, now)
            return k
    if end - begin == pool["fixed_each"]:
        account["barren"] = whole(account["barren"]) | 1 << search
    return -1


@hot
def _begin_at(state: State, holder: int, number: int, space: int, now: int) -> int:
    """`_favourite`, taken if the account does not have it yet."""
    account = state.accounts[holder]
    pool = state.pools[whole(account["pool"])]
    k = _favourite(pool, number)
    if pool["ratio"] != 0 and account["blocks"][k] == 0:
        _take_own(state, holder, k, k + 1, space, now)
    return k


@hot
def _favourite(pool: Row, number: int) -> int:
    """Which of an account's blocks a port is looked for in first: the first; where several are its own any, as `number` says.

    Else the ports of who has many of his own could be guessed as well as those of who has one block.
    """
    return 0 if pool["ratio"] == 0 else (number >> 16) % whole(pool["fixed_each"])


@hot
def _take_beside(state: State, holder: int, k: int, own: int, realm: int, space: int, now: int) -> bool:
    """`_take_loose_block` of the address that the account has blocks on, else of its own one; without (-1) of any (REQ-2)."""
    account = state.accounts[holder]
    pool = state.pools[whole(account["pool"])]
    if holds_a_block(account):
        return _take_loose_block(state, holder, k, _first_place(state, account, pool, realm), 1, realm, space, now)
    if own >= 0:
        place = externals.place_of(state, pool, whole(state.externals[own]["address"]))
        return _take_loose_block(state, holder, k, place, 1, realm, space, now)
    search = _search(space, whole(state.shards[whole(pool["shard"])]["side"]))
    if _is_dry(pool, search, now):
        return False
    count = whole(pool["externals"])
    start = derive(state.settings, _FOR_ADDRESS, whole(account["base"]), realm, 0, 0, count)
    found = _take_loose_block(state, holder, k, start, count, realm, space, now)
    if not found:
        _remember_dry(pool, search, now)
    return found


@hot
def _loose_vacancy(account: Row, pool: Row) -> int:
    """Which of its blocks a loose one would be; -1: it may have no more."""
    if pool["loose_block"] >= pool["end_block"]:
        return -1
    for k in range(whole(pool["fixed_each"]), min(whole(pool["blocks_each"]), BLOCKS_AT_MOST)):
        if account["blocks"][k] == 0:
            return k
    return -1


@hot
def fixed_place(state: State, holder: int) -> tuple[int, int]:
    """(external ordinal, first block) of what a subscriber has for ever: the n-th of the pool's subscribers the n-th place.

    Sequential, as RFC 7422 section 2 has it first; `krononat.deterministic` says the same of a configuration. Ordinal -1: none.
    """
    pool = state.pools[whole(state.accounts[holder]["pool"])]
    found, ordinal = 0, -1
    for p in range(whole(state.settings[0]["prefixes"])):
        first = whole(state.prefixes[p]["first_account"])
        if found < first <= holder:
            found, ordinal = first, whole(state.prefixes[p]["ordinal"]) + holder - first
    nth, place = ordinal // whole(pool["ratio"]), ordinal % whole(pool["ratio"])
    if ordinal < 0 or nth >= whole(pool["externals"]):
        return -1, 0
    external = whole(state.externals[whole(pool["first_external"]) + nth]["nth"])
    return external, whole(pool["first_block"]) + place * whole(pool["fixed_each"])


@hot
def _is_free_block(state: State, external: int, block: int, pool: Row, space: int, now: int) -> bool:
    """Whether a block is given to nobody, and has a free port of our side; its owner's static mappings do not count."""
    size = whole(pool["block_size"])
    if state.chunks[external, block * (size // CHUNK_PORTS)]["account"] != 0:
        return False
    base, length = _span(state, external, block, size, whole(state.shards[whole(pool["shard"])]["side"]))
    return _free_port(state, external, space, base, length, 0, now) >= 0


@hot
def _may_pair(state: State, account: Row, external: int) -> bool:
    """Whether an account may have a block of an address; of one that is closed only who has one there (RFC 4787 REQ-2)."""
    return state.externals[external]["closed"] == OPEN or (account["external"] == external + 1 and holds_a_block(account))


@hot
def _is_dry(pool: Row, search: int, now: int) -> bool:
    """Whether the pool has no block for anyone: none was found in this second, and none was returned since."""
    return bool((whole(pool["dry"]) >> search & 1) != 0 and whole(pool["dry_at"]) == (now // 1000 & 0xFFFF))


@hot
def _remember_dry(pool: Row, search: int, now: int) -> None:
    """Free blocks that are of the other side, or held down: to look at all of them again costs as much as they are many."""
    second = now // 1000 & 0xFFFF
    known = whole(pool["dry"]) if whole(pool["dry_at"]) == second else 0
    pool["dry"] = known | 1 << search
    pool["dry_at"] = second


@hot
def holds_a_block(account: Row) -> bool:
    """Whether an account has any block."""
    held = 0
    for k in range(BLOCKS_AT_MOST):
        held += account["blocks"][k] != 0
    return held > 0


@hot
def _free_block(state: State, external: int, pool: Row, start: int, space: int, now: int) -> int:
    """First free block of our replica side, not held down wholly, of an address from the `start`-th on, round; else -1."""
    first, blocks = whole(pool["loose_block"]), whole(pool["end_block"]) - whole(pool["loose_block"])
    size = whole(pool["block_size"])
    chunks_each = size // CHUNK_PORTS
    side = whole(state.shards[whole(pool["shard"])]["side"])
    for k in range(blocks):
        block = first + (start + k) % blocks
        if state.chunks[external, block * chunks_each]["side"] != side or not is_vacant(state, external, block, chunks_each):
            continue
        base, length = _span(state, external, block, size, side)
        if _free_port(state, external, space, base, length, 0, now) >= 0:
            return block
    return -1


@hot
def is_vacant(state: State, external: int, block: int, chunks_each: int) -> bool:
    """Whether a block is nobody's, and no static mapping has a port in it."""
    for k in range(block * chunks_each, (block + 1) * chunks_each):
        if state.chunks[external, k]["account"] != 0 or state.chunks[external, k]["used"] != 0:
            return False
    return True


@hot
def own_block(state: State, external: int, block: int, size: int, owner: int) -> None:
    """Write who owns a block (account + 1, or 0) into each of its chunks, with the epoch of the shard."""
    each = size // CHUNK_PORTS
    shard = state.pools[whole(state.externals[external]["pool"])]["shard"]
    for k in range(block * each, (block + 1) * each):
        chunk = state.chunks[external, k]
        chunk["account"] = owner
        chunk["epoch"] = state.shards[shard]["epoch"]


@hot
def own(state: State, external: int, space: int, port: int, mapping: int) -> None:
    """The port belongs to `mapping` (a half-line) from now on."""
    state.owners[space, external, port] = mapping
    state.chunks[external, port // CHUNK_PORTS]["used"] += 1


@hot
def owner(state: State, external: int, protocol: int, port: int) -> int:
    """Half-line of the mapping that owns an external endpoint; 0 if it is free or held down."""
    found = whole(state.owners[port_space(protocol), external, port])
    return found if found < HELD else 0


@hot
def release(state: State, external: int, space: int, port: int, now: int) -> None:
    """The port's mapping ended: hold it down, and give the block back if this was its last port."""
    hold(state, external, space, port, now)
    give_back(state, external, port, now)


@hot
def hold(state: State, external: int, space: int, port: int, now: int) -> None:
    """The port is nobody's, and held down from now on."""
    state.owners[space, external, port] = held_since(now)
    state.chunks[external, port // CHUNK_PORTS]["used"] -= 1


@hot
def held_since(now: int) -> int:
    """What `owners` says of a port that is freed at tick `now`."""
    return HELD | (now // 1000 & 0x7FFFFFFF)


@hot
def forget(state: State, external: int, protocol: int, port: int) -> None:
    """A released port never carried a packet: it need not be held down."""
    state.owners[port_space(protocol), external, port] = 0


@hot
def give_back(state: State, external: int, port: int, now: int) -> None:
    """A port is free again: return the block around it if that has an owner and none of its ports is in use."""
    holder = vacate(state, external, port)
    if holder:
        size = whole(state.pools[whole(state.externals[external]["pool"])]["block_size"])
        state.counters[BLOCKS_RETURNED, 0] += 1
        events.block(state, events.BLOCK_RELEASED, holder, external, port // size * size, size, now)
        alarms.look_at_subscriber(state, holder, now)


@hot
def vacate(state: State, external: int, port: int) -> int:
    """Free the block around a port if none of its ports is in use; held ones stay held. The account that had it, 0 if none had.

    A block of nobody's may have ports in use: of static mappings, and of some that came from another core (see `apply`).
    """
    chunk = state.chunks[external, port // CHUNK_PORTS]
    holder = max(whole(chunk["account"]) - 1, 0)
    if holder:
        state.accounts[holder]["full"] = 0
        state.accounts[holder]["barren"] = 0
    if chunk["used"] != 0:
        return 0
    pool = state.pools[whole(state.externals[external]["pool"])]
    size = whole(pool["block_size"])
    block, each = port // size, size // CHUNK_PORTS
    for k in range(block * each, (block + 1) * each):
        if state.chunks[external, k]["used"] != 0:
            return 0
    if holder:
        disown_block(state, holder, external, block, size)
    if whole(pool["first_block"]) <= block < whole(pool["end_block"]):
        pool["blocks_free"] += 1
        pool["dry"] = 0
        state.externals[external]["blocks_free"] += 1
    return holder


@hot
def disown_block(state: State, holder: int, external: int, block: int, size: int) -> None:
    """A block is no longer the account's; its ports in use stay whose they are."""
    account = state.accounts[holder]
    for k in range(BLOCKS_AT_MOST):
        if account["blocks"][k] == block + 1:
            account["blocks"][k] = 0
    own_block(state, external, block, size, 0)
