"""A worker is killed with `kill -9`, again and again, under churn and a numbered stream; no backup exists, its own memory does.

failover/crash/outage_ms     longest silence of the stream around each kill: median, and over all of them (longest_ms)
failover/crash/again         kills after which it did not forward again
failover/crash/broken        connections that were established before a kill and never answered again
failover/crash/invariants    complaints about its memory afterwards (tests.invariants), in a quiet moment
"""

from __future__ import annotations

import os
import random
import signal
import time
from typing import NamedTuple

import numpy as np

from bench import report
from bench.cluster.generator import ask_until_settled
from bench.cluster.ledger import OPEN, STREAM_IN, STREAM_OUT, Sizes
from bench.cluster.scene import People, Scene, scene
from bench.cluster.stream import Became, became, owners, survival
from bench.report import Result, Told
from krononat.cli.output import open_memory
from krononat.lab.cluster import Wanted

NAME = "kc"
MEDIAN_GOAL_MS, LONGEST_GOAL_MS = 100.0, 1000.0
STREAM_RATE, CHURN = 10_000, 2_000  # datagrams each way and new connections a second
KILLS, QUICK_KILLS = 200, 4
PATIENCE_S = 10.0
_PAUSE_S = (0.3, 0.8)  # between two kills
_AROUND_NS = 50_000_000  # what of the stream before a kill is looked at with it
_AFTER = STREAM_RATE // 20  # datagrams that must come after a kill before it counts as over


class Kill(NamedTuple):
    """One of them: longest silence in ms, both directions, and whether the stream went on at all."""

    outage_ms: float
    again: bool


def run(quick: bool, told: Told) -> list[Result]:
    """All kills, then every connection is asked."""
    kills = QUICK_KILLS if quick else KILLS
    lasting_s = kills * (sum(_PAUSE_S) + 3.0) + 10
    sizes = Sizes(int(CHURN * lasting_s), datagrams=int(STREAM_RATE * lasting_s))
    wanted = Wanted(1, 1, sessions=int(1.2 * sizes.connections) + 10_000, clustered=False)
    with scene(NAME, wanted, sizes, People((0,), 1600, 400), told) as here:
        here.generator.stream(STREAM_RATE)
        here.generator.open(sizes.connections, CHURN)
        made = [_kill(here, number, kills, told) for number in range(kills)]
        for kind in (OPEN, STREAM_OUT, STREAM_IN):
            here.generator.halt(kind)
        told("every connection is asked")
        return _results(here, made)


def _kill(here: Scene, number: int, kills: int, told: Told) -> Kill:
    told(f"kill {number + 1} of {kills}")
    time.sleep(random.uniform(*_PAUSE_S))
    victim = here.lab.worker()
    before, orders = time.monotonic_ns(), here.generator.ledger.orders
    os.kill(victim, signal.SIGKILL)
    wanted = orders["next"][[STREAM_OUT, STREAM_IN]] + _AFTER
    deadline = time.monotonic() + PATIENCE_S
    while not np.all(here.generator.ledger.high >= wanted) and time.monotonic() < deadline:
        time.sleep(0.005)
    after = time.monotonic_ns()
    again = bool(np.all(here.generator.ledger.high >= wanted))
    outage = max(each.longest_gap_ms for each in _around(here, before - _AROUND_NS, after))
    return Kill(outage if again else 1000 * PATIENCE_S, again)


def _around(here: Scene, since_ns: int, until_ns: int) -> tuple[Became, Became]:
    ledger = here.generator.ledger
    return became(ledger.out, since_ns, until_ns), became(ledger.into, since_ns, until_ns)


def _results(here: Scene, kills: list[Kill]) -> list[Result]:
    ledger, now = here.generator.ledger, time.monotonic_ns()
    turned = ask_until_settled(here.generator)
    living = survival(ledger.connections, turned, 0, now)
    complaints = _complaints(here)
    streamed = _around(here, 0, now)
    loss = sum(each.lost for each in streamed) / max(sum(each.sent for each in streamed), 1)
    outages = [kill.outage_ms for kill in kills]
    broken = living.established - living.alive
    return [
        report.measured("failover/crash/outage_ms", "ms", outages, MEDIAN_GOAL_MS, loss),
        report.measured("failover/crash/longest_ms", "ms", [max(outages)], LONGEST_GOAL_MS, loss),
        report.measured("failover/crash/again", "count", [sum(not kill.again for kill in kills)], 0),
        report.measured("failover/crash/connections", "connections", [living.established]),
        report.measured("failover/crash/broken", "count", [broken], 0),
        report.measured("failover/crash/two_owners", "count", [owners(ledger)], 0),
        report.measured("failover/crash/invariants", "count", [complaints], 0),
    ]


def _complaints(here: Scene) -> int:
    from shards import invariants

    return len(invariants.complaints(open_memory(str(here.lab.socket))))
