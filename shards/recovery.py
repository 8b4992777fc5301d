"""Attach to a core's memory: rows are the truth, everything else is made again from them.

A worker may have been killed at any instruction. So the index, the timers, the free lists, the owners of ports, the chunks
and what accounts use are not repaired but rebuilt; a session whose mapping is gone, or a mapping that nothing uses, was being
born or was dying, and ends. What is not derived stays: hold-down marks, generations, counters, pairings of addresses.

Order of the passes: what a later one asks about, an earlier one has rebuilt.
"""

from __future__ import annotations

import numpy as np

from shards import alarms, cuckoo, events, externals, fragments, journal, nat, ports, sessions, sessions6, slabs, timers
from shards.account_rows import BLOCKS_AT_MOST, PROTOCOL_CLASSES
from shards.accounts import account_of, charge, charge_session, is_bypassed
from shards.generic import is_generic
from shards.jit import hot, whole
from shards.native import prefetch
from shards.state import (
    CHUNK_PORTS,
    CLASSES,
    EXTENT_LINES,
    FIREWALL_SESSION6,
    FREE,
    NAT_MAPPING,
    NAT_PERMISSION,
    NAT_SESSION,
    WHEEL_SHIFT,
    Row,
    State,
)

_AHEAD = 12  # rows between asking for what an index entry and its row will touch, and touching it


@hot
def attach(state: State, now: int) -> int:
    """Make a core's memory ready for packets: empty at the first start, else as it was left. Sessions found alive."""
    _forget(state, now)
    for extent in range(1, whole(state.core[0]["next_extent"])):
        _give_back(state, extent)
        if state.extents[extent]["kind"] == NAT_MAPPING:
            _mappings_of(state, extent, now)
        elif state.extents[extent]["kind"] == NAT_PERMISSION:
            _permissions_of(state, extent)
    install_statics(state, now)
    for account in range(1, len(state.accounts)):
        _own_blocks(state, account, now)
    _count_free_blocks(state)
    found = 0
    for extent in range(1, whole(state.core[0]["next_extent"])):
        if state.extents[extent]["kind"] == NAT_SESSION:
            found += _sessions_of(state, extent, now)
        elif state.extents[extent]["kind"] == FIREWALL_SESSION6:
            found += _sessions6_of(state, extent, now)
    for extent in range(1, whole(state.core[0]["next_extent"])):
        if state.extents[extent]["kind"] == NAT_MAPPING:
            _end_idle(state, extent, now)
    return found


@hot
def _forget(state: State, now: int) -> None:
    """Empty all that is derived."""
    cuckoo.clear(state)
    state.wheel[:] = 0
    core = state.core[0]
    core["wheel_at"] = now >> WHEEL_SHIFT
    core["held"] = 0
    fragments.forget(state)
    alarms.forget(state)
    for s in range(len(state.shards)):
        shard = state.shards[s]
        for klass in range(CLASSES):
            state.slabs[s, klass]["free"] = 0
            state.slabs[s, klass]["fresh"] = 0  # every row of an extent that is not alive goes to a free list
            state.slabs[s, klass]["fresh_end"] = 0
            state.slabs[s, klass]["extents"] = 0
        shard["sessions"] = 0
        shard["mappings"] = 0
    for a in range(len(state.accounts)):
        account = state.accounts[a]
        if account["base"] or account["sessions"] or account["mappings"]:
            account["sessions"] = 0
            account["mappings"] = 0
            account["full"] = 0
            for c in range(PROTOCOL_CLASSES):
                account["sessions_of"][c] = 0
                account["mappings_of"][c] = 0
    for external in range(len(state.externals)):
        if state.externals[external]["address"]:  # to look at a spare one would take memory for it
            _disown(state, external)


@hot
def _disown(state: State, external: int) -> None:
    """Free every chunk of an address. What is untouched is only read: in shared memory a write would allocate it."""
    for c in range(65536 // CHUNK_PORTS):
        chunk = state.chunks[external, c]
        if chunk["used"] or chunk["account"]:
            chunk["used"] = 0
            chunk["account"] = 0


@hot
def _own_blocks(state: State, number: int, now: int) -> None:
    """Write an account's blocks into the chunks: its list is the truth, but a block without a port in use is given back."""
    account = state.accounts[number]
    external = whole(account["external"]) - 1
    if external < 0:
        return
    account["strained"] = 0
    size = whole(state.pools[whole(account["pool"])]["block_size"])
    for k in range(BLOCKS_AT_MOST):
        block = whole(account["blocks"][k]) - 1
        if block < 0:
            continue
        if ports.is_vacant(state, external, block, size // CHUNK_PORTS):
            account["blocks"][k] = 0
            events.block(state, events.BLOCK_RELEASED, number, external, block * size, size, now)
        else:
            ports.own_block(state, external, block, size, number + 1)
    alarms.look_at_subscriber(state, number, now)


@hot
def _count_free_blocks(state: State) -> None:
    """Free blocks of each pool, as its chunks say."""
    for p in range(whole(state.settings[0]["pools"])):
        pool = state.pools[p]
        each, free = whole(pool["block_size"]) // CHUNK_PORTS, 0
        for place in range(whole(pool["externals"])):
            external, here = externals.nth(state, pool, place), 0
            for block in range(whole(pool["first_block"]), whole(pool["end_block"])):
                here += ports.is_vacant(state, external, block, each)
            state.externals[external]["blocks_free"] = here
            free += here
        pool["blocks_free"] = free


@hot
def _give_back(state: State, number: int) -> None:
    """Give an extent back to its class: what the extents say is the truth. They were taken in the order of their ordinals."""
    extent = state.extents[number]
    shard, klass, ordinal = whole(extent["shard"]), whole(extent["klass"]), whole(extent["ordinal"])
    state.extent_of[shard, klass, ordinal] = number
    state.slabs[shard, klass]["extents"] = ordinal + 1


@hot
def _permissions_of(state: State, extent: int) -> None:
    """Free them all: the sessions that need one make it again."""
    for half in range(extent * EXTENT_LINES * 2, (extent + 1) * EXTENT_LINES * 2):
        state.mappings[half]["kind"] = FREE
        slabs.free_half(state, half)


@hot
def _mappings_of(state: State, extent: int, now: int) -> None:
    """Index the mappings of an extent, give them their ports, put the rest on the free list. Their sessions count anew.

    A port is found by the row that has, or had, it: sweeping `owners` would allocate all of it. One that was about to be freed
    is held down from now on, since nobody knows better.
    """
    shard = whole(state.extents[extent]["shard"])
    for half in range(extent * EXTENT_LINES * 2, (extent + 1) * EXTENT_LINES * 2):
        _ask_for_mapping(state, min(half + _AHEAD, len(state.mappings) - 1))
        row = state.mappings[half]
        row["sessions"] = 0
        address = whole(row["external_address"])
        external = sessions.external_ordinal(state, address) if address else -1  # most rows have never been used
        _take_port_back(state, half, external, now)
        key0, key1 = state.words[half * 4], state.words[half * 4 + 1]
        if row["kind"] != NAT_MAPPING or _cannot_own(state, external, row) or not cuckoo.insert(state, key0, key1, half << 1):
            row["kind"] = FREE
            journal.bury(state, half, whole(row["generation"]))  # whoever was told of this life
            slabs.free_half(state, half)
            continue
        journal.mark(state, half)
        ports.own(state, external, ports.port_space(whole(row["internal_realm"]) >> 24), whole(row["external_port"]), half)
        charge(state, whole(row["account"]), whole(row["internal_realm"]) >> 24, 0, 1)
        state.shards[shard]["mappings"] += 1


@hot
def _cannot_own(state: State, external: int, mapping: Row) -> bool:
    """Whether a mapping's port is in no pool, or another's: where a copy was being made, a stale one may say it still."""
    if external < 0:
        return True
    protocol, port = whole(mapping["internal_realm"]) >> 24, whole(mapping["external_port"])
    return ports.owner(state, external, protocol, port) != 0


@hot
def _take_port_back(state: State, half: int, external: int, now: int) -> None:
    """Hold down the port that `owners` says belongs to this row, if it does; a living mapping owns it anew."""
    if external < 0:
        return
    row = state.mappings[half]
    space = ports.port_space(whole(row["internal_realm"]) >> 24)
    if state.owners[space, external, whole(row["external_port"])] == half:
        state.owners[space, external, whole(row["external_port"])] = ports.held_since(now)


@hot
def _sessions_of(state: State, extent: int, now: int) -> int:
    """Index and arm the living sessions of an extent, put the rest on the free list; how many live."""
    shard, found = whole(state.extents[extent]["shard"]), 0
    for line in range(extent * EXTENT_LINES, (extent + 1) * EXTENT_LINES):
        _ask_for_session(state, min(line + _AHEAD, len(state.sessions) - 1))
        row = state.sessions[line]
        if row["kind"] == NAT_SESSION and (not _belongs(state, line) or sessions.index_session(state, line)):
            row["kind"] = FREE
            events.session(state, events.SESSION_DELETED, line, now)
        if row["kind"] == FREE:
            journal.bury(state, line << 1, whole(row["generation"]))  # whoever was told of this life
            slabs.free_line(state, line)
            continue
        journal.mark(state, line << 1)
        if not is_bypassed(row):
            state.mappings[whole(row["mapping"])]["sessions"] += 1
        timers.arm(state, line, now + timers.remaining(now, whole(row["expiry"])))
        charge_session(state, row, 1)
        state.shards[shard]["sessions"] += 1
        found += 1
    return found


@hot
def _sessions6_of(state: State, extent: int, now: int) -> int:
    """The same for sessions of IPv6; whose account each is stands in the row, and whom it lets in."""
    shard, found = whole(state.extents[extent]["shard"]), 0
    for line in range(extent * EXTENT_LINES, (extent + 1) * EXTENT_LINES, 2):
        row = state.sessions[line]
        if row["kind"] == FIREWALL_SESSION6 and sessions6.index(state, line):
            row["kind"] = FREE
        if row["kind"] != FIREWALL_SESSION6:
            row["kind"] = FREE
            journal.bury(state, line << 1, whole(row["generation"]))
            slabs.free_line(state, line)
            continue
        journal.mark(state, line << 1)
        timers.arm(state, line, now + timers.remaining(now, whole(row["expiry"])))
        flow = state.flows6[line + 1]
        charge(state, whole(flow["account"]), whole(flow["realm"]) >> 24, 1, 0)
        state.shards[shard]["sessions"] += 1
        found += 1
    return found


@hot
def _ask_for_mapping(state: State, half: int) -> None:
    """Ask for its buckets and the owner of its port."""
    row = state.mappings[half]
    external = sessions.external_ordinal(state, whole(row["external_address"])) if row["kind"] == NAT_MAPPING else -1
    if external >= 0:
        cuckoo.ask_for(state, state.words[half * 4], state.words[half * 4 + 1])
        space = ports.port_space(whole(row["internal_realm"]) >> 24)
        prefetch(state.owners[space, external], whole(row["external_port"]))


@hot
def _ask_for_session(state: State, line: int) -> None:
    """Ask for its mapping and the buckets of both its tuples."""
    if state.sessions[line]["kind"] == NAT_SESSION:
        prefetch(state.mappings, sessions.mapping_of(state, line))
        cuckoo.ask_for(state, state.words[line * 8], state.words[line * 8 + 1])
        cuckoo.ask_for(state, state.words[line * 8 + 2], state.words[line * 8 + 3])


@hot
def _belongs(state: State, line: int) -> bool:
    """Whether a session's mapping is still the one that it was made from; without one, whether it has an account."""
    session = state.sessions[line]
    if is_bypassed(session):
        return 0 < account_of(state, session) < len(state.accounts)
    mapping = state.mappings[whole(session["mapping"])]
    return bool(
        mapping["kind"] == NAT_MAPPING
        and mapping["internal_address"] == session["internal_address"]
        and mapping["internal_realm"] == session["internal_realm"]
        and mapping["internal_port"] == session["internal_port"]
        and mapping["external_address"] == session["external_address"]
        and (mapping["external_port"] == session["external_port"] or is_generic(whole(session["internal_realm"]) >> 24))
    )


@hot
def _end_idle(state: State, extent: int, now: int) -> None:
    """End the mappings of an extent that no session uses; a backup leaves that to the core that it copies."""
    shard = whole(state.extents[extent]["shard"])
    if state.shards[shard]["creates"] == 0:
        return
    for half in range(extent * EXTENT_LINES * 2, (extent + 1) * EXTENT_LINES * 2):
        row = state.mappings[half]
        if row["kind"] == NAT_MAPPING and row["sessions"] == 0 and row["static"] == 0:
            sessions.end_mapping(state, shard, half, now)


@hot
def install_statics(state: State, now: int) -> None:
    """Make the static mappings of the configuration that are not there yet."""
    for s in range(whole(state.settings[0]["statics"])):
        static = state.statics[s]
        realm = whole(state.ports[whole(state.settings[0]["internal_port"])]["internal_realm"])
        address, port, protocol = whole(static["internal_address"]), whole(static["internal_port"]), whole(static["protocol"])
        external = sessions.external_ordinal(state, whole(static["external_address"]))
        account, _ = nat.find_account(state, realm, address)
        # The configuration was checked; a static mapping whose ends are unknown would be a fault of ours, and is left out.
        if external < 0 or account == 0 or sessions.find_mapping(state, address, realm, protocol, port):
            continue
        shard = whole(state.accounts[account]["shard"])
        if state.shards[shard]["creates"] == 0:
            continue  # they come from the core that has the authority
        verdict, _ = sessions.make_mapping(
            state, shard, account, address, realm, protocol, port, external, whole(static["external_port"]), 1, now
        )
        if verdict == 0:
            _pair(state, address, realm, external)


@hot
def _pair(state: State, address: int, realm: int, external: int) -> None:
    """A subscriber that is paired with no address yet is with that of its static mapping (RFC 4787 REQ-2)."""
    _, subscriber = nat.find_account(state, realm, address)
    account = state.accounts[subscriber]
    if account["external"] == 0 and account["pool"] == state.externals[external]["pool"]:
        account["external"] = external + 1


def living(state: State) -> int:
    """Sessions alive, over all shards."""
    return whole(np.sum(state.shards["sessions"]))
