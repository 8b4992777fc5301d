"""The loop of a core: run to completion, a burst at a time.

`breathe` is one crossing into compiled code: first BFD and what has changed of ports and neighbours (see `legs`), then the
frames that waited for a neighbour, then burst after burst until the rings are quiet or the breath is long enough, then the
timers. Before each burst of data all control traffic that waits is served (BFD, and what other cores shunt), at most a burst of
it, so that neither starves the other. What is Python (commands, replication) runs between breaths, in the same thread.
"""

from __future__ import annotations

import numpy as np

from shards import bfd, legs, pipeline, rings, sessions
from shards.burst import BURST, Burst
from shards.frames import Rings
from shards.jit import hot, whole
from shards.state import Array, State
from shards.verdict import BFD_SENT, HELD_BACK, HOLD_OVERFLOW
from shards.xsk import FRAME_SHIFT, HEADROOM

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
    handled, empty = serve_control(state, ports, frames, burst, waiting, now), 0
    bfd.expire(state, now)  # what came while nobody looked has been heard by now
    speak(state, ports, frames, now)
    bfd.publish(state)
    legs.settle(state, now)
    if state.core[0]["held"]:
        _serve_waiting(state, ports, frames, burst, waiting, now)
    while bursts > 0 and empty < looks:
        handled += serve_control(state, ports, frames, burst, waiting, now)
        count = rings.receive(ports, burst, BURST)
        if count == 0:
            empty += 1
            continue
        _serve_new(state, ports, frames, burst, waiting, count, now)
        handled += count
        bursts -= 1
        empty = 0
    state.core[0]["breaths"] += np.uint64(1)
    rings.flush(ports)
    if sessions.expire(state, now, EXPIRE_AT_MOST + handled) == EXPIRE_AT_MOST + handled:
        return max(handled, 1)  # there is more to do: no time to sleep
    return handled


@hot
def serve_control(state: State, ports: Rings, frames: Array, burst: Burst, waiting: Array, now: int) -> int:
    """Serve what came by the control sockets, and answer it at once; how many packets."""
    count = rings.receive_control(ports, burst, BURST)
    if count:
        _serve_new(state, ports, frames, burst, waiting, count, now)
        speak(state, ports, frames, now)
    return count


@hot
def speak(state: State, ports: Rings, frames: Array, now: int) -> None:
    """Send what the BFD sessions have to say. What finds no frame, or no room, is still due at the next turn."""
    for s in range(len(state.bfd)):
        if bfd.due(state, s, now):
            port = whole(state.bfd[s]["port"])
            frame = rings.spare_frame(ports, port)
            if frame >= 0:
                l3 = (frame << FRAME_SHIFT) + HEADROOM
                at = bfd.write(state, frames, l3, s, now)
                if rings.send_control(ports, port, at, l3 - at + bfd.LENGTH):
                    state.counters[BFD_SENT, 0] += np.uint64(1)
                    state.counters[BFD_SENT, 1] += np.uint64(l3 - at + bfd.LENGTH)


@hot
def close(state: State, ports: Rings, frames: Array, now: int) -> None:
    """A clean stop: tell the peers of the BFD sessions."""
    bfd.part(state, now)
    speak(state, ports, frames, now)
    rings.flush(ports)


@hot
def _serve_new(state: State, ports: Rings, frames: Array, burst: Burst, waiting: Array, count: int, now: int) -> None:
    for i in range(count):
        burst.deadline[i] = 0
    _serve(state, ports, frames, burst, waiting, count, now)


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
