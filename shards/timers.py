"""Timers of sessions: one wheel, lazy.

A packet only writes the row's expiry. The wheel looks at a row when the expiry that it knew is due, and puts it further along
if the row has been refreshed meanwhile; so a refresh costs nothing and an end costs no scan. A slot is a list through `links`,
doubly linked, because a closing connection moves to an earlier slot at once.
"""

from __future__ import annotations

from shards.jit import hot, inlined, whole
from shards.state import WHEEL_SHIFT, WHEEL_SLOTS, State

_HEAD = 1 << 31  # in `previous`: this is the first of the slot whose number follows


@inlined
def remaining(now: int, tick: int) -> int:
    """Ticks from `now` until `tick` (32 bits, wrapping); negative once it is past."""
    return ((tick - now + 0x80000000) & 0xFFFFFFFF) - 0x80000000


@hot
def age(now: int, tick: int) -> int:
    """Ticks since `tick` (32 bits, wrapping), which lies in the past."""
    return (now - tick) & 0xFFFFFFFF


@hot
def arm(state: State, line: int, due: int) -> None:
    """Have the wheel look at `line` once `due` (a tick, unwrapped) is past; beyond the wheel's horizon it looks earlier."""
    at = whole(state.core[0]["wheel_at"])
    slot = min(max((due >> WHEEL_SHIFT) + 1, at + 1), at + WHEEL_SLOTS - 1) & (WHEEL_SLOTS - 1)
    first = whole(state.wheel[slot])
    link = state.links[line]
    link["next"] = first
    link["previous"] = _HEAD | slot
    if first:
        state.links[first]["previous"] = line
    state.wheel[slot] = line


@hot
def disarm(state: State, line: int) -> None:
    """Take `line` off the wheel."""
    link = state.links[line]
    following, previous = whole(link["next"]), whole(link["previous"])
    if previous & _HEAD:
        state.wheel[previous & (WHEEL_SLOTS - 1)] = following
    else:
        state.links[previous]["next"] = following
    if following:
        state.links[following]["previous"] = previous


@hot
def due(state: State, now: int) -> int:
    """First line of the first slot that is past, left on the wheel; 0 when the wheel has caught up with `now`.

    Empty slots are stepped over: one each 64 ms, and a whole turn (512 KiB in sequence, not a millisecond) after a long stop.
    """
    core = state.core[0]
    at, until = whole(core["wheel_at"]), now >> WHEEL_SHIFT
    if until - at > WHEEL_SLOTS:  # after a long stop one full turn sees every slot
        at = until - WHEEL_SLOTS
    while at <= until:
        line = whole(state.wheel[at & (WHEEL_SLOTS - 1)])
        if line:
            core["wheel_at"] = at
            return line
        at += 1
    core["wheel_at"] = until
    return 0
