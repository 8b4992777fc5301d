"""Promotions after failures, by whichever core: what kills, or drowns, one owner after another must not walk on.

Each core notes in its memory, which outlives its worker, every promotion of a shard that it sees: its own, and those that show
in another core's being ACTIVE with a higher epoch that nobody handed over to it. With `roles.RISES_AT_MOST` within
`roles.RISES_WITHIN` nobody is promoted any more: the shard waits for its last owner, whose worker is back in a moment, or for
the others to be forgotten. Counting only its own each core would allow as many again, and one that is killed would forget.

It is by shard, and there is no limit over all of them: where a server dies, hundreds move at once and must.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from replication import roles
from replication.protocol import age
from replication.roles import Post, Told
from shards.state import ABSENT, ACTIVE, PASSIVE, SYNCING


def epoch_of_rise(before: Post, after: Post, others: Sequence[Told], handed: bool) -> int:
    """Epoch of the promotion that shows in this decision, 0 for none."""
    if after.role == ACTIVE and before.role in (ABSENT, SYNCING, PASSIVE) and not handed:
        return after.epoch
    top = roles.active_among(others)
    if top is None or top.taken or before.cold:
        return 0
    return top.epoch if top.epoch > before.epoch and top.name != before.authority else 0


def note(row: Any, epoch: int, now: int) -> None:
    """Remember a promotion, once; `row` of SHARD."""
    if epoch > row["risen_epoch"]:
        at = row["risen_at"]
        at[1:] = at[:-1].copy()
        at[0] = now & 0xFFFFFFFF
        row["risen_epoch"] = epoch


def lately(row: Any, now: int) -> int:
    """How many there were within `roles.RISES_WITHIN`."""
    return sum(1 for at in row["risen_at"].tolist() if at and age(now, at) < roles.RISES_WITHIN)
