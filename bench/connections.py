"""`krononat bench connections`: new sessions and ends of sessions a second, in memory, on one core; beside them the kernel's.

Every new session comes from a first packet through the whole path: parsed, missed, mapped, translated, journal written. Flows
come in random order, spread over all subscribers, in memory whose pages are there. What the figures contain:

    connections/memory/rate        four remotes to an endpoint: every fourth session makes a mapping and takes a port; no log
    connections/memory/full/rate   one remote to an endpoint: each makes a mapping and takes a port; every event is logged
    connections/expiry/rate        the ends of the latter: sessions, mappings, ports, blocks; its goal is their rate of creation
    connections/churn/...          millions of sessions that come and go by timers alone, beside established traffic
    connections/kernel/rate        conntrack and masquerade in network namespaces (`bench.conntrack`): kind veth, no goal

After each run the state is counted: all sessions made, all packets sent, afterwards all gone, each with its journal and log.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np

from bench import conntrack, report, traffic
from bench.flows import FROM_MAC, MAPPINGS_EACH, frames_of
from bench.report import Result, Told
from bench.traffic import FRAME_BYTES
from krononat import appliance, config
from shards import recovery, sessions
from shards.burst import Burst, new_burst
from shards.jit import hot
from shards.shard import EXPIRE_AT_MOST
from shards.state import REACHABLE, Array, State
from shards.verdict import FORWARDED_OUT, MAPPINGS_CREATED, RECEIVED, SESSIONS_CREATED, SESSIONS_EXPIRED

KIND = "memory"
GOAL, GOAL_FULL = 2.5, 1.5  # M/s
NOW = 100_000_000

ROWS = 1 << 20  # sessions of a run: their rows, keys and ports are four times what the L3 cache holds
LIFETIME, HOLD_DOWN_S = 4000, 2  # ticks: the defaults, 75 times shorter, so that a steady state comes soon

NEW_A_BREATH = KNOWN_A_BREATH = 1024  # packets of the churn; a breath is a tick, a millisecond
KNOWN = 16 * KNOWN_A_BREATH  # flows of the established traffic, each seen every 16 ticks
UNIVERSE = MAPPINGS_EACH * 130_000  # flows of the churn before the first comes again, twice a lifetime later
ROOM = 4_500_000

_CONFIG = """
[interfaces]
internal = {{ name = "in0", address = "10.0.0.1/24", gateway = "10.0.0.254" }}
external = {{ name = "out0", address = "192.0.2.1/24", gateway = "192.0.2.254" }}
[memory]
sessions = {room}
[nat]
hold-down-s = {hold_down_s}
[timeouts]
allow-short-timers = true
udp = {udp}
[log]
events = "{log}"
[[subscribers]]
prefix = "100.64.0.0/14"
pool = "main"
[[pool]]
name = "main"
prefixes = ["203.0.112.0/21"]
"""


class Scene(NamedTuple):
    """A core without a session, for flows of so many remotes to an endpoint."""

    state: State
    burst: Burst
    remotes: int


def build(room: int, remotes: int, log: str) -> Scene:
    """A core with room for so many sessions, configured as any other; `log`: a level of `[log] events`."""
    told = _CONFIG.format(room=room, hold_down_s=HOLD_DOWN_S, udp=LIFETIME // 1000, log=log)
    state = appliance.offline(config.read(told), bytes(range(16)), bytes(range(16)))
    gateways = state.neighbours["kept"] == 1
    for own in ("", "own_"):
        state.neighbours[f"{own}mac"][gateways] = tuple(FROM_MAC)
        state.neighbours[f"{own}state"][gateways] = REACHABLE
    recovery.attach(state, NOW)
    return Scene(state, new_burst(), remotes)


# --- all come, all go -----------------------------------------------------------------------------------------------------


class Cycle(NamedTuple):
    """M/s of a run that opened its sessions and then had them all expire."""

    made: float
    ended: float


def rates(remotes: int, log: str, rows: int, cycles: int) -> list[Cycle]:
    """`cycles` runs of `rows` new sessions each; one before them meets all memory for the first time and is not counted."""
    scene = build(rows, remotes, log)
    original = frames_of(np.random.default_rng(1).permutation(rows), remotes)
    frames = original.copy()
    told = []
    for number in range(cycles + 1):
        frames[:] = original
        told.append(_cycle(scene, frames, rows, NOW + number * 2 * (LIFETIME + 1000 * HOLD_DOWN_S)))
    return told[1:]


def _cycle(scene: Scene, frames: Array, rows: int, now: int) -> Cycle:
    state = scene.state
    before = _counted(state)
    begun = time.perf_counter()
    traffic.run(state, frames, scene.burst, rows, 1, now)
    made = rows / (time.perf_counter() - begun) / 1e6
    mappings = -(-rows // scene.remotes)
    _expect("sessions made", _counted(state) - before, (rows, rows, mappings, 0, rows + mappings))
    begun = time.perf_counter()
    ended = sessions.expire(state, now + LIFETIME + 100, 2 * rows)
    rate = ended / (time.perf_counter() - begun) / 1e6
    _expect("sessions ended", _counted(state) - before, (rows, rows, mappings, rows, 0))
    _expect("all gone", np.array([state.shards["sessions"].sum(), state.shards["mappings"].sum()]), (0, 0))
    return Cycle(made, rate)


def _counted(state: State) -> Array:
    """Packets sent on; sessions made; mappings made; sessions expired; rows that the journal has to ship."""
    meters = state.counters[[FORWARDED_OUT, SESSIONS_CREATED, MAPPINGS_CREATED, SESSIONS_EXPIRED], 0].astype(np.int64)
    return np.append(meters, np.bitwise_count(state.dirty).sum(dtype=np.int64))


def _expect(what: str, seen: Array, expected: tuple[int, ...]) -> None:
    if tuple(seen.tolist()) != expected:
        raise RuntimeError(f"{what}: counted {tuple(seen.tolist())}, should be {expected}")


# --- they come and go -----------------------------------------------------------------------------------------------------


class Churn(NamedTuple):
    """A steady state: duration of each breath in us, sessions alive at its end, packets lost."""

    breaths_us: Array
    alive: int
    lost: int


@hot
def breathe(state: State, frames: Array, burst: Burst, rows: int, now: int) -> int:
    """What `shard.breathe` does without rings: serve packets, then the timers; rows that the wheel looked at."""
    traffic.run(state, frames, burst, rows, 1, now)
    return sessions.expire(state, now, EXPIRE_AT_MOST + rows)


def churn(breaths: int) -> Churn:
    """Run the steady state for `breaths` ticks, after a lifetime of filling up."""
    scene = build(ROOM, 1, "blocks")
    coming = np.random.default_rng(2).permutation(UNIVERSE)
    known = frames_of(UNIVERSE + np.arange(KNOWN), 1).reshape(-1, KNOWN_A_BREATH * FRAME_BYTES)
    took = np.zeros(LIFETIME + 1000 + breaths)
    frames = np.zeros(known.shape[1] + NEW_A_BREATH * FRAME_BYTES, np.uint8)
    for tick in range(len(took)):
        at = np.arange(tick * NEW_A_BREATH, (tick + 1) * NEW_A_BREATH) % UNIVERSE
        frames[: known.shape[1]] = known[tick % len(known)]
        frames[known.shape[1] :] = frames_of(coming[at], 1)
        begun = time.perf_counter_ns()
        breathe(scene.state, frames, scene.burst, NEW_A_BREATH + KNOWN_A_BREATH, NOW + tick)
        took[tick] = (time.perf_counter_ns() - begun) / 1000
    return Churn(took[-breaths:], int(scene.state.shards["sessions"].sum()), _lost(scene.state, len(took)))


def _lost(state: State, ticks: int) -> int:
    """Packets that were not sent on; RuntimeError where an established session did not last, or an old one did."""
    made, ended = (int(state.counters[meter, 0]) for meter in (SESSIONS_CREATED, SESSIONS_EXPIRED))
    if made != ticks * NEW_A_BREATH + KNOWN:
        raise RuntimeError(f"churn: {made} sessions were made of {ticks * NEW_A_BREATH + KNOWN} flows")
    if made - ended > (LIFETIME + 200) * NEW_A_BREATH + KNOWN:
        raise RuntimeError(f"churn: {made - ended} sessions are left: ends do not keep pace")
    return int(state.counters[RECEIVED, 0]) - int(state.counters[FORWARDED_OUT, 0])


# --- the bench ------------------------------------------------------------------------------------------------------------


def run(quick: bool, told: Told) -> list[Result]:
    """All figures; RuntimeError where something was not translated, made, ended or told as it should."""
    cycles = 3 if quick else 9
    told("new sessions, four remotes to an endpoint")
    memory = rates(4, "off", ROWS, cycles)
    told("new sessions, each with mapping, port and events")
    full = rates(1, "sessions", ROWS, cycles)
    told("churn: a million new sessions a second, a million ends")
    steady = churn(1000 if quick else 8000)
    results = [
        report.measured("connections/memory/rate", "M/s", [cycle.made for cycle in memory], GOAL, loss=0.0),
        report.measured("connections/memory/full/rate", "M/s", [cycle.made for cycle in full], GOAL_FULL, loss=0.0),
        _pace(full),
        *_steady(steady),
    ]
    told("new flows through the kernel's conntrack and masquerade")
    return results + conntrack.results(3 if quick else 9)


def _pace(cycles: list[Cycle]) -> Result:
    """Ends a second, with the creations of the same sessions as their goal."""
    made = float(np.median([cycle.made for cycle in cycles]))
    return report.measured("connections/expiry/rate", "M/s", [cycle.ended for cycle in cycles], made)


def _steady(steady: Churn) -> list[Result]:
    """Of the churn: new sessions (and ends) a second of busy core, longest breath, sessions alive."""
    thirds = [NEW_A_BREATH * len(part) / part.sum() for part in np.array_split(steady.breaths_us, 3)]
    longest, middle = float(steady.breaths_us.max()), float(np.median(steady.breaths_us))
    loss = steady.lost / (len(steady.breaths_us) * (NEW_A_BREATH + KNOWN_A_BREATH))
    return [
        report.measured("connections/churn/rate", "M/s", thirds),
        Result("connections/churn/longest_breath_us", longest, "us", middle, longest, loss=loss),
        Result("connections/churn/alive", steady.alive / 1e6, "M", steady.alive / 1e6, steady.alive / 1e6),
    ]


connections = report.command("connections", KIND, run, "New connections and their ends a second, and the kernel's.")

if __name__ == "__main__":
    connections()
