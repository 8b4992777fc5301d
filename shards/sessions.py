"""Mappings, sessions and permissions: made, found and ended (RFC 6146 section 3.5: BIB and session tables).

A session row is the truth; the index, timers, owners of ports and accounts follow from the rows (see `recovery`). So a row's
`kind` is written last when it is born and first when it dies.
"""

from __future__ import annotations

import numpy as np

from shards import cuckoo, doubt, events, externals, journal, permissions, ports, sessions6, slabs, tcp, timers, wire
from shards.accounts import charge, charge_session, is_bypassed
from shards.generic import is_generic
from shards.jit import hot, inlined, whole
from shards.native import Word, prefetch
from shards.state import (
    ABSENT,
    ACTIVE,
    ADDRESS_DEPENDENT,
    BYPASSED,
    CHUNK_PORTS,
    FILTERING_BITS,
    FIREWALL_SESSION6,
    FREE,
    ICMP,
    NAT_MAPPING,
    NAT_SESSION,
    TCP,
    UDP,
    Array,
    State,
)
from shards.verdict import (
    MAPPINGS_CREATED,
    MAPPINGS_ENDED,
    ROWS_EXHAUSTED,
    SESSION_LIMIT,
    SESSIONS_CREATED,
    SESSIONS_DELETED,
    SESSIONS_EXPIRED,
    TABLE_FULL,
)

_U = np.uint64
HAIRPIN_HOP = 0xFFFF  # in a session's `outward`: not a neighbour, the packet turns round inside
PERMISSION_BIT = 128  # in the protocol of a permission's key, which has a port; with the bit packets have none
SESSIONS_EACH = 65535  # of a mapping at most, by the width of its count
LOOK_AGAIN = 10_000  # ticks between two looks of the wheel at a session that is due but stays
TOGETHER = 32  # lines that are due and are asked for together


@inlined
def key_0(address: int, realm: int, protocol: int) -> Word:
    """First word of a key: the local endpoint's address, its realm, the protocol."""
    return _U(address) | _U(realm) << _U(32) | _U(protocol) << _U(56)


@inlined
def key_1(remote: int, local_port: int, remote_port: int) -> Word:
    """Second word of a key: the remote address and both ports."""
    return _U(remote) | _U(local_port) << _U(32) | _U(remote_port) << _U(48)


@hot
def find_mapping(state: State, address: int, realm: int, protocol: int, port: int) -> int:
    """Half-line of the mapping of an internal endpoint, 0 if it has none."""
    return cuckoo.lookup(state, key_0(address, realm, protocol), key_1(0, port, 0)) >> 1


@hot
def find_permission(state: State, address: int, realm: int, protocol: int, port: int, remote: int) -> int:
    """Half-line of what lets `remote` reach an external endpoint, 0 if nothing does."""
    return cuckoo.lookup(state, key_0(address, realm, protocol | PERMISSION_BIT), key_1(remote, port, 0)) >> 1


@hot
def external_ordinal(state: State, address: int) -> int:
    """Ordinal of an address in `externals`, -1 if it is in no pool."""
    for p in range(whole(state.settings[0]["pools"])):
        pool = state.pools[p]
        place = externals.place_of(state, pool, address)
        if place >= 0:
            return externals.nth(state, pool, place)
    return -1


@hot
def make_mapping(
    state: State,
    shard: int,
    account: int,
    address: int,
    realm: int,
    protocol: int,
    port: int,
    external: int,
    external_port: int,
    static: int,
    now: int,
) -> tuple[int, int]:
    """(verdict or 0, half-line) of a new mapping; the external port must be free and is owned by it afterwards."""
    half = slabs.new_half(state, shard)
    if half == 0:
        return ROWS_EXHAUSTED, 0
    row = state.mappings[half]
    row["internal_address"] = address
    row["internal_realm"] = realm | protocol << 24
    row["remote_address"] = 0
    row["internal_port"] = port
    row["remote_port"] = 0
    row["external_address"] = state.externals[external]["address"]
    row["external_port"] = external_port
    row["sessions"] = 0
    row["static"] = static
    if not cuckoo.insert(state, key_0(address, realm, protocol), key_1(0, port, 0), half << 1):
        slabs.free_half(state, half)
        return TABLE_FULL, 0
    row["account"] = account
    row["generation"] = (whole(row["generation"]) + 1) & 0xFFFF
    row["kind"] = NAT_MAPPING
    ports.own(state, external, ports.port_space(protocol), external_port, half)
    charge(state, account, protocol, 0, 1)
    state.shards[shard]["mappings"] += 1
    state.counters[MAPPINGS_CREATED, 0] += 1
    journal.mark(state, half)
    events.mapping(state, events.MAPPING_CREATED, half, now)
    return 0, half


@hot
def end_mapping(state: State, shard: int, half: int, now: int) -> None:
    """End a mapping that no session uses: its port goes into hold-down."""
    row = state.mappings[half]
    row["kind"] = FREE
    events.mapping(state, events.MAPPING_DELETED, half, now)
    external, port = take_out_mapping(state, shard, half, now)
    ports.give_back(state, external, port, now)
    state.counters[MAPPINGS_ENDED, 0] += 1
    journal.bury(state, half, whole(row["generation"]))
    slabs.free_half(state, half)


@hot
def take_out_mapping(state: State, shard: int, half: int, now: int) -> tuple[int, int]:
    """Undo all that follows from a mapping but its row and its block; (external ordinal, external port)."""
    row = state.mappings[half]
    cuckoo.erase(state, state.words[half * 4], state.words[half * 4 + 1], half << 1)
    protocol = whole(row["internal_realm"]) >> 24
    external, port = external_ordinal(state, whole(row["external_address"])), whole(row["external_port"])
    if ports.owner(state, external, protocol, port) == half:  # else the authority gave it to another (see `apply`)
        ports.hold(state, external, ports.port_space(protocol), port, now)
    charge(state, whole(row["account"]), protocol, 0, -1)
    state.shards[shard]["mappings"] -= 1
    return external, port


@hot
def make_session(
    state: State,
    shard: int,
    half: int,
    remote: int,
    remote_port: int,
    external_realm: int,
    tcp_state: int,
    inward: int,
    outward: int,
    expiry: int,
    now: int,
) -> tuple[int, int]:
    """(verdict or 0, line) of a new session of mapping `half`, between the next hops `inward` and `outward`."""
    mapping = state.mappings[half]
    if whole(mapping["sessions"]) >= SESSIONS_EACH:
        return SESSION_LIMIT, 0
    line = slabs.new_line(state, shard)
    if line == 0:
        return ROWS_EXHAUSTED, 0
    describe(state, shard, line, half, remote, remote_port, external_realm)
    verdict = _give_life(state, shard, line, tcp_state, inward, outward, expiry, now)
    if verdict:
        return verdict, 0
    mapping["sessions"] += 1
    return 0, line


@hot
def make_bypassed(
    state: State,
    shard: int,
    account: int,
    address: int,
    realm: int,
    protocol: int,
    port: int,
    remote: int,
    remote_port: int,
    external_realm: int,
    tcp_state: int,
    inward: int,
    outward: int,
    expiry: int,
    now: int,
) -> tuple[int, int]:
    """(verdict or 0, line) of a new session of `account` whose packets are not translated."""
    line = slabs.new_line(state, shard)
    if line == 0:
        return ROWS_EXHAUSTED, 0
    describe_bypassed(state, shard, line, account, address, realm, protocol, port, remote, remote_port, external_realm)
    verdict = _give_life(state, shard, line, tcp_state, inward, outward, expiry, now)
    return (verdict, 0) if verdict else (0, line)


@hot
def _give_life(state: State, shard: int, line: int, tcp_state: int, inward: int, outward: int, expiry: int, now: int) -> int:
    """Let a described session begin. Verdict, or 0; its mapping, if it has one, does not count it yet."""
    row = state.sessions[line]
    row["created"] = now & 0xFFFFFFFF
    row["expiry"] = expiry & 0xFFFFFFFF
    row["packets"] = 0
    row["state"] = tcp_state
    row["inward"] = inward
    row["outward"] = outward
    row["rules"] = state.settings[0]["rules_version"]
    row["generation"] = (whole(row["generation"]) + 1) & 0xFFFF
    verdict = index_session(state, line)
    if verdict:
        slabs.free_line(state, line)
        return verdict
    row["kind"] = NAT_SESSION
    timers.arm(state, line, expiry)
    charge_session(state, row, 1)
    state.shards[shard]["sessions"] += 1
    state.counters[SESSIONS_CREATED, 0] += 1
    journal.mark(state, line << 1)
    events.session(state, events.SESSION_CREATED, line, now)
    return 0


@hot
def describe(state: State, shard: int, line: int, half: int, remote: int, remote_port: int, external_realm: int) -> None:
    """Write what never changes of a session: whose it is, its two tuples, what the translation adds to checksums."""
    mapping, row = state.mappings[half], state.sessions[line]
    protocol = whole(mapping["internal_realm"]) >> 24
    row["internal_address"] = mapping["internal_address"]
    row["internal_realm"] = mapping["internal_realm"]
    row["remote_address"] = remote
    row["internal_port"] = mapping["internal_port"]
    row["remote_port"] = remote_port
    row["external_address"] = mapping["external_address"]
    row["external_realm"] = external_realm | protocol << 24
    row["remote_address_again"] = remote
    row["external_port"] = 0 if is_generic(protocol) else whole(mapping["external_port"])
    row["remote_port_again"] = remote_port
    row["mapping"] = half
    row["shard"] = shard
    row["delta_l3"] = wire.difference(whole(mapping["internal_address"]), whole(mapping["external_address"]))
    port_delta = wire.difference(whole(mapping["internal_port"]), whole(mapping["external_port"]))
    # ICMP has no pseudo header: only the identifier counts.
    row["delta_l4"] = port_delta if protocol == ICMP else wire.fold(whole(row["delta_l3"]) + port_delta)


@hot
def describe_bypassed(
    state: State, shard: int, line: int, account: int, address: int, realm: int, protocol: int, port: int, remote: int,
    remote_port: int, external_realm: int,
) -> None:  # fmt: skip
    """As `describe`, of a session whose packets are not translated: one endpoint, nothing added to any sum."""
    row = state.sessions[line]
    row["internal_address"] = address
    row["internal_realm"] = realm | protocol << 24
    row["remote_address"] = remote
    row["internal_port"] = port
    row["remote_port"] = remote_port
    row["external_address"] = address
    row["external_realm"] = external_realm | protocol << 24
    row["remote_address_again"] = remote
    row["external_port"] = port
    row["remote_port_again"] = remote_port
    row["mapping"] = BYPASSED | account
    row["shard"] = shard
    row["delta_l3"] = 0
    row["delta_l4"] = 0


@hot
def index_session(state: State, line: int) -> int:
    """Enter both tuples, and the permission where the pool filters by address; all or nothing. Verdict, or 0."""
    out0, out1 = state.words[line * 8], state.words[line * 8 + 1]
    in0, in1 = state.words[line * 8 + 2], state.words[line * 8 + 3]
    if not cuckoo.insert(state, out0, out1, line << 2):
        return TABLE_FULL
    if not cuckoo.insert(state, in0, in1, line << 2 | 1):
        cuckoo.erase(state, out0, out1, line << 2)
        return TABLE_FULL
    if filters_by_address(state, line):
        key0, key1 = _permission_keys(state, line)
        verdict = permissions.permit(state, whole(state.sessions[line]["shard"]), key0, key1)
        if verdict:
            cuckoo.erase(state, out0, out1, line << 2)
            cuckoo.erase(state, in0, in1, line << 2 | 1)
            return verdict
    return 0


@hot
def filtering_of(state: State, external: int, protocol: int) -> int:
    """Filtering of a protocol on an external address, by ordinal (RFC 4787 5); that of TCP may be another (RFC 5382 REQ-3b)."""
    pool = state.pools[whole(state.externals[external]["pool"])]
    return whole(pool["filtering"]) >> FILTERING_BITS * ports.port_space(protocol) & 3


@hot
def filters_by_address(state: State, line: int) -> bool:
    """Whether the session's pool lets in whatever comes from an address that was written to (RFC 4787 section 5)."""
    row = state.sessions[line]
    protocol = whole(row["internal_realm"]) >> 24
    # A session without a remote port is its own permission; what is not translated is of no pool.
    if (protocol != TCP and protocol != UDP) or is_bypassed(row):
        return False
    external = external_ordinal(state, whole(row["external_address"]))
    return filtering_of(state, external, protocol) == ADDRESS_DEPENDENT


@hot
def _permission_keys(state: State, line: int) -> tuple[Word, Word]:
    """Key of what lets a session's remote address in: its inbound tuple without the remote port, of a protocol of its own."""
    return state.words[line * 8 + 2] | _U(PERMISSION_BIT) << _U(56), state.words[line * 8 + 3] & _U(0xFFFF_FFFF_FFFF)


@hot
def end_session(state: State, line: int, now: int) -> None:
    """End a session that is off the wheel; with its last one a dynamic mapping ends as well."""
    row = state.sessions[line]
    if row["kind"] == FIREWALL_SESSION6:
        sessions6.end(state, line)
        return
    row["kind"] = FREE
    events.session(state, events.SESSION_DELETED, line, now)
    take_out_session(state, line)
    journal.bury(state, line << 1, whole(row["generation"]))  # before its mapping's, which nobody can end before it
    half = whole(row["mapping"])
    if not is_bypassed(row) and state.mappings[half]["sessions"] == 0 and state.mappings[half]["static"] == 0:
        end_mapping(state, whole(row["shard"]), half, now)
    slabs.free_line(state, line)


@hot
def take_out_session(state: State, line: int) -> None:
    """Undo all that follows from a session but its row; its mapping counts one less."""
    row = state.sessions[line]
    cuckoo.erase(state, state.words[line * 8], state.words[line * 8 + 1], line << 2)
    cuckoo.erase(state, state.words[line * 8 + 2], state.words[line * 8 + 3], line << 2 | 1)
    if filters_by_address(state, line):
        key0, key1 = _permission_keys(state, line)
        permissions.forbid(state, key0, key1)
    charge_session(state, row, -1)
    if not is_bypassed(row):
        state.mappings[whole(row["mapping"])]["sessions"] -= 1
    state.shards[whole(row["shard"])]["sessions"] -= 1


@hot
def take_out(state: State, line: int) -> None:
    """`take_out_session`, or what it is for IPv6."""
    if slabs.kind_at(state, line) == FIREWALL_SESSION6:
        sessions6.take_out(state, line)
    else:
        take_out_session(state, line)


@hot
def delete(state: State, line: int, now: int) -> None:
    """End a living session before its time."""
    timers.disarm(state, line)
    end_session(state, line, now)
    state.counters[SESSIONS_DELETED, 0] += 1


@hot
def delete_lives(state: State, lives: Array, now: int) -> int:
    """Delete those of the sessions that still live; `lives`: int64 (n, 2) of line and generation. How many."""
    ended = 0
    doubt.begin(state)
    for k in range(len(lives)):
        ended += delete_life(state, lives[k, 0], lives[k, 1], now)
    doubt.end(state)
    return ended


@hot
def delete_life(state: State, line: int, generation: int, now: int) -> bool:
    """Delete the session at `line` if it is still the one that was meant: alive, and in that life of the row."""
    if line <= 0 or line >= len(state.sessions):
        return False
    row = state.sessions[line]
    if not is_living(state, line) or whole(row["generation"]) != generation:
        return False
    delete(state, line, now)
    return True


@hot
def is_living(state: State, line: int) -> bool:
    """Whether a session lives at a line. The second lines of IPv6's look like nothing: their extent says what they are."""
    return whole(state.sessions[line]["kind"]) in (NAT_SESSION, FIREWALL_SESSION6)


@hot
def _keep_neighbours(state: State, line: int, now: int) -> None:
    """A living session's next hops are in use, even if none is ever asked for again: their rows must not change hands."""
    row = state.sessions[line]
    state.neighbours[whole(row["inward"])]["used"] = now & 0xFFFFFFFF
    if row["outward"] != HAIRPIN_HOP:
        state.neighbours[whole(row["outward"])]["used"] = now & 0xFFFFFFFF


@hot
def expire(state: State, now: int, at_most: int) -> int:
    """Serve the wheel up to `now`: end what is due, put what was refreshed further along. Rows looked at, at most `at_most`."""
    seen = 0
    while seen < at_most:
        line = timers.due(state, now)
        if line == 0:
            break
        count = _ask_for_due(state, line, min(at_most - seen, TOGETHER))
        doubt.begin(state)
        for _ in range(count):
            line = _serve_due(state, line, now)
        doubt.end(state)
        seen += count
    return seen


@hot
def _ask_for_due(state: State, first: int, at_most: int) -> int:
    """Ask for every line that the ends of `first`, and of those behind it in its slot, will touch; how many these are.

    In steps: what a step reads, the one before has asked for. An end touches a dozen lines that are nowhere near each other.
    """
    count, line = 0, first
    while line and count < at_most:
        prefetch(state.sessions, line)
        line = whole(state.links[line]["next"])
        count += 1
    line = first
    for _ in range(count):
        prefetch(state.mappings, mapping_of(state, line))
        cuckoo.ask_for(state, state.words[line * 8], state.words[line * 8 + 1])
        cuckoo.ask_for(state, state.words[line * 8 + 2], state.words[line * 8 + 3])
        line = whole(state.links[line]["next"])
    line = first
    for _ in range(count):
        ask_for_mapping(state, mapping_of(state, line))
        line = whole(state.links[line]["next"])
    return count


@hot
def mapping_of(state: State, line: int) -> int:
    """Half-line of a session's mapping, 0 where it has none."""
    told = whole(state.sessions[line]["mapping"])
    return told if told < BYPASSED else 0


@hot
def ask_for_mapping(state: State, half: int) -> None:
    """Ask for what the end of a mapping touches, if it may be near, and for the account."""
    mapping = state.mappings[half]
    prefetch(state.accounts, whole(mapping["account"]))
    if mapping["sessions"] <= 1:
        cuckoo.ask_for(state, state.words[half * 4], state.words[half * 4 + 1])
        external, port = external_ordinal(state, whole(mapping["external_address"])), whole(mapping["external_port"])
        prefetch(state.owners[ports.port_space(whole(mapping["internal_realm"]) >> 24), external], port)
        prefetch(state.chunks[external], port // CHUNK_PORTS)


@hot
def _serve_due(state: State, line: int, now: int) -> int:
    """Take the first line of a slot off the wheel, end its session or arm it anew; the line behind it."""
    following = whole(state.links[line]["next"])
    timers.disarm(state, line)
    left = timers.remaining(now, whole(state.sessions[line]["expiry"]))
    if left > 0:
        timers.arm(state, line, now + left)
        _keep_neighbours(state, line, now)
    elif outlives(state, line, now):
        timers.arm(state, line, now + LOOK_AGAIN)
    else:
        end_session(state, line, now)
        state.counters[SESSIONS_EXPIRED, 0] += 1
    return following


@hot
def outlives(state: State, line: int, now: int) -> bool:
    """Whether a session that is due stays: only the authority knows its end; who was not handed it, after his grace only."""
    shard = state.shards[whole(state.sessions[line]["shard"])]
    if shard["role"] != ACTIVE and shard["role"] != ABSENT:
        return True
    if shard["grace_until"] != 0 and timers.remaining(now, whole(shard["grace_until"])) <= 0:
        shard["grace_until"] = shard["pickup"] = 0  # before the tick comes round again, in 25 days
    return bool(shard["grace_until"] != 0)


@hot
def end_or_revive(state: State, line: int, now: int) -> int:
    """A packet has met a session that is due: end it, or let it live on where it stays; the line, or 0."""
    row = state.sessions[line]
    if outlives(state, line, now):
        row["expiry"] = tcp.ends(state.settings, whole(row["state"]), now) & 0xFFFFFFFF
        return line
    timers.disarm(state, line)
    end_session(state, line, now)
    state.counters[SESSIONS_EXPIRED, 0] += 1
    return 0
