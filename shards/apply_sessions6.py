"""A session of IPv6 that another core tells of becomes ours: as `apply_sessions`, without a mapping, in two records."""

from __future__ import annotations

import numpy as np

from shards import cuckoo, firewall6, hops6, parse6, sessions, sessions6, slabs, tcp, timers
from shards.accounts import charge
from shards.apply_mappings import generation, is_authority, see, settle
from shards.apply_sessions import HORIZON, copied_left, end_session, is_living, update_life
from shards.jit import hot, whole
from shards.lifetimes import STATE_MASK
from shards.native import Word
from shards.records import CONTINUED, HAIRPIN
from shards.state import (
    EXTERNAL,
    FIREWALL_SESSION6,
    ICMP6,
    INTERNAL,
    SESSION6_0,
    SESSION6_1,
    TCP,
    Array,
    Row,
    State,
)

_U = np.uint64


@hot
def take_session6(state: State, shard: int, record: Row, more: Row, seen: Array, now: int) -> bool:
    """Take one session of two SESSION_RECORDs; False: refused."""
    klass = whole(record["klass"])
    if klass not in (SESSION6_0, SESSION6_1) or whole(more["klass"]) != CONTINUED or not _can_be(state, shard, record, more):
        return False
    line = slabs.local_row(state, shard, klass, whole(record["row"]))
    if is_living(state, line) and _is_same(state, line, record, more):
        update_life(state, shard, line, record, now)
    else:
        line = _admit(state, shard, line, record, more, now)
        if line <= 0:
            return line == 0
        if not _make(state, shard, line, record, more, now):
            return False
    see(seen, line << 1)
    return True


@hot
def _internal(more: Row) -> tuple[Word, Word]:
    return (
        _U(more["row"]) << _U(32) | _U(more["mapping_row"]),
        _U(more["internal_address"]) << _U(32) | _U(more["remote_address"]),
    )


@hot
def _remote(more: Row) -> tuple[Word, Word]:
    return (
        _U(more["external_address"]) << _U(32) | _U(more["internal_realm"]),
        _U(more["external_realm"]) << _U(32) | _U(more["age_s"]),
    )


@hot
def _can_be(state: State, shard: int, record: Row, more: Row) -> bool:
    """Whether the path would have made such a session, and in this shard."""
    high, low = _internal(more)
    remote_high, remote_low = _remote(more)
    realm = whole(state.ports[whole(state.settings[0]["internal_port"])]["internal_realm"])
    p = firewall6.prefix_of(state, realm, high)
    if p < 0 or whole(record["internal_realm"]) != realm or whole(record["remaining"]) > HORIZON:
        return False
    if parse6.martian(high, low) or parse6.martian(remote_high, remote_low):
        return False
    turns = firewall6.prefix_of(state, realm, remote_high) >= 0
    return bool(
        _state_fits(record)
        and (whole(record["flags"]) & HAIRPIN != 0) == turns
        and whole(state.accounts[firewall6.subscriber_of(state, p, high)]["shard"]) == shard
    )


@hot
def _state_fits(record: Row) -> bool:
    protocol, told = whole(record["protocol"]), whole(record["state"]) & STATE_MASK
    if protocol == TCP:
        return tcp.INIT <= told <= tcp.RESET or told in (tcp.INIT_IN, tcp.ANSWERED)
    if protocol == ICMP6:
        return told == tcp.QUERY and whole(record["remote_port"]) == 0
    portless = whole(record["internal_port"]) == 0 and whole(record["remote_port"]) == 0
    return told == firewall6.first_state(protocol, 0) and (parse6.has_ports(protocol) or portless)


@hot
def _is_same(state: State, line: int, record: Row, more: Row) -> bool:
    flow = state.flows6[line + 1]
    high, low = _internal(more)
    remote_high, remote_low = _remote(more)
    return bool(
        flow["internal_high"] == high
        and flow["internal_low"] == low
        and flow["remote_high"] == remote_high
        and flow["remote_low"] == remote_low
        and whole(flow["internal_port"]) == whole(record["internal_port"])
        and whole(flow["remote_port"]) == whole(record["remote_port"])
        and whole(flow["realm"]) == whole(record["internal_realm"]) | whole(record["protocol"]) << 24
    )


@hot
def _key(state: State, record: Row, more: Row) -> tuple[Word, Word]:
    high, low = _internal(more)
    remote_high, remote_low = _remote(more)
    return sessions6.key(
        state, whole(record["internal_realm"]), whole(record["protocol"]), high, low, remote_high, remote_low,
        whole(record["internal_port"]), whole(record["remote_port"]),
    )  # fmt: skip


@hot
def ask_for_session6(state: State, record: Row, more: Row) -> None:
    """Ask for its bucket."""
    key0, key1 = _key(state, record, more)
    cuckoo.ask_for(state, key0, key1)


@hot
def _admit(state: State, shard: int, line: int, record: Row, more: Row, now: int) -> int:
    """Line for a session that is new here, whose tuple is nobody's; 0: the authority has one for it; -1: refused."""
    key0, key1 = _key(state, record, more)
    twin = cuckoo.lookup(state, key0, key1) >> 2
    if is_authority(state, shard):
        if twin and _is_same(state, twin, record, more):
            update_life(state, shard, twin, record, now)
        if twin:
            return 0
        if is_living(state, line):
            line = slabs.new_line6(state, shard)
            return line if line else -1
    else:
        end_session(state, twin)
        end_session(state, line)
    line = slabs.take(state, shard, whole(record["klass"]), whole(record["row"]))
    return line if line else -1


@hot
def _make(state: State, shard: int, line: int, record: Row, more: Row, now: int) -> bool:
    row, protocol = state.sessions[line], whole(record["protocol"])
    high, low = _internal(more)
    remote_high, remote_low = _remote(more)
    inward = hops6.next_hop(state, INTERNAL, high, low, 0, now)
    outward = sessions.HAIRPIN_HOP
    if whole(record["flags"]) & HAIRPIN == 0:
        outward = hops6.next_hop(state, EXTERNAL, remote_high, remote_low, hops6.folded(high, low), now)
    if inward == 0 or outward == 0:
        slabs.free_line(state, line)
        return False
    realm = whole(record["internal_realm"])
    sessions6.describe(
        state, line, realm, protocol, high, low, remote_high, remote_low, whole(record["internal_port"]),
        whole(record["remote_port"]),
    )  # fmt: skip
    p = firewall6.prefix_of(state, realm, high)
    account = firewall6.subscriber_of(state, p, high)
    state.flows6[line + 1]["account"] = account
    state.flows6[line + 1]["filtering"] = firewall6.permission_of(state, p, protocol)
    left = copied_left(record)
    row["created"] = (now - whole(record["age_s"]) * 1000) & 0xFFFFFFFF
    row["expiry"] = tcp.copy_ends(left, now) & 0xFFFFFFFF
    row["packets"] = record["packets"]
    row["shard"] = shard
    row["state"] = record["state"]
    row["inward"] = inward
    row["outward"] = outward
    row["rules"] = 0  # see `apply_sessions`
    row["generation"] = generation(state, shard, line << 1, record, whole(row["generation"]))
    if sessions6.index(state, line):
        slabs.free_line(state, line)
        return False
    row["kind"] = FIREWALL_SESSION6
    timers.arm(state, line, now + left)
    charge(state, account, protocol, 1, 0)
    state.shards[shard]["sessions"] += 1
    settle(state, shard, line << 1, record)
    return True
