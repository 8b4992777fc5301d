"""A mapping that another core tells of becomes ours: its row, its port, its place in a subscriber's blocks (see `apply`).

A port may lie in a block that is not its subscriber's: as a guest, as those of static mappings do. So whose a block is can be
corrected without ending anything.
"""

from __future__ import annotations

import numpy as np

from shards import cuckoo, gather, journal, nat, ports, sessions, slabs
from shards.account_rows import BLOCKS_AT_MOST
from shards.accounts import charge
from shards.generic import can_be_translated, is_generic
from shards.grant_rows import CONFIGURED, GRANTED
from shards.jit import hot, whole
from shards.native import Word, prefetch
from shards.records import ASKED, SHADOW, STATIC
from shards.state import ACTIVE, CHUNK_PORTS, FREE, MAPPING_0, MAPPING_1, NAT_MAPPING, Array, Row, State

_U = np.uint64


@hot
def take_mapping(state: State, shard: int, record: Row, seen: Array, now: int) -> bool:
    """Take one MAPPING_RECORD; False: refused."""
    klass, row = whole(record["klass"]), whole(record["row"])
    external = external_of(state, shard, record)
    if external < 0 or klass not in (MAPPING_0, MAPPING_1):
        return False
    account, subscriber = nat.find_account(state, whole(record["internal_realm"]), whole(record["internal_address"]))
    if not _may_have(state, shard, subscriber, external, record):
        return False
    half = slabs.local_row(state, shard, klass, row)
    if half and state.mappings[half]["kind"] == NAT_MAPPING and is_same_mapping(state.mappings[half], record):
        _update_mapping(state, shard, half, record)
    else:
        half = _admit_mapping(state, shard, half, external, record, len(seen) > 0, now)
        if half <= 0:
            return half == 0
        if not _make_mapping(state, shard, half, account, external, record, now):
            return False
    _pair(state, shard, subscriber, external, record)
    see(seen, half)
    return True


@hot
def external_of(state: State, shard: int, record: Row) -> int:
    """Ordinal of the external address of a record, -1 where that is not the shard's, or the protocol none that we know."""
    if not can_be_translated(whole(record["protocol"])):
        return -1
    external = sessions.external_ordinal(state, whole(record["external_address"]))
    if external < 0 or whole(state.pools[whole(state.externals[external]["pool"])]["shard"]) != shard:
        return -1
    return external


@hot
def _may_have(state: State, shard: int, subscriber: int, external: int, record: Row) -> bool:
    """Whether a subscriber (account, 0 none) can have the mapping: a port of its pool's blocks, or as it is configured."""
    if subscriber == 0 or whole(state.accounts[subscriber]["shard"]) != shard or whole(record["block"]) > BLOCKS_AT_MOST:
        return False
    if is_generic(whole(record["protocol"])) and record["internal_port"] != 0:
        return False
    static = whole(record["flags"]) & STATIC != 0
    if static and not _is_configured(state, record):
        return False
    if static and record["block"] == 0:
        return True
    account, number = state.accounts[subscriber], whole(state.externals[external]["pool"])
    pool = state.pools[number]
    block = whole(record["external_port"]) // whole(pool["block_size"])
    return whole(pool["first_block"]) <= block < whole(pool["end_block"]) and whole(account["pool"]) == number


@hot
def _is_configured(state: State, record: Row) -> bool:
    for s in range(whole(state.settings[0]["statics"])):
        static = state.statics[s]
        if (
            static["internal_address"] == record["internal_address"]
            and static["internal_port"] == record["internal_port"]
            and static["external_address"] == record["external_address"]
            and static["external_port"] == record["external_port"]
            and static["protocol"] == record["protocol"]
        ):
            return True
    return False


@hot
def ask_for_mapping(state: State, shard: int, record: Row) -> None:
    """Ask for all that `take_mapping` will touch."""
    klass, external = whole(record["klass"]), sessions.external_ordinal(state, whole(record["external_address"]))
    if klass in (MAPPING_0, MAPPING_1):
        prefetch(state.mappings, slabs.local_row(state, shard, klass, whole(record["row"])))
    if external >= 0:
        prefetch(state.owners[ports.port_space(whole(record["protocol"])), external], whole(record["external_port"]))
        prefetch(state.chunks[external], whole(record["external_port"]) // CHUNK_PORTS)
    key0, key1 = _mapping_key(record)
    cuckoo.ask_for(state, key0, key1)


@hot
def _mapping_key(record: Row) -> tuple[Word, Word]:
    """Key of the internal endpoint, by which the mapping is found unless it is a shadow."""
    realm = whole(record["internal_realm"]) & 0xFFFFFF
    key0 = sessions.key_0(whole(record["internal_address"]), realm, whole(record["protocol"]))
    return key0, sessions.key_1(0, whole(record["internal_port"]), 0)


@hot
def is_same_mapping(row: Row, record: Row) -> bool:
    """Whether a row is of the same two endpoints; of two sessions, whether their mappings are."""
    return bool(
        row["internal_address"] == record["internal_address"]
        and row["internal_realm"] == whole(record["internal_realm"]) | whole(record["protocol"]) << 24
        and row["internal_port"] == record["internal_port"]
        and row["external_address"] == record["external_address"]
        and row["external_port"] == record["external_port"]
    )


@hot
def is_authority(state: State, shard: int) -> bool:
    """Whether what others say of the shard is to be merged into what we say."""
    return bool(state.shards[shard]["role"] == ACTIVE)


@hot
def _update_mapping(state: State, shard: int, half: int, record: Row) -> None:
    """Both have it. The authority's word is which life it is, whether it is static, and whether it is found."""
    row = state.mappings[half]
    if is_authority(state, shard):
        if row["generation"] != record["generation"]:
            journal.mark(state, half)
        return
    row["generation"] = record["generation"]
    row["static"] = _kept(record)
    if whole(record["flags"]) & SHADOW:
        _overshadow(state, half)
    elif row["remote_port"] != 0:
        _bring_to_light(state, half)
    known(state, half)


@hot
def _kept(record: Row) -> int:
    """What keeps the mapping while no session uses it."""
    if whole(record["flags"]) & STATIC:
        return CONFIGURED
    return GRANTED if whole(record["flags"]) & ASKED else 0


@hot
def _overshadow(state: State, half: int) -> None:
    """Let a mapping be a shadow from now on, if it is not yet."""
    row = state.mappings[half]
    if row["remote_port"] == 0:
        cuckoo.erase(state, state.words[half * 4], state.words[half * 4 + 1], half << 1)
        row["remote_port"] = max(whole(row["external_port"]), 1)
        cuckoo.insert(state, state.words[half * 4], state.words[half * 4 + 1], half << 1)


@hot
def _bring_to_light(state: State, half: int) -> None:
    """Let a shadow be the mapping of its internal endpoint; what was becomes one."""
    row = state.mappings[half]
    cuckoo.erase(state, state.words[half * 4], state.words[half * 4 + 1], half << 1)
    row["remote_port"] = 0
    other = cuckoo.lookup(state, state.words[half * 4], state.words[half * 4 + 1]) >> 1
    if other:
        _overshadow(state, other)
    cuckoo.insert(state, state.words[half * 4], state.words[half * 4 + 1], half << 1)


@hot
def known(state: State, half: int) -> None:
    """A row is as the authority says: nothing is to be told of it but its end."""
    state.dirty[half >> 6] &= ~(_U(1) << _U(half & 63))
    gather.ship(state, half)


@hot
def see(seen: Array, half: int) -> None:
    """A row was told of."""
    if len(seen):
        seen[half >> 6] |= _U(1) << _U(half & 63)


@hot
def _admit_mapping(state: State, shard: int, half: int, external: int, record: Row, snapshot: bool, now: int) -> int:
    """Half-line for a mapping that is new here, with its port free to own; 0: it is here by another row; -1: refused.

    `half`: where the record wants it, 0 where no extent is yet.
    """
    protocol, port = whole(record["protocol"]), whole(record["external_port"])
    holder = ports.owner(state, external, protocol, port)
    if is_authority(state, shard):
        if holder:
            return 0 if is_same_mapping(state.mappings[holder], record) else -1
        if half and state.mappings[half]["kind"] == NAT_MAPPING:
            half = slabs.new_half(state, shard)
            return half if half else -1
    elif not _make_way(state, shard, half, holder, snapshot, now):
        return -1
    if half and state.mappings[half]["kind"] == NAT_MAPPING:
        return half  # to be written over
    half = slabs.take(state, shard, whole(record["klass"]), whole(record["row"]))
    return half if half else -1


@hot
def _make_way(state: State, shard: int, half: int, holder: int, snapshot: bool, now: int) -> bool:
    """End what stands at the record's row (0: nothing), and what has its port, if the authority can mean that they ended.

    It can where no session uses them, or where sessions that it ended, too, are still to be found as unseen.
    """
    stands = half != 0 and state.mappings[half]["kind"] == NAT_MAPPING
    if not snapshot and stands and state.mappings[half]["sessions"] != 0:
        return False
    if not snapshot and holder and state.mappings[holder]["sessions"] != 0:
        return False
    if holder and holder != half:
        if state.mappings[holder]["sessions"] == 0:
            end_mapping(state, holder, now)
        else:
            _overshadow(state, holder)
            _disown(state, holder)
    if stands and state.mappings[half]["sessions"] == 0:
        end_mapping(state, half, now)
    return True


@hot
def _disown(state: State, half: int) -> None:
    """A stale mapping's port is another's now: free, for it to own; and so is a block that is empty without it."""
    row = state.mappings[half]
    external, port = sessions.external_ordinal(state, whole(row["external_address"])), whole(row["external_port"])
    state.owners[ports.port_space(whole(row["internal_realm"]) >> 24), external, port] = 0
    state.chunks[external, port // CHUNK_PORTS]["used"] -= 1
    ports.vacate(state, external, port)


@hot
def end_mapping(state: State, half: int, now: int) -> None:
    """End a mapping without a session; nobody is told."""
    row = state.mappings[half]
    shard, _, _ = slabs.wire_row(state, half)
    row["kind"] = FREE
    external, port = sessions.take_out_mapping(state, shard, half, now)
    ports.vacate(state, external, port)
    forgotten(state, half)
    slabs.free_half(state, half)


@hot
def forgotten(state: State, half: int) -> None:
    """A row ended as its authority said, or before anyone knew: nobody is to be told."""
    state.dirty[half >> 6] &= ~(_U(1) << _U(half & 63))
    state.shipped[half >> 6] &= ~(_U(1) << _U(half & 63))


@hot
def _make_mapping(state: State, shard: int, half: int, account: int, external: int, record: Row, now: int) -> bool:
    """Let the record be the mapping at `half`. Sessions of a stale one that stood there stay counted until they are found."""
    row = state.mappings[half]
    stale = _write_over(state, shard, half, now)
    row["internal_address"] = record["internal_address"]
    row["internal_realm"] = whole(record["internal_realm"]) | whole(record["protocol"]) << 24
    row["remote_address"] = 0
    row["internal_port"] = record["internal_port"]
    row["external_address"] = record["external_address"]
    row["external_port"] = record["external_port"]
    row["sessions"] = stale
    row["static"] = _kept(record)
    row["remote_port"] = max(whole(record["external_port"]), 1) if _is_shadow(state, shard, record) else 0
    if not cuckoo.insert(state, state.words[half * 4], state.words[half * 4 + 1], half << 1) and stale == 0:
        slabs.free_half(state, half)
        return False
    row["account"] = account
    row["generation"] = generation(state, shard, half, record, whole(row["generation"]))
    row["kind"] = NAT_MAPPING
    _own_port(state, external, whole(record["protocol"]), whole(record["external_port"]), half)
    charge(state, account, whole(record["protocol"]), stale, 1)
    state.shards[shard]["mappings"] += 1
    settle(state, shard, half, record)
    return True


@hot
def _write_over(state: State, shard: int, half: int, now: int) -> int:
    """Sessions that the stale mapping at `half` still counts, once it is nobody's; 0 where none stood there."""
    row = state.mappings[half]
    if row["kind"] != NAT_MAPPING:
        return 0
    row["kind"] = FREE
    external, port = sessions.take_out_mapping(state, shard, half, now)
    ports.vacate(state, external, port)
    stale = whole(row["sessions"])
    charge(state, whole(row["account"]), whole(row["internal_realm"]) >> 24, -stale, 0)
    return stale


@hot
def _is_shadow(state: State, shard: int, record: Row) -> bool:
    """Whether a new mapping is a shadow. Of two for one internal endpoint the authority's is not, whoever tells us of which."""
    key0, key1 = _mapping_key(record)
    other = cuckoo.lookup(state, key0, key1) >> 1
    if whole(record["flags"]) & SHADOW or (other and is_authority(state, shard)):
        return True
    if other:
        _overshadow(state, other)
    return False


@hot
def generation(state: State, shard: int, half: int, record: Row, last: int) -> int:
    """Number of a row's new life: the record's, unless the authority gave it a row of its own."""
    _, klass, row = slabs.wire_row(state, half)
    if klass == whole(record["klass"]) and row == whole(record["row"]):
        return whole(record["generation"])
    return (last + 1) & 0xFFFF


@hot
def settle(state: State, shard: int, half: int, record: Row) -> None:
    """A new row is as the authority says; what the authority took in, it tells."""
    known(state, half)
    if is_authority(state, shard):
        journal.mark(state, half)


@hot
def _own_port(state: State, external: int, protocol: int, port: int, half: int) -> None:
    """As `ports.own`, of a port whose block may be vacant."""
    pool = state.pools[whole(state.externals[external]["pool"])]
    size = whole(pool["block_size"])
    block = port // size
    counted = whole(pool["first_block"]) <= block < whole(pool["end_block"])
    if counted and ports.is_vacant(state, external, block, size // CHUNK_PORTS):
        pool["blocks_free"] -= 1
        state.externals[external]["blocks_free"] -= 1
    ports.own(state, external, ports.port_space(protocol), port, half)


@hot
def _pair(state: State, shard: int, subscriber: int, external: int, record: Row) -> None:
    """Let the subscriber have the paired address and the block that the record says, so that ports are derived alike."""
    account, k = state.accounts[subscriber], whole(record["block"]) - 1
    if k < 0:
        if account["external"] == 0 and account["pool"] == state.externals[external]["pool"]:
            account["external"] = external + 1
        return
    size = whole(state.pools[whole(account["pool"])]["block_size"])
    block = whole(record["external_port"]) // size
    if whole(account["external"]) == external + 1 and whole(account["blocks"][k]) == block + 1:
        return
    if is_authority(state, shard):
        k = _vacancy(state, subscriber, external, block, k)
    else:
        _clear_for(state, subscriber, external, block, k, size)
    if k >= 0:
        ports.own_block(state, external, block, size, subscriber + 1)
        account["external"] = external + 1
        account["full"] = 0
        account["blocks"][k] = block + 1


@hot
def _vacancy(state: State, subscriber: int, external: int, block: int, k: int) -> int:
    """Which of a subscriber's blocks the authority may make of a block, the `k`-th if that is free; -1: none."""
    account = state.accounts[subscriber]
    size = whole(state.pools[whole(account["pool"])]["block_size"])
    if state.chunks[external, block * size // CHUNK_PORTS]["account"] != 0:
        return -1
    if whole(account["external"]) != external + 1 and ports.holds_a_block(account):
        return -1
    for j in range(BLOCKS_AT_MOST):
        at = (k + j) % BLOCKS_AT_MOST
        if account["blocks"][at] == 0:
            return at
    return -1


@hot
def _clear_for(state: State, subscriber: int, external: int, block: int, k: int, size: int) -> None:
    """Take back what contradicts the authority: the block from whoever has it, blocks elsewhere, the one in its place."""
    account = state.accounts[subscriber]
    holder = whole(state.chunks[external, block * size // CHUNK_PORTS]["account"]) - 1
    if holder > 0:
        ports.disown_block(state, holder, external, block, size)
    for j in range(BLOCKS_AT_MOST):
        held = whole(account["blocks"][j]) - 1
        if held >= 0 and (j == k or whole(account["external"]) != external + 1):
            _give_up(state, subscriber, whole(account["external"]) - 1, held, size)


@hot
def _give_up(state: State, holder: int, external: int, block: int, size: int) -> None:
    """A block is no longer the account's, with ports in use or without."""
    ports.disown_block(state, holder, external, block, size)
    if ports.is_vacant(state, external, block, size // CHUNK_PORTS):
        pool = state.pools[whole(state.externals[external]["pool"])]
        pool["blocks_free"] += 1
        pool["dry"] = 0
        state.externals[external]["blocks_free"] += 1
