"""Whose a session is, and what an account, and the one above it, uses."""

from __future__ import annotations

from shards.jit import hot, whole
from shards.state import BYPASSED, Row, State


@hot
def charge(state: State, account: int, sessions: int, mappings: int) -> None:
    """Add to what an account, and the one above it, uses."""
    while account:
        row = state.accounts[account]
        row["sessions"] = whole(row["sessions"]) + sessions
        row["mappings"] = whole(row["mappings"]) + mappings
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
