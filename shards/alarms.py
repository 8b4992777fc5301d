"""How full things are, before that bites: the index, the rows, pools, and what subscribers may have of them.

Each has a row of ALARM with a level: none, warning, critical. It rises where a percentage is reached and sinks `clear` points
below, so that what swings about a threshold is not told again and again. Changes are events (threshold reached,
RFC 8158 natEvent 18). `look` is called by the loop's chores each second and reads a few numbers; of subscribers only the one
whose block comes or goes is looked at, then.
"""

from __future__ import annotations

from shards import events
from shards.account_rows import BLOCKS_AT_MOST
from shards.cuckoo import SLOTS
from shards.event_rows import ALARM_INDEX, ALARM_POOLS, ALARM_ROWS, ALARM_SUBSCRIBERS
from shards.jit import hot, whole
from shards.state import State

NONE, WARNING, CRITICAL = range(3)
LAST_TOLD = 254  # row of ALARM that events can name


@hot
def look(state: State, now: int) -> None:
    """Bring every row but the subscribers' up to date."""
    core, settings = state.core[0], state.settings[0]
    _see(state, ALARM_INDEX, _percent(whole(core["index_entries"]), len(state.tags) * SLOTS), now)
    sessions = 0
    for s in range(whole(settings["shards"])):
        sessions += whole(state.shards[s]["sessions"])
    _see(state, ALARM_ROWS, _percent(sessions, whole(settings["room"])), now)
    for p in range(whole(settings["pools"])):
        pool = state.pools[p]
        blocks = whole(pool["externals"]) * (whole(pool["end_block"]) - whole(pool["first_block"]))
        _see(state, ALARM_POOLS + p, _percent(blocks - whole(pool["blocks_free"]), blocks), now)


@hot
def _percent(used: int, of: int) -> int:
    return 100 * used // of if of > 0 else 0


@hot
def _see(state: State, number: int, percent: int, now: int) -> None:
    row = state.alarms[number]
    row["percent"] = min(percent, 0xFFFF)
    level = _level(state, percent, whole(row["level"]))
    if level == whole(row["level"]):
        return
    if level > whole(row["level"]):
        row["raised"] += 1
    row["level"], row["since"] = level, now & 0xFFFFFFFF
    events.threshold(state, min(number, LAST_TOLD), level, percent, 0, now)


@hot
def _level(state: State, percent: int, before: int) -> int:
    """What a percentage means after a level."""
    settings = state.settings[0]
    warning, critical, clear = whole(settings["warning"]), whole(settings["critical"]), whole(settings["clear"])
    if critical and percent >= critical - (clear if before == CRITICAL else 0):
        return CRITICAL
    return WARNING if warning and percent >= warning - (clear if before >= WARNING else 0) else NONE


@hot
def look_at_subscriber(state: State, account: int, now: int) -> None:
    """His blocks have become more or fewer: see whether he is strained, which means that he has nearly as many as he may."""
    row, alarm = state.accounts[account], state.alarms[ALARM_SUBSCRIBERS]
    each = min(whole(state.pools[whole(row["pool"])]["blocks_each"]), BLOCKS_AT_MOST)
    held = 0
    for k in range(BLOCKS_AT_MOST):
        held += row["blocks"][k] != 0
    strained = each > 1 and _level(state, _percent(held, each), whole(row["strained"])) != NONE
    if strained == (row["strained"] != 0):
        return
    row["strained"] = strained
    alarm["count"] = whole(alarm["count"]) + (1 if strained else -1)
    events.threshold(state, ALARM_SUBSCRIBERS, WARNING if strained else NONE, _percent(held, each), account, now)


@hot
def forget(state: State) -> None:
    """Nothing is known of subscribers: they are looked at one by one (see `recovery`)."""
    state.alarms[ALARM_SUBSCRIBERS]["count"] = 0
