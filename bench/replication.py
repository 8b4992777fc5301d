"""`krononat bench replication`: what it costs a core to keep a copy of itself elsewhere, and how far the copy is behind.

In memory: a core with a million established sessions forwards at full speed, with 20,000 or 200,000 new ones in each second of
busy time (which also end, 8 s later); between two breaths it ships what changed to a second process over ZeroMQ with CURVE, on
the loopback device. By turns with it the same core in a third process forwards the same and replicates nothing. CPU 0 has the
packets, CPU 1 the copy and the threads of ZeroMQ.

    replication/cost20k/ratio      rate with replication by the rate without; goal: at most 5 % are lost
    replication/cost20k/cpu_ratio  the same in packets by CPU time: what other processes take of the CPU is left out
    replication/cost20k/turn_us    CPU time of a turn, the median. A core that is fully busy takes one each 4 ms, and so do both
                                   here: their clock is held while frames are laid down, about half of the time
    replication/cost20k/by_clock/ratio  the same where that clock goes on: some twice as many turns, half as much in each, as no
                                   busy core has them; without a goal, to compare with what was seen before the clock was held
    replication/lag_p99_ms         age of the oldest change that was not acknowledged, looked at after each breath; by the clock
                                   that goes on, as an acknowledgement is on its way by that one. 4 is the
                                   least: what has changed since a turn is sent in the next one, acknowledged 1.6 ms later (the
                                   median), and that is read in the turn after it. Each turn that it comes too late for adds 4
    replication/snapshot_1M_s      from the beginning of a copy until it is whole, while packets are forwarded
    replication/.../longest_turn_ms        by the clock; ..._cpu_ms in CPU time, which is all of it unless other processes had
                                   the CPU; ..._blocked_ms is neither, but waiting for the kernel, or the host's own doing
    replication/io_cpu             of a CPU, what the threads of ZeroMQ took in the sending process
    replication/frozen/ratio       rate while the backup is frozen (SIGSTOP) by the rate before; then time until it is in sync
"""

from __future__ import annotations

import functools
import os
import socket
import time

from bench import report
from bench.cluster.pair import OTHER_CPU, PACKET_CPU, Cores, Slot, Turn, cores
from bench.report import Result, Told
from krononat.client import Trouble

KIND = "memory"
FLOWS = 1_000_000
RATES = {"20k": 20_000, "200k": 200_000}
UNIVERSE = 2_000_000  # new flows before the first comes again, more than are alive at once
SLOT_S = 0.5
PAIRS, QUICK_PAIRS = 15, 5
FROZEN, QUICK_FROZEN = 5, 2
GOAL, LAG_GOAL_MS, SNAPSHOT_GOAL_S, FROZEN_GOAL = 0.95, 10.0, 5.0, 0.98
_PATIENCE_S = 60.0


def run(quick: bool, told: Told) -> list[Result]:
    """All of it; Trouble on a machine with one CPU."""
    if not {PACKET_CPU, OTHER_CPU} <= os.sched_getaffinity(0):
        raise Trouble("bench replication needs CPUs 0 and 1", "one forwards, on the other are the copy and ZeroMQ")
    told(f"{FLOWS:,} sessions, twice")
    with cores(FLOWS, UNIVERSE, _free_ports()) as made:
        results = _snapshot(made, told)
        for name, rate in RATES.items():
            results += _cost(made, name, rate, QUICK_PAIRS if quick else PAIRS, told)
        return results + _frozen(made, QUICK_FROZEN if quick else FROZEN, told)


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


def _snapshot(made: Cores, told: Told) -> list[Result]:
    told("the first copy, under traffic")
    made.replicating.ask("slot", SLOT_S, RATES["20k"])
    made.replicating.ask("stream")
    seconds, slots = _until_synced(made, RATES["20k"])
    loss = _loss(slots)
    return [
        report.measured("replication/snapshot_1M_s", "s", [seconds], SNAPSHOT_GOAL_S, loss),
        *_turns("replication/snapshot", slots),
        report.measured("replication/snapshot/rate", "M/s", [slot.rate for slot in slots], loss=loss),
        report.measured("replication/snapshot/sessions", "sessions", [made.applying.ask("sessions")]),
    ]


def _turns(prefix: str, slots: list[Slot]) -> list[Result]:
    """The longest turns: gross, and what of them was ours."""
    longest = functools.reduce(Turn.or_longer, (slot.turn for slot in slots))
    return [
        report.measured(f"{prefix}/longest_turn_ms", "ms", [longest.longest_ms], 10.0),
        report.measured(f"{prefix}/longest_turn_cpu_ms", "ms", [longest.cpu_ms], 10.0),
        report.measured(f"{prefix}/longest_turn_blocked_ms", "ms", [longest.blocked_ms], 10.0),
    ]


def _until_synced(made: Cores, rate: int) -> tuple[float, list[Slot]]:
    """Forward until the copy is whole; how long that took, s, and the slots of it."""
    began, slots = time.monotonic(), []
    while True:
        slots.append(made.replicating.ask("slot", 0.1, rate))
        if made.replicating.ask("synced"):
            return time.monotonic() - began, slots
        if time.monotonic() - began > _PATIENCE_S:
            stories = made.replicating.ask("story"), made.applying.ask("story")
            raise RuntimeError(f"the copy is not whole after {_PATIENCE_S:g} s: {stories}")


def _cost(made: Cores, name: str, rate: int, pairs: int, told: Told) -> list[Result]:
    """Pairs of slots with the clock held, which are what a busy core has, and as many by the clock, which tell the lag."""
    on: list[Slot] = []
    off: list[Slot] = []
    lagging: list[Slot] = []
    beside: list[Slot] = []
    for child in (made.replicating, made.alone):  # a steady state: as many end as begin
        child.ask("slot", SLOT_S, rate)
    for number in range(pairs):
        told(f"{rate:,} new sessions a second, {number + 1} of {pairs}")
        for slots, child, held in (
            (on, made.replicating, True),
            (off, made.alone, True),
            (lagging, made.replicating, False),
            (beside, made.alone, False),
        ):
            slots.append(child.ask("slot", SLOT_S, rate, held))
    loss = _loss(on)
    prefix = f"replication/cost{name}"
    lag = [1000 * slot.lag_p99_s for slot in lagging]
    results = [
        report.measured(f"{prefix}/rate", "M/s", [slot.rate for slot in on], loss=loss),
        report.ratio(f"{prefix}/ratio", [slot.rate for slot in on], [slot.rate for slot in off], GOAL, loss),
        report.ratio(f"{prefix}/cpu_ratio", [slot.cpu_rate for slot in on], [slot.cpu_rate for slot in off], GOAL, loss),
        report.measured(f"{prefix}/turn_us", "us", [slot.turn_us for slot in on]),
        report.ratio(f"{prefix}/by_clock/ratio", [s.rate for s in lagging], [s.rate for s in beside], loss=_loss(lagging)),
        report.measured(f"{prefix}/lag_p99_ms", "ms", lag, LAG_GOAL_MS),
        report.measured(f"{prefix}/io_cpu", "CPU", [slot.io_share for slot in on]),
        report.measured(f"{prefix}/made", "M/s", [slot.made / slot.seconds / 1e6 for slot in on]),
    ]
    if rate == max(RATES.values()):
        results.append(report.measured("replication/lag_p99_ms", "ms", lag, LAG_GOAL_MS))
        results.append(report.measured("replication/io_cpu", "CPU", [slot.io_share for slot in on]))
    return results


def _loss(slots: list[Slot]) -> float:
    """Of the packets in all slots, the part that was not forwarded."""
    return sum(slot.lost for slot in slots) / sum(slot.packets for slot in slots)


def _frozen(made: Cores, turns: int, told: Told) -> list[Result]:
    before, meanwhile, resync, rate = [], [], [], RATES["20k"]
    for number in range(turns):
        told(f"the backup is frozen, {number + 1} of {turns}")
        before.append(made.replicating.ask("slot", SLOT_S, rate))
        with made.applying.frozen():
            made.replicating.ask("slot", 1.5, rate)  # until the link is given up
            meanwhile.append(made.replicating.ask("slot", SLOT_S, rate))
        resync.append(_until_synced(made, rate)[0])
    rates = [slot.rate for slot in meanwhile], [slot.rate for slot in before]
    loss = _loss(meanwhile)
    return [
        report.ratio("replication/frozen/ratio", *rates, FROZEN_GOAL, loss),
        *_turns("replication/frozen", meanwhile),
        report.measured("replication/frozen/resync_s", "s", resync),
    ]


replication = report.command("replication", KIND, run, "What replication costs a core in memory, and the copy's lag.")

if __name__ == "__main__":
    replication()
