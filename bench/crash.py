"""`krononat bench crash`: the worker is killed again and again, at random moments under churn, with no backup to take over.

A thousand TCP connections send 2,000 packets/s, and 20,000 new flows begin (and end) a second; then SIGKILL at a moment of
chance, once a spare stands by. What the figures are:

    crash/spare/outage_ms       from the kill to the arrival of the first packet that was sent after it; a spare stands by
    crash/spare/longest_ms      the longest of them
    crash/no_spare/...          the same with `[io] spare = false`: the next worker has all its code to load first
    crash/lost                  of established connections, how many did not work as before after any of the kills, both ways
    crash/invariants            complaints of `shards.invariants` about copies of the memory, one taken after each kill
    crash/rebuilt               share of the kills that met a change under way, so that all that is derived was rebuilt

For a copy the worker is stopped for some ms at a moment when nothing is in doubt, so the checker sees one instant.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench import devices, report, testpmd
from bench.report import Result, Told
from bench.survivors import Survivors
from bench.veths import Place
from krononat import client, view
from krononat.client import Trouble
from krononat.lab import namespaces
from shards import invariants
from shards.state import State, open_state, read_header

KIND = "veth"
PREFIX = "cra"
GOAL_MS, LONGEST_MS, NO_SPARE_MS = 100, 1000, 3000
KILLS, QUICK_KILLS, NO_SPARE_KILLS = 200, 8, 20
ESTABLISHED_A_SECOND, CHURN_A_SECOND = 2000, 20_000
RANDOM_S = 0.5  # a kill comes within so long after all is ready
PATIENCE_S = 30.0
PAUSE_S = 0.0002  # where nothing is to be done; this is how exact an outage is known
_AT_ONCE_S = 0.05  # what was not sent in time is made up for, but not more
_CPU = 1  # the worker's, where there is one more

_MORE = """
[nat]
hold-down-s = 1

[timeouts]
allow-short-timers = true
udp = 2
"""


class Kill(NamedTuple):
    """One of them: the outage in ms, connections that were lost, complaints, and whether all was rebuilt."""

    outage_ms: float
    lost: int
    complaints: list[str]
    rebuilt: bool


class Scene:
    """An appliance under traffic. `socket`: its control socket."""

    def __init__(self, place: Place, running: devices.Running) -> None:
        self._socket, self._log = str(running.socket), running.log
        self._traffic = Survivors(place)
        self._owed = time.monotonic()
        self._chance = random.Random(1)

    def open(self) -> None:
        """The connections."""
        self._traffic.open()

    def status(self) -> dict[str, object]:
        """What the appliance says of its worker, and of the spare."""
        told = client.ask(self._socket, {"do": "status"})["status"]
        return {**told["worker"], "spare": told["spare"]["state"]}

    def flow(self, seconds: float) -> None:
        """Send and listen for so long."""
        latest = time.monotonic() + seconds
        while time.monotonic() < latest:
            self.turn()

    def turn(self) -> None:
        """What is due is sent, and what has come is taken in."""
        now = time.monotonic()
        self._owed = max(self._owed, now - _AT_ONCE_S)
        due = int((now - self._owed) * ESTABLISHED_A_SECOND)
        if due:
            self._owed += due / ESTABLISHED_A_SECOND
            self._traffic.send(due, due * CHURN_A_SECOND // ESTABLISHED_A_SECOND)
        if not self._traffic.listen() and not due:
            time.sleep(PAUSE_S)

    def until_ready(self, spare: bool) -> int:
        """Traffic until a worker forwards, and a spare stands by if there is to be one; the worker's process."""
        latest = time.monotonic() + PATIENCE_S
        while time.monotonic() < latest:
            told = self.status()
            if told["ready"] and (not spare or told["spare"] == "ready"):
                return int(str(told["pid"]))
            self.flow(0.05)
        raise Trouble("the appliance did not recover", self._log.read_text()[-2000:])

    def kill(self, spare: bool) -> Kill:
        """At a moment of chance."""
        pid = self.until_ready(spare)
        self.flow(self._chance.random() * RANDOM_S)
        said = self._log.stat().st_size
        self._traffic.arrived.clear()
        killed = time.monotonic_ns()
        os.kill(pid, signal.SIGKILL)
        outage_ms = self._first_after(killed)
        self.until_ready(False)
        self.flow(0.2)
        rebuilt = "index rebuilt" in self._log.read_text()[said:]
        lost = self._traffic.lost()
        return Kill(outage_ms, lost, self.complaints(), rebuilt)

    def complaints(self) -> list[str]:
        """About the memory as it is now; traffic goes on meanwhile, for sessions must not end for want of it."""
        context = multiprocessing.get_context("fork")  # which has the copy already
        ours, theirs = context.Pipe(duplex=False)
        checker = context.Process(target=_check, args=(self.copy(), theirs))
        checker.start()
        theirs.close()
        while not ours.poll():
            self.flow(0.01)
        told: list[str] = ours.recv()
        checker.join()
        return told

    def _first_after(self, killed: int) -> float:
        """Milliseconds until a packet arrives that was sent after the kill."""
        latest = time.monotonic() + PATIENCE_S
        while time.monotonic() < latest:
            self.turn()
            for sent, arrived in self._traffic.arrived:
                if sent > killed:
                    return (arrived - killed) / 1e6
            self._traffic.arrived.clear()
        raise Trouble("nothing is forwarded any more", self._log.read_text()[-2000:])

    def copy(self) -> State:
        """The memory at a moment when nothing was being changed."""
        descriptor = client.memory(self._socket)
        try:
            seen = view.open_view(descriptor)
            with self._quiet(seen):
                raw = np.fromfile(f"/proc/self/fd/{descriptor}", np.uint8)
        finally:
            os.close(descriptor)
        return open_state(raw, read_header(raw.tobytes()[:4096]))

    @contextlib.contextmanager
    def _quiet(self, seen: State) -> Iterator[None]:
        pid = int(str(self.status()["pid"]))
        while True:
            os.kill(pid, signal.SIGSTOP)
            try:
                _until_stopped(pid)
                if not seen.core[0]["in_doubt"]:
                    yield
                    return
            finally:
                os.kill(pid, signal.SIGCONT)
            time.sleep(0.001)

    def close(self) -> None:
        """The ends of the traffic."""
        self._traffic.close()


def _check(state: State, answer: Connection) -> None:
    answer.send(invariants.complaints(state))


def _until_stopped(pid: int) -> None:
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "Tt":
        time.sleep(0.0001)


@contextlib.contextmanager
def scene(spare: bool) -> Iterator[Scene]:
    """An appliance in wires of its own, its connections open."""
    cpu = _CPU if _CPU in os.sched_getaffinity(0) else 0
    with Place("kill", PREFIX) as place, tempfile.TemporaryDirectory(prefix="krononat-crash-") as folder:
        config = devices.configuration(folder, cpu) + _MORE
        config = config.replace("[io]\n", f"[io]\nspare = {str(spare).lower()}\n")
        place.know_neighbours()
        with devices.spawned(place.device, Path(folder), config, {}) as running:
            running.answers()
            made = Scene(place, running)
            try:
                made.open()
                yield made
            finally:
                made.close()


def kills(count: int, spare: bool, told: Told) -> list[Kill]:
    """So many, one after the other."""
    found = []
    with scene(spare) as made:
        for number in range(count):
            told(f"kill {number + 1} of {count}, {'a spare stands by' if spare else 'no spare'}")
            found.append(made.kill(spare))
    return found


def run(quick: bool, told: Told) -> list[Result]:
    """All of it; Trouble where root or programs are missing, or where it does not come back."""
    namespaces.need("ip")
    with testpmd.cleaning_up():
        with_spare = kills(QUICK_KILLS if quick else KILLS, True, told)
        without = kills(2 if quick else NO_SPARE_KILLS, False, told)
    return figures(with_spare, without)


def figures(with_spare: list[Kill], without: list[Kill]) -> list[Result]:
    """What they amount to."""
    results = []
    for name, each, goals in (("spare", with_spare, (GOAL_MS, LONGEST_MS)), ("no_spare", without, (NO_SPARE_MS, NO_SPARE_MS))):
        outages = [kill.outage_ms for kill in each]
        results.append(report.measured(f"crash/{name}/outage_ms", "ms", outages, goals[0]))
        results.append(report.measured(f"crash/{name}/longest_ms", "ms", [max(outages)], goals[1]))
    every = with_spare + without
    results.append(report.measured("crash/lost", "count", [sum(kill.lost for kill in every)], 0))
    results.append(report.measured("crash/invariants", "count", [sum(len(kill.complaints) for kill in every)], 0))
    results.append(report.measured("crash/rebuilt", "share", [statistics.fmean(kill.rebuilt for kill in with_spare)]))
    return results


crash = report.command("crash", KIND, run, "The worker killed at random moments, without a backup.")

if __name__ == "__main__":
    crash()
