"""What may open a session: the rule list and the limits, looked at on a miss only.

Rules are one ordered list (a device's, its subscriber's, then everyone's; the appliance compiles it so); the first that fits
decides. Without one, outbound is accepted, and inbound is accepted where a mapping allows it.
"""

from __future__ import annotations

from shards.jit import hot, whole
from shards.state import ACCEPT, ICMP, Row, State
from shards.timers import age
from shards.verdict import MAPPING_LIMIT, RATE_LIMIT, SESSION_LIMIT


@hot
def judge(
    state: State, direction: int, protocol: int, internal: int, internal_port: int, remote: int, remote_port: int
) -> tuple[int, int]:
    """(action, number of the rule + 1) for a packet between an internal endpoint and a remote one; (ACCEPT, 0) without a rule.

    ICMP has no ports: a rule that names some does not fit it.
    """
    first = whole(state.settings[0]["rules_at"])
    for r in range(first, first + whole(state.settings[0]["rules"])):
        rule = state.rules[r]
        if fits(rule, direction, protocol, internal, internal_port, remote, remote_port):
            rule["hits"] += 1
            return whole(rule["action"]), whole(rule["number"]) + 1
    return ACCEPT, 0


@hot
def fits(rule: Row, direction: int, protocol: int, internal: int, internal_port: int, remote: int, remote_port: int) -> bool:
    """Whether a rule is about a packet of that direction between these endpoints."""
    return bool(
        whole(rule["directions"]) >> direction & 1
        and (rule["protocol"] == 0 or rule["protocol"] == protocol)
        and internal & whole(rule["internal_mask"]) == whole(rule["internal_network"])
        and remote & whole(rule["remote_mask"]) == whole(rule["remote_network"])
        and ports_fit(rule, protocol != ICMP, internal_port, remote_port)
    )


@hot
def ports_fit(rule: Row, has_ports: bool, internal_port: int, remote_port: int) -> bool:
    """Whether a rule's ports are a packet's; one that has none fits where every port does."""
    everything = (
        rule["internal_port_low"] == 0
        and rule["internal_port_high"] == 0xFFFF
        and rule["remote_port_low"] == 0
        and rule["remote_port_high"] == 0xFFFF
    )
    if everything or not has_ports:
        return bool(everything)
    return bool(
        rule["internal_port_low"] <= internal_port
        and internal_port <= rule["internal_port_high"]
        and rule["remote_port_low"] <= remote_port
        and remote_port <= rule["remote_port_high"]
    )


@hot
def admit(state: State, account: int, needs_mapping: bool, now: int) -> int:
    """Verdict, or 0, of the limits of an account and of the one above it (RFC 6888 REQ-4, REQ-5).

    A refusal deletes nothing (REQ-11) and costs no token.
    """
    at = account
    while at:
        row = state.accounts[at]
        limits = state.limits[whole(row["limits"])]
        verdict = 0
        if limits["sessions"] != 0 and row["sessions"] >= limits["sessions"]:
            verdict = SESSION_LIMIT
        elif needs_mapping and limits["mappings"] != 0 and row["mappings"] >= limits["mappings"]:
            verdict = MAPPING_LIMIT
        elif limits["rate"] != 0 and _tokens(row, limits, now) < 1000:
            verdict = RATE_LIMIT
        if verdict:
            row["refused"] += 1
            return verdict
        at = whole(row["parent"])
    _spend(state, account, now)
    return 0


@hot
def _tokens(row: Row, limits: Row, now: int) -> int:
    """Thousandths of new sessions that the account may open now: `rate` a second, saved up to `burst` (at least one)."""
    full = 1000 * max(whole(limits["burst"]), 1)
    return min(full, whole(row["tokens"]) + min(age(now, whole(row["tokens_at"])), 1 << 20) * whole(limits["rate"]))


@hot
def _spend(state: State, account: int, now: int) -> None:
    while account:
        row = state.accounts[account]
        limits = state.limits[whole(row["limits"])]
        if limits["rate"] != 0:
            row["tokens"] = _tokens(row, limits, now) - 1000
            row["tokens_at"] = now & 0xFFFFFFFF
        account = whole(row["parent"])
