"""Breath after breath, without a turn in Python between them: as long as the chores rest (see `krononat.crowding`).

    ┌─► breathe ──► has anything come? ── no ──► sleep until a frame comes, BFD has something to do, or it is over ─┐
    └────────────────────── yes ◄───────────────────────────────────────────────────────────────────────────────────┘

A turn in Python costs as much as many packets: its caches are cold, and everything is handed over anew. So what packets need by
itself stays here.
"""

from __future__ import annotations

import numpy as np

from shards import bfd, calls, rings, shard
from shards.burst import Burst
from shards.frames import Rings
from shards.jit import hot, whole
from shards.state import Array, State

LONG_US, SHORT_US = 2000, 1000  # a breath that takes longer has one of half as many bursts after it, a shorter one a longer one
SHORT_NAP = 5  # ms without a frame while others wait for a neighbour

# Columns of a pace, int64: bursts of the next breath and at most, looks at empty rings, what is to be added to the machine's
# ticks, and where that is not 0, the tick at which the clock stands instead; then a struct timespec.
BURSTS, MOST, LOOKS, AHEAD, STANDS, SECONDS, NANOSECONDS = range(7)

_MONOTONIC, _BOOTTIME = 1, 7  # clock_gettime(2)


def new_pace(most: int, looks: int) -> Array:
    """A pace, int64 (7,): it begins with a short breath."""
    return np.array([1, most, looks, 0, 0, 0, 0], np.int64)


@hot
def bursts_after(bursts: int, took_us: int, most: int) -> int:
    """How many bursts, `most` at most, the breath may have after one of `bursts` that took so long.

    A breath has one tick for all its packets, and BFD speaks by it. Where others use the CPU, too, sixteen bursts that take ten
    milliseconds of it have taken 240: longer than BFD waits.
    """
    if took_us > LONG_US:
        return max(1, bursts // 2)
    return min(most, 2 * bursts) if took_us < SHORT_US else bursts


@hot
def _clock_ns(pace: Array, clock: int) -> int:
    calls.clock_gettime(clock, pace.ctypes.data + 8 * SECONDS)
    return whole(pace[SECONDS]) * 1_000_000_000 + whole(pace[NANOSECONDS])


@hot
def machine(pace: Array) -> int:
    """Ticks as the machine counts them, see `krononat.clock`."""
    return _clock_ns(pace, _BOOTTIME) // 1_000_000


@hot
def breathe(state: State, ports: Rings, frames: Array, burst: Burst, waiting: Array, pace: Array, now: int, bursts: int) -> int:
    """One breath of so many bursts at most, see `shard.breathe`; the next one's length is by how long it took."""
    begun = _clock_ns(pace, _MONOTONIC)
    handled = shard.breathe(state, ports, frames, burst, waiting, now, bursts, whole(pace[LOOKS]))
    took_us = (_clock_ns(pace, _MONOTONIC) - begun) // 1000
    state.core[0]["longest_breath_us"] = max(whole(state.core[0]["longest_breath_us"]), took_us)
    pace[BURSTS] = bursts_after(whole(pace[BURSTS]), took_us, whole(pace[MOST]))
    return handled


@hot
def serve(state: State, ports: Rings, frames: Array, burst: Burst, waiting: Array, pace: Array, until: int) -> int:
    """Breathe, and sleep where nothing comes, until the machine shows `until`; breaths. `ports` polls for frames alone.

    It ends early where packets begin to wait for a chore: a neighbour, or the authority, is to be asked for.
    """
    breaths, machine_now, waits = 0, machine(pace), _waits(state)
    while machine_now < until and _waits(state) <= waits:
        now = whole(pace[STANDS]) or machine_now + whole(pace[AHEAD])
        handled = breathe(state, ports, frames, burst, waiting, pace, now, whole(pace[BURSTS]))
        breaths += 1
        if handled == 0:
            rings.wait(ports, _nap(state, now, until - machine_now))
            rings.listen(ports)  # what the kernel says by a memif port; its descriptor wakes us until it was read
        machine_now = machine(pace)
    return breaths


@hot
def _waits(state: State) -> int:
    """Grows where a chore is wanted at once: frames that wait, neighbours that are asked for, ports without a carrier."""
    core = state.core[0]
    told = whole(core["held"]) + whole(core["neighbours_wanted"])
    for port in range(len(state.ports)):
        told += whole(state.ports[port]["carrier_lost"])
    return told


@hot
def _nap(state: State, now: int, left: int) -> int:
    """How long to sleep at most, in ms."""
    return min(left, SHORT_NAP if state.core[0]["held"] else bfd.wait(state, now))
