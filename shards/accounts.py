"""Whose a session is; what an account, and the one above it, uses, and what their limits let it begin (RFC 6888 REQ-4, REQ-5).

Everything is limited twice: all of it, and each class of protocols. A class may have a *reserve*: of all that the account may
have, so much is left to it by the others, so that a flood of one leaves room for another. In a block each protocol has port
numbers of its own, so none takes ports from another there; what they share are the limits, and the rate.
"""

from __future__ import annotations

import numpy as np

from shards.account_rows import CLASSES, PROTOCOL_CLASSES
from shards.jit import hot, whole
from shards.state import BYPASSED, Array, Row, State
from shards.timers import age
from shards.verdict import MAPPING_LIMIT, PROTOCOL_LIMIT, RATE_LIMIT, SESSION_LIMIT

# By IP protocol; what is not here is "other". UDP-Lite counts as UDP, ICMPv6 as ICMP.
_PICTURE = """
tcp   6
udp   17 136
icmp  1 58
"""


def _parse(picture: str) -> Array:
    classes = np.full(256, CLASSES.index("other"), np.uint8)
    for name, *protocols in map(str.split, picture.strip().splitlines()):
        classes[[int(protocol) for protocol in protocols]] = CLASSES.index(name)
    return classes


CLASS_OF = _parse(_PICTURE)


@hot
def charge(state: State, account: int, protocol: int, sessions: int, mappings: int) -> None:
    """Add to what an account, and the one above it, uses."""
    of = whole(CLASS_OF[protocol])
    while account:
        row = state.accounts[account]
        row["sessions"] = whole(row["sessions"]) + sessions
        row["mappings"] = whole(row["mappings"]) + mappings
        row["sessions_of"][of] = whole(row["sessions_of"][of]) + sessions
        row["mappings_of"][of] = whole(row["mappings_of"][of]) + mappings
        account = whole(row["parent"])


@hot
def charge_session(state: State, session: Row, sessions: int) -> None:
    """`charge` the account of a session of IPv4: 1, it begins, or -1, it ends.

    As its mapping has it, account and protocol: in a copy that row may be another mapping's by now, and took its charges along.
    """
    told = whole(session["mapping"])
    if told & BYPASSED:
        charge(state, told & ~BYPASSED, whole(session["internal_realm"]) >> 24, sessions, 0)
    else:
        mapping = state.mappings[told]
        charge(state, whole(mapping["account"]), whole(mapping["internal_realm"]) >> 24, sessions, 0)


@hot
def admit(state: State, account: int, protocol: int, needs_mapping: bool, half: int, now: int) -> int:
    """Verdict, or 0, of the limits of an account and of the one above it; `half`: mapping that has sessions already, or 0.

    A refusal deletes nothing (RFC 6888 REQ-11 D) and costs no token.
    """
    at, of = account, whole(CLASS_OF[protocol])
    while at:
        row = state.accounts[at]
        limits = state.limits[whole(row["limits"])]
        verdict = _judge(row, limits, of, needs_mapping, now)
        if verdict == 0 and half and limits["sessions_each"] != 0:
            verdict = SESSION_LIMIT if state.mappings[half]["sessions"] >= limits["sessions_each"] else 0
        if verdict:
            return verdict
        at = whole(row["parent"])
    _spend(state, account, now)
    return 0


@hot
def _judge(row: Row, limits: Row, of: int, needs_mapping: bool, now: int) -> int:
    """Verdict of one account's limits, or 0."""
    if limits["sessions"] != 0 and row["sessions"] >= limits["sessions"]:
        return SESSION_LIMIT
    if needs_mapping and limits["mappings"] != 0 and row["mappings"] >= limits["mappings"]:
        return MAPPING_LIMIT
    if limits["sessions_of"][of] != 0 and row["sessions_of"][of] >= limits["sessions_of"][of]:
        return PROTOCOL_LIMIT
    if needs_mapping and limits["mappings_of"][of] != 0 and row["mappings_of"][of] >= limits["mappings_of"][of]:
        return PROTOCOL_LIMIT
    if limits["reserved"] != 0 and _would_take_reserve(row, limits, of, needs_mapping):
        return PROTOCOL_LIMIT
    if limits["rate"] != 0 and _tokens(row, limits, now) < _price(limits, of):
        return RATE_LIMIT
    return 0


@hot
def _would_take_reserve(row: Row, limits: Row, of: int, needs_mapping: bool) -> bool:
    """Whether one more of this class would take what others have reserved, and do not use yet."""
    sessions, mappings = whole(row["sessions"]), whole(row["mappings"])
    for other in range(PROTOCOL_CLASSES):
        if other != of:
            sessions += max(whole(limits["reserve"][other]) - whole(row["sessions_of"][other]), 0)
            mappings += max(whole(limits["reserve"][other]) - whole(row["mappings_of"][other]), 0)
    if limits["sessions"] != 0 and sessions >= whole(limits["sessions"]):
        return True
    return bool(needs_mapping and limits["mappings"] != 0 and mappings >= whole(limits["mappings"]))


@hot
def _price(limits: Row, of: int) -> int:
    """Thousandths that must be in the bucket: who has no reserve leaves half of it to those that have one."""
    if limits["reserved"] == 0 or limits["reserve"][of] != 0:
        return 1000
    return min(1000 + _full(limits) // 2, _full(limits))


@hot
def _full(limits: Row) -> int:
    return 1000 * max(whole(limits["burst"]), 1)


@hot
def _tokens(row: Row, limits: Row, now: int) -> int:
    """Thousandths of new sessions that the account may open now: `rate` a second, saved up to `burst` (at least one)."""
    since = min(age(now, whole(row["tokens_at"])), 1 << 20)
    return min(_full(limits), whole(row["tokens"]) + since * whole(limits["rate"]))


@hot
def _spend(state: State, account: int, now: int) -> None:
    while account:
        row = state.accounts[account]
        limits = state.limits[whole(row["limits"])]
        if limits["rate"] != 0:
            row["tokens"] = _tokens(row, limits, now) - 1000
            row["tokens_at"] = now & 0xFFFFFFFF
        account = whole(row["parent"])


@hot
def is_bypassed(session: Row) -> bool:
    """Whether a session's packets are not translated; then it has no mapping."""
    return whole(session["mapping"]) & BYPASSED != 0


@hot
def account_of(state: State, session: Row) -> int:
    """Account of a session of IPv4."""
    told = whole(session["mapping"])
    return told & ~BYPASSED if told & BYPASSED else whole(state.mappings[told]["account"])
