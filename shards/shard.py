"""The loop of a core: run to completion, a burst at a time.

`breathe` is one crossing into compiled code: first BFD and what has changed of ports and neighbours (see `legs`), then the
frames that waited for a neighbour and the fragments that waited for their first, then burst after burst until the rings are
quiet or the breath is long enough, then the timers. Fragments that came before their first are the loop's other frames in hand:
they are served once that has come, or their time is over. Last come those who asked for a connection that nothing permits, and
have waited long enough to be told so (see `unasked`). Before each burst of data all control traffic that waits is served
(BFD, and what other cores shunt), at most a burst of it, so that neither starves the other. What is Python (commands,
replication) runs between breaths, in the same thread.
"""

from __future__ import annotations

import numpy as np

from shards import bfd, cut, fragments, legs, pipeline, rings, sessions, unasked
from shards.burst import BURST, Burst
from shards.frames import Rings, recycle
from shards.jit import hot, whole
from shards.state import Array, State
from shards.verdict import BFD_SENT, FRAGMENTED, HELD_BACK, HOLD_OVERFLOW, NEEDS_FRAGMENTING, PIECES, SENT, TX_FULL
from shards.xsk import FRAME_SHIFT, HEADROOM

HELD_AT_MOST = BURST  # frames that wait for a neighbour: one burst, so that they are served again in one
EXPIRE_AT_MOST = 1024  # rows that the wheel looks at in one breath, beside one for each packet: ends keep pace with beginnings


def new_waiting() -> Array:
    """Room for the frames that wait, int64: port, at, length, deadline, row of FRAGMENTED; row count in `core`.

    First HELD_AT_MOST for those that wait for a neighbour (`held`), then for fragments that wait for their first (`parted`).
    """
    return np.zeros((HELD_AT_MOST + fragments.PARTS_AT_MOST, 5), np.int64)


@hot
def breathe(state: State, ports: Rings, frames: Array, burst: Burst, waiting: Array, now: int, bursts: int, looks: int) -> int:
    """Serve at most `bursts` bursts; packets handled, 0 when there is nothing to do. `now`: ticks, one for the whole breath.

    It ends early after `looks` looks in a row at empty rings: what comes next is met here sooner than after a turn in Python.
    """
    handled, empty = serve_control(state, ports, frames, burst, waiting, now), 0
    bfd.expire(state, now)  # what came while nobody looked has been heard by now
    speak(state, ports, frames, now)
    bfd.publish(state, now)
    legs.settle(state, now)
    if state.core[0]["held"]:
        _serve_waiting(state, ports, frames, burst, waiting, now)
    if state.core[0]["fragmented"] or state.core[0]["parted"]:
        _serve_parted(state, ports, frames, burst, waiting, now)
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
    most = EXPIRE_AT_MOST + handled
    more = sessions.expire(state, now, most) == most  # there is more to do: no time to sleep
    if unasked.is_due(state, now):
        handled += _tell_unasked(state, ports, frames, burst, now)
    return max(handled, int(more))


@hot
def _tell_unasked(state: State, ports: Rings, frames: Array, burst: Burst, now: int) -> int:
    """Tell those whose time is over, at most a burst of them; how many. Where no frame is free they wait for another breath."""
    told = 0
    while told < BURST and unasked.is_due(state, now):
        at = rings.spare(ports, unasked.next_port(state))
        if at == 0:
            break
        unasked.bring_back(state, frames, burst, at, now)
        rings.send(ports, burst, 1)
        state.counters[SENT, 0] += np.uint64(burst.out_length[0] != 0)
        state.counters[SENT, 1] += np.uint64(burst.out_length[0])
        told += 1
    rings.flush(ports)
    return told


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
    if state.core[0]["parts_due"]:
        _serve_parted(state, ports, frames, burst, waiting, now)


@hot
def _serve(state: State, ports: Rings, frames: Array, burst: Burst, waiting: Array, count: int, now: int) -> None:
    pipeline.process(state, frames, burst, count, now)
    _keep_waiting(state, burst, waiting, count)
    if state.core[0]["cuts"]:
        _send_pieces(state, ports, frames, burst, count)
    rings.send(ports, burst, count)
    rings.flush(ports)  # each burst: what came is sent, and there are frames for what comes
    pipeline.settle(state, burst, count)


@hot
def _keep_waiting(state: State, burst: Burst, waiting: Array, count: int) -> None:
    """Put held frames aside, as many as there is room for."""
    held = whole(state.core[0]["held"])
    for i in range(count):
        if burst.verdict[i] == HELD_BACK and burst.part[i] < 0:  # for which `fragments` has room
            parted = whole(state.core[0]["parted"])
            _put_aside(burst, i, waiting, HELD_AT_MOST + parted)
            state.core[0]["parted"] = parted + 1
        elif burst.verdict[i] == HELD_BACK:
            if held == HELD_AT_MOST:
                burst.verdict[i] = HOLD_OVERFLOW
                continue
            _put_aside(burst, i, waiting, held)
            held += 1
    state.core[0]["held"] = held


@hot
def _put_aside(burst: Burst, i: int, waiting: Array, row: int) -> None:
    waiting[row, 0] = burst.port[i]
    waiting[row, 1] = burst.at[i]
    waiting[row, 2] = burst.length[i]
    waiting[row, 3] = burst.deadline[i]
    waiting[row, 4] = -burst.part[i] - 1


@hot
def _take_up(burst: Burst, i: int, waiting: Array, row: int) -> None:
    burst.port[i] = waiting[row, 0]
    burst.at[i] = waiting[row, 1]
    burst.length[i] = waiting[row, 2]
    burst.deadline[i] = waiting[row, 3]


@hot
def _serve_waiting(state: State, ports: Rings, frames: Array, burst: Burst, waiting: Array, now: int) -> None:
    """Serve held frames again, in their order: a neighbour may have answered, or a deadline passed."""
    count = whole(state.core[0]["held"])
    for i in range(count):
        _take_up(burst, i, waiting, i)
    state.core[0]["held"] = 0
    _serve(state, ports, frames, burst, waiting, count, now)


@hot
def _serve_parted(state: State, ports: Rings, frames: Array, burst: Burst, waiting: Array, now: int) -> None:
    """Serve the fragments that need wait no longer, in their order; the others move up."""
    if not fragments.look_again(state, now):
        return
    parted, kept = whole(state.core[0]["parted"]), 0
    for i in range(parted):
        row = HELD_AT_MOST + i
        if fragments.goes_on(state, waiting[row, 4], waiting[row, 3], now):
            _take_up(burst, i - kept, waiting, row)
        else:
            for column in range(5):
                waiting[HELD_AT_MOST + kept, column] = waiting[row, column]
            kept += 1
    state.core[0]["parted"] = kept
    # Not a count that begins as 0: for that constant the compiler would make the whole path once more, in vain.
    if parted > kept:
        _serve(state, ports, frames, burst, waiting, parted - kept, now)


@hot
def _send_pieces(state: State, ports: Rings, frames: Array, burst: Burst, count: int) -> None:
    """Send what must be cut as pieces, in frames of their own; its own frame is free then."""
    state.core[0]["cuts"] = 0
    for i in range(count):
        needed = cut.pieces(state, frames, burst, i)
        if needed == 0:
            continue
        if needed > ports.local[0]["free"]:
            burst.verdict[i] = NEEDS_FRAGMENTING
        elif not _send_cut(state, ports, frames, burst, i, needed):
            burst.verdict[i] = TX_FULL
        burst.out_length[i] = 0


@hot
def _send_cut(state: State, ports: Rings, frames: Array, burst: Burst, i: int, needed: int) -> bool:
    """Put the pieces of a row on the transmit ring, in their order; False where that is full."""
    state.counters[FRAGMENTED, 0] += np.uint64(1)
    for number in range(needed):
        at = rings.take(ports, burst.at[i])
        length = cut.make(state, frames, burst, i, number, at)
        if not rings.offer(ports, burst.out_port[i], at, length):
            recycle(ports, at)
            return False
        for meter in (PIECES, SENT):
            state.counters[meter, 0] += np.uint64(1)
            state.counters[meter, 1] += np.uint64(length)
    return True
