"""`krononat bench scale`: two cores, each a process with a state of its own, beside each of them alone.

Two cores share nothing that either writes: no lock, no allocator, for compiled code allocates nothing, and no cache line, since
every section of a state begins on a huge page of its own (`tests/test_scale.py` holds this). What they do share is the machine:
the last-level cache, the memory's bandwidth and, where a hypervisor says nothing about it, perhaps one physical core's units.
So what is missing to 2 is the machine's, and this bench says how much that is.

Each process is spawned as a worker is, keeps to one core, builds its own sessions and frames, and then waits. A round is: both
together, the first alone, the second alone; each time every frame once, all laid anew before. Together means that both begin at
one instant of the clock, which both read; the time of each is its own, and both are verified in the end. Where it is permitted
(root) the passes run with real-time priority, so that what else the machine has to do is not taken for a lack of scaling.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import NamedTuple

import numpy as np

from bench import report
from bench.report import Result, Told
from krononat.client import Trouble

KIND = "memory"
GOAL = 1.9
FLOWS, ROWS = 1_000_000, 1 << 20
ROUNDS, QUICK_ROUNDS = 15, 7

_LEAD_S = 0.005  # from "both are ready" to the instant of their start
_PATIENCE_S = 300.0  # for a core to be ready: it may have to compile first


class Load(NamedTuple):
    """What each core gets to do."""

    flows: int = FLOWS
    rows: int = ROWS


class Round(NamedTuple):
    """Rates of both cores, in M/s: together, and each alone."""

    together: tuple[float, float]
    alone: tuple[float, float]


class Core(NamedTuple):
    """A process on a core, and the line to it."""

    number: int
    line: Connection

    def tell(self, value: float | None) -> None:
        """Send it an instant, or None for the end; Trouble where it has died."""
        try:
            self.line.send(value)
        except OSError:
            raise self._ended() from None

    def hear(self) -> float:
        """What it says next; Trouble where it has died or is silent."""
        if not self.line.poll(_PATIENCE_S):
            raise Trouble(f"core {self.number} is silent", f"for {_PATIENCE_S:.0f} s", "try again on an idle machine")
        try:
            return float(self.line.recv())
        except (EOFError, OSError):
            raise self._ended() from None

    def _ended(self) -> Trouble:
        return Trouble(f"the process on core {self.number} has ended", "it says why above")


def run(quick: bool, told: Told) -> list[Result]:
    """Ratio, and the rates that it is made of."""
    numbers = sorted(os.sched_getaffinity(0))[:2]
    if len(numbers) < 2:
        raise Trouble("there is only one core", "two are to be measured side by side", "run it on a machine with two")
    with cores(numbers, Load()) as pair:
        rounds = measure(pair, QUICK_ROUNDS if quick else ROUNDS, told)
        return figures(rounds, losses(pair))


def figures(rounds: Sequence[Round], loss: float) -> list[Result]:
    """Results of all rounds."""
    together, alone = [sum(told.together) for told in rounds], [sum(told.alone) / 2 for told in rounds]
    each = [
        report.measured(f"scale/core{core}/{how}", "M/s", [getattr(told, how)[core] for told in rounds])
        for how in Round._fields
        for core in (0, 1)
    ]
    return [
        report.ratio("scale/2cores", together, alone, GOAL, loss),
        report.measured("scale/2cores/rate", "M/s", together),
        report.measured("scale/1core/rate", "M/s", alone),
        *each,
    ]


@contextmanager
def cores(numbers: Sequence[int], load: Load) -> Iterator[list[Core]]:
    """Processes on these cores, ended afterwards; each says how many rows it runs once it is asked."""
    spawn = multiprocessing.get_context("spawn")
    pair, processes = [], []
    try:
        for number in numbers:
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=serve, args=(theirs, number, load), daemon=True)
            process.start()
            theirs.close()
            pair.append(Core(number, ours))
            processes.append(process)
        yield pair
    finally:
        for core, process in zip(pair, processes, strict=True):
            process.terminate()  # it has nothing to tidy up
            process.join()
            core.line.close()


def measure(pair: Sequence[Core], count: int, told: Told) -> list[Round]:
    """`count` rounds; one before them warms and is left out."""
    first, second = pair
    rounds = []
    for number in range(count + 1):
        told(f"round {number} of {count}" if number else "both cores make their sessions")
        together = _rates([first, second])
        rounds.append(Round((together[0], together[1]), (_rates([first])[0], _rates([second])[0])))
    return rounds[1:]


def losses(pair: Sequence[Core]) -> float:
    """Share of packets that were not forwarded, of both cores; each verifies what came out last before it answers."""
    for core in pair:
        core.tell(None)
    return sum(core.hear() for core in pair) / len(pair)


def _rates(some: Sequence[Core]) -> list[float]:
    """Have these cores run all their frames, from one instant on; their rates in M/s."""
    for core in some:
        core.tell(0.0)
    for core in some:
        core.hear()  # its frames are laid
    begin = time.monotonic() + _LEAD_S
    for core in some:
        core.tell(begin)
    return [core.hear() for core in some]


def serve(line: Connection, number: int, load: Load) -> None:
    """The process on core `number`: lay the frames when asked, run them at the instant that follows; at None, the losses."""
    os.sched_setaffinity(0, {number})
    from bench import path, traffic
    from shards.verdict import FORWARDED_IN, FORWARDED_OUT

    scene = traffic.build(load.flows, load.rows, seed=number + 1)
    original = scene.frames.copy()
    forwarded = scene.state.counters[[FORWARDED_OUT, FORWARDED_IN], 0].sum()
    passes = 0
    while line.recv() is not None:
        np.copyto(scene.frames, original)
        line.send(0.0)
        begin = line.recv()
        with _undisturbed():
            while time.monotonic() < begin:
                pass
            traffic.run(scene.state, scene.frames, scene.burst, load.rows, 2, traffic.NOW + 1000)
            took = time.monotonic() - begin
        line.send(load.rows / took / 1e6)
        passes += 1
    path.verify(scene, traffic.packets_of(original), traffic.packets_of(scene.frames))
    forwarded = scene.state.counters[[FORWARDED_OUT, FORWARDED_IN], 0].sum() - forwarded
    line.send(1 - float(forwarded) / (load.rows * passes))


@contextmanager
def _undisturbed() -> Iterator[None]:
    with suppress(OSError):  # not permitted: then as everybody
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    yield
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


scale = report.command("scale", KIND, run, "Measure two cores side by side, beside each of them alone.")

if __name__ == "__main__":
    scale()
