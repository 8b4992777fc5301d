"""The log of NAT events: a ring of flat rows that the path writes and never waits for; `krononat.view` reads it from outside.

Kinds are the natEvent numbers of IPFIX (RFC 8158 section 4.3); what is written is chosen by `[log] events`. Its default is the
blocks, because a record of each session is what RFC 6888 section 4 warns of. An event is written once its row says the same, so
a worker killed in between leaves one untold, never one that did not happen.

Left out on purpose: address bindings (14, 15), since each block names its address and the address its subscriber.
"""

from __future__ import annotations

from shards.accounts import account_of
from shards.atomics import load_acquire, store_release
from shards.generic import is_generic
from shards.jit import hot, whole
from shards.state import EVENTS, LOG_BLOCKS, LOG_MAPPINGS, LOG_SESSIONS, State

ADDRESSES_EXHAUSTED = 3
SESSION_CREATED, SESSION_DELETED = 4, 5
MAPPING_CREATED, MAPPING_DELETED = 8, 9
PORTS_EXHAUSTED = 12
QUOTA_EXCEEDED = 13
BLOCK_ALLOCATED, BLOCK_RELEASED = 16, 17
THRESHOLD_REACHED = 18


@hot
def _begin(state: State, kind: int, account: int, now: int) -> int:
    """Row of the next event, with what all kinds have; nobody reads it before `_publish`."""
    at = load_acquire(state.logged, 0) & (EVENTS - 1)
    row = state.events[at]
    row["tick"] = now
    row["account"] = account
    row["kind"] = kind
    row["verdict"] = 0
    row["alarm"] = 0
    row["level"] = 0
    return at


@hot
def _publish(state: State) -> None:
    store_release(state.logged, 0, load_acquire(state.logged, 0) + 1)


@hot
def session(state: State, kind: int, line: int, now: int) -> None:
    """A session was made or ended."""
    if whole(state.settings[0]["log"]) < LOG_SESSIONS:
        return
    source = state.sessions[line]
    row = state.events[_begin(state, kind, account_of(state, source), now)]
    row["internal_address"] = source["internal_address"]
    row["internal_realm"] = source["internal_realm"]
    row["internal_port"] = source["internal_port"]
    row["external_address"] = source["external_address"]
    row["external_realm"] = source["external_realm"]
    row["external_port"] = source["external_port"]
    row["external_last"] = source["external_port"]
    row["remote_address"] = source["remote_address"]
    row["remote_port"] = source["remote_port"]
    row["half"] = line << 1
    row["generation"] = source["generation"]
    row["packets"] = source["packets"]
    _publish(state)


@hot
def mapping(state: State, kind: int, half: int, now: int) -> None:
    """A mapping was made or ended."""
    if whole(state.settings[0]["log"]) < LOG_MAPPINGS:
        return
    source = state.mappings[half]
    port = 0 if is_generic(whole(source["internal_realm"]) >> 24) else whole(source["external_port"])
    if _is_known(state, whole(source["account"]), port):
        return
    row = state.events[_begin(state, kind, whole(source["account"]), now)]
    row["internal_address"] = source["internal_address"]
    row["internal_realm"] = source["internal_realm"]
    row["internal_port"] = source["internal_port"]
    row["external_address"] = source["external_address"]
    row["external_realm"] = whole(source["internal_realm"]) & 0xFF000000
    row["external_port"] = port
    row["external_last"] = port
    row["remote_address"] = 0
    row["remote_port"] = 0
    row["half"] = half
    row["generation"] = source["generation"]
    row["packets"] = 0
    _publish(state)


@hot
def _is_known(state: State, account: int, port: int) -> bool:
    """Whether the configuration tells already whose an external port is (RFC 7422), and is not to be repeated."""
    pool = state.pools[whole(state.accounts[account]["pool"])]
    if pool["ratio"] == 0 or state.settings[0]["log_fixed"] != 0:
        return False
    return bool(whole(pool["first_block"]) <= port // whole(pool["block_size"]) < whole(pool["loose_block"]))


@hot
def block(state: State, kind: int, account: int, external: int, first: int, size: int, now: int) -> None:
    """A subscriber account got, or gave back, the ports `first` to `first + size - 1` of an external address (its ordinal)."""
    if whole(state.settings[0]["log"]) < LOG_BLOCKS or _is_known(state, account, first):
        return
    at = _begin(state, kind, account, now)
    _about_account(state, at, whole(state.accounts[account]["base"]), 0, 0)
    row = state.events[at]
    row["external_address"] = state.externals[external]["address"]
    row["external_port"] = first
    row["external_last"] = first + size - 1
    _publish(state)


@hot
def refusal(
    state: State, kind: int, account: int, verdict: int, protocol: int, address: int, port: int, refused: int, now: int
) -> None:
    """A packet from an internal endpoint was refused for want of something; told once a second of an account.

    `refused`: packets of the account refused so far. A flood of refusals must not wash out the rest of the log.
    """
    second = now // 1000 & 0xFFFFFFFF
    if whole(state.settings[0]["log"]) < LOG_BLOCKS or whole(state.accounts[account]["told"]) == second:
        return
    state.accounts[account]["told"] = second
    at = _begin(state, kind, account, now)
    _about_account(state, at, address, protocol, port)
    state.events[at]["verdict"] = verdict
    state.events[at]["packets"] = refused
    _publish(state)


@hot
def threshold(state: State, alarm: int, level: int, percent: int, account: int, now: int) -> None:
    """How full something is has passed a threshold, up or down: row of ALARM, its level now. Of a subscriber: his account."""
    if whole(state.settings[0]["log"]) < LOG_BLOCKS:
        return
    at = _begin(state, THRESHOLD_REACHED, account, now)
    _about_account(state, at, whole(state.accounts[account]["base"]) if account else 0, 0, 0)
    row = state.events[at]
    row["alarm"], row["level"], row["packets"] = alarm + 1, level, percent
    _publish(state)


@hot
def _about_account(state: State, at: int, address: int, protocol: int, port: int) -> None:
    """Fill a row that is about no row of the arena."""
    row = state.events[at]
    row["internal_address"] = address
    row["internal_realm"] = protocol << 24
    row["internal_port"] = port
    row["external_address"] = 0
    row["external_realm"] = protocol << 24
    row["external_port"] = 0
    row["external_last"] = 0
    row["remote_address"] = 0
    row["remote_port"] = 0
    row["half"] = 0
    row["generation"] = 0
    row["packets"] = 0
