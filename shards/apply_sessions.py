"""A session that another core tells of becomes ours: its row, both tuples, its timer, our next hops for it (see `apply`)."""

from __future__ import annotations

from shards import cuckoo, hops, journal, nat, ports, sessions, slabs, tcp, timers
from shards.accounts import charge_session
from shards.apply_mappings import (
    external_of,
    forgotten,
    generation,
    is_authority,
    is_same_mapping,
    known,
    see,
    settle,
)
from shards.generic import can_be_translated, is_generic
from shards.jit import hot, whole
from shards.lifetimes import SLACK, STATE_MASK
from shards.native import Word, prefetch
from shards.records import COPIED, HAIRPIN, UNTRANSLATED
from shards.state import (
    ACTIVE,
    BYPASSED,
    DRAINING,
    EXTERNAL,
    FREE,
    ICMP,
    INTERNAL,
    MAPPING_0,
    MAPPING_1,
    NAT_MAPPING,
    NAT_SESSION,
    SESSION_0,
    SESSION_1,
    TCP,
    UDP,
    Array,
    Row,
    State,
)

NEWS = 1000  # ticks: a lifetime that another core's word lets last so much longer is told on, with the slack that it has
HORIZON = 1 << 30  # ticks; no lifetime is longer, nor so long that ages turn round
TOGETHER = 15_000  # ticks: of two cores' words about a connection that are no further apart, neither is the newer
MULTICAST = 0xE0000000  # and what is above: no remote host


@hot
def take_session(state: State, shard: int, record: Row, seen: Array, now: int) -> bool:
    """Take one SESSION_RECORD; False: refused."""
    klass = whole(record["klass"])
    if klass not in (SESSION_0, SESSION_1) or not _can_be(state, record):
        return False
    half = _whose(state, shard, record)
    if half == 0:
        return (
            len(seen) > 0 and whole(record["flags"]) & UNTRANSLATED == 0
        )  # a change that was faster than the snapshot's mappings; its sessions come after them
    line = slabs.local_row(state, shard, klass, whole(record["row"]))
    if is_living(state, line) and _is_same_session(state.sessions[line], record):
        _update_session(state, shard, line, half, record, now)
    else:
        line = _admit_session(state, shard, line, half, record, now)
        if line <= 0:
            return line == 0
        if not _make_session(state, shard, line, half, record, now):
            return False
    see(seen, line << 1)
    return True


@hot
def _can_be(state: State, record: Row) -> bool:
    """Whether a session of such fields exists: what the path would not have made cannot come from another core either."""
    protocol, told = whole(record["protocol"]), whole(record["state"]) & STATE_MASK
    if protocol == TCP:
        fits = tcp.INIT <= told <= tcp.RESET or told in (tcp.INIT_IN, tcp.ANSWERED)
    elif protocol == UDP:
        fits = told == tcp.STREAM
    elif protocol == ICMP:
        fits = told == tcp.QUERY and whole(record["remote_port"]) == 0
    else:
        ports_told = whole(record["internal_port"]) | whole(record["external_port"]) | whole(record["remote_port"])
        fits = can_be_translated(protocol) and told == tcp.GENERIC and ports_told == 0
    settings = state.settings[0]
    internal_realm = whole(state.ports[whole(settings["internal_port"])]["internal_realm"])
    external_realm = whole(state.ports[whole(settings["external_port"])]["external_realm"])
    remote = whole(record["remote_address"])
    return bool(
        fits
        and whole(record["remaining"]) <= HORIZON
        and whole(record["external_realm"]) == external_realm
        and 0 < remote < MULTICAST
        and (whole(record["flags"]) & HAIRPIN != 0) == _turns(state, internal_realm, remote)
    )


@hot
def _turns(state: State, realm: int, remote: int) -> bool:
    """Whether what is sent to a remote comes in again: to a pool of ours, or to a subscriber who is known outside."""
    return sessions.external_ordinal(state, remote) >= 0 or nat.is_internal(state, realm, remote)


@hot
def ask_for_session(state: State, shard: int, record: Row) -> None:
    """Ask for all that `take_session` will touch, but what follows from its mapping."""
    klass, mapping_klass = whole(record["klass"]), whole(record["mapping_klass"])
    if klass in (SESSION_0, SESSION_1):
        prefetch(state.sessions, slabs.local_row(state, shard, klass, whole(record["row"])))
    if mapping_klass in (MAPPING_0, MAPPING_1):
        prefetch(state.mappings, slabs.local_row(state, shard, mapping_klass, whole(record["mapping_row"])))
    out0, out1, in0, in1 = _session_keys(record)
    cuckoo.ask_for(state, out0, out1)
    cuckoo.ask_for(state, in0, in1)


@hot
def _session_keys(record: Row) -> tuple[Word, Word, Word, Word]:
    protocol, remote, remote_port = whole(record["protocol"]), whole(record["remote_address"]), whole(record["remote_port"])
    return (
        sessions.key_0(whole(record["internal_address"]), whole(record["internal_realm"]) & 0xFFFFFF, protocol),
        sessions.key_1(remote, whole(record["internal_port"]), remote_port),
        sessions.key_0(whole(record["external_address"]), whole(record["external_realm"]) & 0xFFFFFF, protocol),
        sessions.key_1(remote, whole(record["external_port"]), remote_port),
    )


@hot
def _whose(state: State, shard: int, record: Row) -> int:
    """What a session's `mapping` says here: its mapping's half-line, or its account where it has none; 0: neither is here."""
    if whole(record["flags"]) & UNTRANSLATED == 0:
        return _mapping_of(state, shard, record)
    address, realm = whole(record["internal_address"]), whole(record["internal_realm"])
    account, subscriber = nat.find_account(state, realm, address)
    alike = address == whole(record["external_address"]) and record["internal_port"] == record["external_port"]
    if subscriber == 0 or not alike or whole(state.accounts[subscriber]["shard"]) != shard:
        return 0
    return BYPASSED | account


@hot
def _mapping_of(state: State, shard: int, record: Row) -> int:
    """Half-line of a session's mapping: at the row that it names, else whichever has its endpoint; 0 if there is none."""
    klass = whole(record["mapping_klass"])
    if klass in (MAPPING_0, MAPPING_1):
        half = slabs.local_row(state, shard, klass, whole(record["mapping_row"]))
        if half and state.mappings[half]["kind"] == NAT_MAPPING and _is_its_mapping(state.mappings[half], record):
            return half
    external, protocol = external_of(state, shard, record), whole(record["protocol"])
    if external < 0:
        return 0
    if is_generic(protocol):
        realm = whole(record["internal_realm"]) & 0xFFFFFF
        half = sessions.find_mapping(state, whole(record["internal_address"]), realm, protocol, 0)
    else:
        half = ports.owner(state, external, protocol, whole(record["external_port"]))
    return half if half and _is_its_mapping(state.mappings[half], record) else 0


@hot
def _is_its_mapping(mapping: Row, record: Row) -> bool:
    """Whether a mapping is of the endpoints of a session, of which generic protocols' do not show their place."""
    if not is_generic(whole(record["protocol"])):
        return is_same_mapping(mapping, record)
    return bool(
        mapping["internal_address"] == record["internal_address"]
        and mapping["internal_realm"] == whole(record["internal_realm"]) | whole(record["protocol"]) << 24
        and mapping["external_address"] == record["external_address"]
    )


@hot
def is_living(state: State, line: int) -> bool:
    """Whether a session lives at a line (0: none does)."""
    return line != 0 and sessions.is_living(state, line)


@hot
def _is_same_session(row: Row, record: Row) -> bool:
    return bool(
        is_same_mapping(row, record)
        and row["remote_address"] == record["remote_address"]
        and row["remote_port"] == record["remote_port"]
        and row["external_realm"] == whole(record["external_realm"]) | whole(record["protocol"]) << 24
    )


@hot
def _admit_session(state: State, shard: int, line: int, half: int, record: Row, now: int) -> int:
    """Line for a session that is new here, whose tuples are nobody's; 0: the authority has one for them; -1: refused."""
    if half < BYPASSED and whole(state.mappings[half]["sessions"]) >= sessions.SESSIONS_EACH:
        return -1
    out0, out1, in0, in1 = _session_keys(record)
    twin = cuckoo.lookup(state, out0, out1) >> 2
    if is_authority(state, shard):
        if twin and _is_same_session(state.sessions[twin], record):
            _update_session(state, shard, twin, half, record, now)
        if twin or cuckoo.lookup(state, in0, in1):
            return 0
        if is_living(state, line):
            line = slabs.new_line(state, shard)
            return line if line else -1
    else:
        end_session(state, twin)
        end_session(state, cuckoo.lookup(state, in0, in1) >> 2)
        end_session(state, line)
    line = slabs.take(state, shard, whole(record["klass"]), whole(record["row"]))
    return line if line else -1


@hot
def end_session(state: State, line: int) -> None:
    """End a session, if one lives there; its mapping stays, and nobody is told."""
    if not is_living(state, line):
        return
    state.sessions[line]["kind"] = FREE
    timers.disarm(state, line)
    sessions.take_out(state, line)
    forgotten(state, line << 1)
    slabs.free_line(state, line)


@hot
def _make_session(state: State, shard: int, line: int, half: int, record: Row, now: int) -> bool:
    row = state.sessions[line]
    inward, outward = _next_hops(state, record, now)
    if inward == 0 or outward == 0:
        slabs.free_line(state, line)
        return False
    remote, remote_port = whole(record["remote_address"]), whole(record["remote_port"])
    if half < BYPASSED:
        sessions.describe(state, shard, line, half, remote, remote_port, whole(record["external_realm"]))
    else:
        sessions.describe_bypassed(
            state, shard, line, half & ~BYPASSED, whole(record["internal_address"]), whole(record["internal_realm"]),
            whole(record["protocol"]), whole(record["internal_port"]), remote, remote_port, whole(record["external_realm"]),
        )  # fmt: skip
    left = copied_left(record)
    row["created"] = (now - whole(record["age_s"]) * 1000) & 0xFFFFFFFF
    row["expiry"] = tcp.copy_ends(left, now) & 0xFFFFFFFF
    row["packets"] = record["packets"]
    row["state"] = record["state"]
    row["inward"] = inward
    row["outward"] = outward
    row["rules"] = 0  # each core counts its own: whether ours admit it is asked when its first packet comes here
    row["generation"] = generation(state, shard, line << 1, record, whole(row["generation"]))
    if sessions.index_session(state, line):
        slabs.free_line(state, line)
        return False
    row["kind"] = NAT_SESSION
    if half < BYPASSED:
        state.mappings[half]["sessions"] += 1
    timers.arm(state, line, now + left)
    charge_session(state, row, 1)
    state.shards[shard]["sessions"] += 1
    settle(state, shard, line << 1, record)
    return True


@hot
def copied_left(record: Row) -> int:
    """Ticks that a copy lives: SLACK longer than its original, as long as another copy."""
    return whole(record["remaining"]) + (0 if whole(record["flags"]) & COPIED else SLACK)


@hot
def _next_hops(state: State, record: Row, now: int) -> tuple[int, int]:
    """(inward, outward) neighbours of ours, who are asked for if they are new; 0 where no more fit."""
    internal = whole(record["internal_address"])
    inward = hops.next_hop(state, INTERNAL, internal, 0, now)
    if whole(record["flags"]) & HAIRPIN:
        return inward, sessions.HAIRPIN_HOP
    return inward, hops.next_hop(state, EXTERNAL, whole(record["remote_address"]), internal, now)


@hot
def _update_session(state: State, shard: int, line: int, half: int, record: Row, now: int) -> None:
    """Both have it: the mapping may be in another row than it was, and its life goes on."""
    _move_to(state, state.sessions[line], half)
    update_life(state, shard, line, record, now)


@hot
def update_life(state: State, shard: int, line: int, record: Row, now: int) -> None:
    """Take a session's life's number, state and lifetime from the authority, or merge them."""
    row = state.sessions[line]
    merging = whole(state.shards[shard]["role"]) in (ACTIVE, DRAINING)
    if merging:
        told, expiry = _merged(state, row, record, now)
    else:
        told, expiry = _followed(row, record, now)
    later = timers.remaining(whole(row["expiry"]), expiry)
    row["state"] = told
    row["expiry"] = expiry & 0xFFFFFFFF
    if later < 0:
        timers.disarm(state, line)
        timers.arm(state, line, now + timers.remaining(now, expiry))
    if not is_authority(state, shard):
        row["generation"] = record["generation"]
    news = told != whole(record["state"]) or row["generation"] != record["generation"]
    if merging and (news or (is_authority(state, shard) and later > NEWS)):
        journal.mark(state, line << 1)
    else:
        known(state, line << 1)


@hot
def _followed(row: Row, record: Row, now: int) -> tuple[int, int]:
    """(state, tick of its end) of a copy: the authority's word, but what is used here lives on."""
    told, left = whole(record["state"]), copied_left(record)
    if row["state"] == told and timers.remaining(now, whole(row["expiry"])) >= left:
        return told, whole(row["expiry"])
    return told, tcp.copy_ends(left, now)


@hot
def _move_to(state: State, row: Row, half: int) -> None:
    """Let a session be of the mapping at `half` (see `_whose`): the same endpoints, but another row than it was of."""
    before = whole(row["mapping"])
    if before == half:
        return
    charge_session(state, row, -1)
    if before < BYPASSED:
        state.mappings[before]["sessions"] -= 1
    row["mapping"] = half
    if half < BYPASSED:
        state.mappings[half]["sessions"] += 1
    charge_session(state, row, 1)


@hot
def _merged(state: State, row: Row, record: Row, now: int) -> tuple[int, int]:
    """(state, tick of its end) of a connection of which two cores have seen packets: the newer word, of FINs both.

    Where neither is clearly the newer, each may have seen one direction close, or only one of them both.
    """
    ours, told = whole(row["state"]), whole(record["state"])
    our_left, their_left = timers.remaining(now, whole(row["expiry"])) - tcp.slack(row), copied_left(record) - SLACK
    our_age, their_age = tcp.timeout(state.settings, ours) - our_left, tcp.timeout(state.settings, told) - their_left
    mine, other = ours & STATE_MASK, told & STATE_MASK
    open_or_closing = tcp.ESTABLISHED <= mine <= tcp.CLOSING and tcp.ESTABLISHED <= other <= tcp.CLOSING
    if open_or_closing and abs(our_age - their_age) <= TOGETHER:
        told = tcp.ESTABLISHED + (mine - tcp.ESTABLISHED | other - tcp.ESTABLISHED)  # FIN_OUT is one bit, FIN_IN the other
        told += ours & ~STATE_MASK
    elif our_age <= their_age:
        told = ours
    if told == ours and our_age <= their_age:
        return ours, whole(row["expiry"])
    return told, tcp.copy_ends(tcp.timeout(state.settings, told) - min(our_age, their_age) + SLACK, now)
