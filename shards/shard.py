"""The loop of a core: run to completion, a burst at a time.

`breathe` is one crossing into compiled code: first what has changed of ports and neighbours (see `legs`), then the frames that
waited for a neighbour, then burst after burst until the rings are quiet or the breath is long enough, then the timers. What is
Python (commands, replication, BFD) runs between breaths, in the same thread.
"""

from __future__ import annotations

import numpy as np

from shards import legs, pipeline, rings, sessions
from shards.burst import BURST, Burst
from shards.frames import Rings
from shards.jit import hot, whole
from shards.state import Array, State
from shards.verdict import HELD_BACK, HOLD_OVERFLOW

HELD_AT_MOST = BURST  # frames that wait for a neighbour: one burst, so that they are served again in one
EXPIRE_AT_MOST = 1024  # rows that the wheel looks at in one breath, beside one for each packet: ends keep pace with beginnings


def new_waiting() -> Array:
    """Room for the frames that wait: int64 (HELD_AT_MOST, 4) of port, at, length, deadline; row count in `core.held`."""
    return np.zeros((HELD_AT_MOST, 4), np.int64)


@hot
def breathe(state: State, ports: Rings, frames: Array, burst: Burst, waiting: Array, now: int, bursts: int, looks: int) -> int:
    """Serve at most `bursts` bursts; packets handled, 0 when there is nothing to do. `now`: ticks, one for the whole breath.

    It ends early after `looks` looks in a row at empty rings: what comes next is met here sooner than after a turn in Python.
    """
    legs.settle(state, now)
    if state.core[0]["held"]:
        _serve_waiting(state, ports, frames, burst, waiting, now)
    handled, empty = 0, 0
    while bursts > 0 and empty < looks:
        count = rings.receive(ports, burst, BURST)
        if count == 0:
            empty += 1
            continue
        for i in range(count):
            burst.deadline[i] = 0
        _serve(state, ports, frames, burst, waiting, count, now)
        handled += count
        bursts -= 1
        empty = 0
    state.core[0]["breaths"] += np.uint64(1)
    rings.flush(ports)
    if sessions.expire(state, now, EXPIRE_AT_MOST + handled) == EXPIRE_AT_MOST + handled:
        return max(handled, 1)  # there is more to do: no time to sleep
    return handled


@hot
def _serve(state: State, ports: Rings, frames: Array, burst: Burst, waiting: Array, count: int, now: int) -> None:
    pipeline.process(state, frames, burst, count, now)
    _keep_waiting(state, burst, waiting, count)
    rings.send(ports, burst, count)
    rings.flush(ports)  # each burst: what came is sent, and there are frames for what comes
    pipeline.settle(state, burst, count)


@hot
def _keep_waiting(state: State, burst: Burst, waiting: Array, count: int) -> None:
    """Put held frames aside, as many as there is room for."""
    held = whole(state.core[0]["held"])
    for i in range(count):
        if burst.verdict[i] == HELD_BACK:
            if held == HELD_AT_MOST:
                burst.verdict[i] = HOLD_OVERFLOW
                continue
            waiting[held, 0] = burst.port[i]
            waiting[held, 1] = burst.at[i]
            waiting[held, 2] = burst.length[i]
            waiting[held, 3] = burst.deadline[i]
            held += 1
    state.core[0]["held"] = held


@hot
def _serve_waiting(state: State, ports: Rings, frames: Array, burst: Burst, waiting: Array, now: int) -> None:
    """Serve held frames again, in their order: a neighbour may have answered, or a deadline passed."""
    count = whole(state.core[0]["held"])
    for i in range(count):
        burst.port[i] = waiting[i, 0]
        burst.at[i] = waiting[i, 1]
        burst.length[i] = waiting[i, 2]
        burst.deadline[i] = waiting[i, 3]
    state.core[0]["held"] = 0
    _serve(state, ports, frames, burst, waiting, count, now)
