"""scratch"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np

from bench.traffic import FRAME_BYTES, HEADROOM, packets_of, run
from krononat import appliance, config
from shards import recovery, sessions
from shards.burst import Burst, new_burst
from shards.state import REACHABLE, Array, State

MAPPINGS_EACH = 63  # of a subscriber, as in CSIT's NAT44 ladder
NOW = 100_000_000

CONFIG = """
[interfaces]
internal = { name = "in0", address = "10.0.0.1/24", gateway = "10.0.0.254" }
external = { name = "out0", address = "192.0.2.1/24", gateway = "192.0.2.254" }
[memory]
sessions = %d
[nat]
hold-down-s = 2
[timeouts]
allow-short-timers = true
udp = 4
[[subscribers]]
prefix = "100.64.0.0/15"
pool = "main"
[[pool]]
name = "main"
prefixes = ["203.0.112.0/22"]
"""
_SUBSCRIBERS = 0x64400000


class Scene(NamedTuple):
    state: State
    burst: Burst
    remotes: int


def build(room: int, remotes: int) -> Scene:
    state = appliance.offline(config.read(CONFIG % room), bytes(range(16)), bytes(range(16)))
    state.neighbours["mac"][state.neighbours["kept"] == 1] = (2, 0, 0, 0, 0, 9)
    state.neighbours["state"][state.neighbours["kept"] == 1] = REACHABLE
    recovery.attach(state, NOW)
    return Scene(state, new_burst(), remotes)


def frames_of(flows: Array, remotes: int) -> Array:
    """First packets (UDP, 60 bytes) of the flows."""
    frames = np.zeros((len(flows), FRAME_BYTES), np.uint8)
    packets = packets_of(frames)
    mapping, remote = flows // remotes, flows % remotes
    words = np.zeros((len(flows), 15), ">u4")
    source = _SUBSCRIBERS + 2 + mapping // MAPPINGS_EACH
    destination = 0x08000000 + (flows * 2654435761 & 0xFFFFFF)
    packets[:, 0:14] = np.frombuffer(bytes([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9, 8, 0]), np.uint8)
    header = np.zeros((len(flows), 14), ">u2")
    header[:, 0], header[:, 1], header[:, 4] = 0x4500, 46, 64 << 8 | 17
    header[:, 6], header[:, 7], header[:, 8], header[:, 9] = source >> 16, source & 0xFFFF, destination >> 16, destination & 0xFFFF
    header[:, 10], header[:, 11], header[:, 12] = 1024 + mapping % MAPPINGS_EACH, 443 + remote, 26
    total = header[:, :10].astype(np.uint32).sum(axis=1)
    total = (total & 0xFFFF) + (total >> 16)
    header[:, 5] = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    packets[:, 14:42] = header.view(np.uint8).reshape(len(flows), 28)
    return frames.reshape(-1)


def cycle(scene, original, frames, now):
    state = scene.state
    rows = len(frames) // FRAME_BYTES
    frames[:] = original
    before = int(state.counters[128 + 3, 0]), int(state.counters[128 + 6, 0])
    begun = time.perf_counter()
    run(state, frames, scene.burst, rows, 1, now)
    took = time.perf_counter() - begun
    made, mapped = int(state.counters[128 + 3, 0]) - before[0], int(state.counters[128 + 6, 0]) - before[1]
    if hasattr(state, "logged"): pass
    begun = time.perf_counter()
    ended = sessions.expire(state, now + 5000, 1 << 30)
    took2 = time.perf_counter() - begun
    print(f"made {made} mapped {mapped} {made / took / 1e6:.3f} M/s; ended {ended} {ended / took2 / 1e6:.3f} M/s", flush=True)


if __name__ == "__main__":
    import sys
    ROWS = 1 << 20
    for remotes in (1, 4, 16):
        scene = build(ROWS, remotes)
        original = frames_of(np.random.default_rng(1).permutation(ROWS), remotes)
        frames = original.copy()
        for k in range(4):
            cycle(scene, original, frames, NOW + 10_000 * k)
