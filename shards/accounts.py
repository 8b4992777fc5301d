"""What an account, and the one above it, uses."""

from __future__ import annotations

from shards.jit import hot, whole
from shards.state import State


@hot
def charge(state: State, account: int, sessions: int, mappings: int) -> None:
    """Add to what an account, and the one above it, uses."""
    while account:
        row = state.accounts[account]
        row["sessions"] = whole(row["sessions"]) + sessions
        row["mappings"] = whole(row["mappings"]) + mappings
        account = whole(row["parent"])
