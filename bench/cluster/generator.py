"""Subscribers and Internet in one compiled loop, in a thread beside Python: so that a core can be killed meanwhile.

    with Generator(ends…, …) as generator:
        generator.open(100_000, rate=20_000)   # TCP connections; returns at once
        …                                      # kill, steer
        generator.ask(1, rate=40_000)          # every one that was established is asked again
        generator.wait(ASK)

The loop takes what has come to both ends, serves it, and sends what is due by its orders; it sleeps some 0.1 ms if nothing is.
It holds its pace by the clock: what it could not send in time is sent later, up to 10 ms; then it gives up and counts `missed`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import cast

import numpy as np

from bench import clock
from bench.cluster import datagrams, tcp
from bench.cluster.ends import End, leave, send
from bench.cluster.ledger import ASK, CLOSE, OPEN, RESIDENTS, STREAM_IN, STREAM_OUT, Ledger, Sizes, new_ledger
from bench.cluster.packets import PROTOCOL, is_whole, macs
from krononat import promptness
from shards import rings
from shards.burst import Burst, new_burst
from shards.frames import Rings
from shards.jit import PURE, hot
from shards.state import TCP, UDP, Array
from shards.wire import read8

_AT_ONCE = 64  # of what came and of what is due, in a turn: each row may make another one
_LATE_NS = 10_000_000
_REST_US = 50
_SETTLING_S = 0.1
_LAPS = 3  # of the first datagram of each flow of the stream

if PURE:

    def _rest(microseconds: int, /) -> int:
        time.sleep(microseconds / 1e6)
        return 0

else:
    from numba import types

    _rest = cast(Callable[[int], int], types.ExternalFunction("usleep", types.int32(types.uint32)))


@hot
def run(client: Rings, server: Rings, burst: Burst, ledger: Ledger, box: Array) -> None:
    """Until `stop` is set in the tally."""
    tally = ledger.tally[0]
    while tally["stop"] == 0:
        now = clock.now_ns(box)
        busy = _serve(server, burst, ledger, now)
        busy += _take(client, burst, ledger, now)
        busy += _order(client, burst, ledger, OPEN, now)
        busy += _order(client, burst, ledger, ASK, now)
        busy += _order(client, burst, ledger, CLOSE, now)
        busy += _order(client, burst, ledger, RESIDENTS, now)
        busy += _order(client, burst, ledger, STREAM_OUT, now)
        busy += _order(server, burst, ledger, STREAM_IN, now)
        tally["turns"] += 1
        if busy == 0:
            _rest(_REST_US)


@hot
def _serve(server: Rings, burst: Burst, ledger: Ledger, now: int) -> int:
    """The Internet's side: answer what came."""
    count = rings.receive(server, burst, _AT_ONCE)
    for row in range(count):
        at, known = burst.at[row], True
        leave(burst, row, 0)
        if not is_whole(server.frames, at, burst.length[row]):
            ledger.tally[0]["broken"] += 1
        elif read8(server.frames, at + PROTOCOL) == TCP:
            known = tcp.answer(server, burst, row, ledger)
        elif read8(server.frames, at + PROTOCOL) == UDP:
            known = datagrams.answer(server, burst, row, ledger, now)
        else:
            known = False
        ledger.tally[0]["unknown"] += not known
    _finish(server, burst, count, ledger, count)
    return count


@hot
def _take(client: Rings, burst: Burst, ledger: Ledger, now: int) -> int:
    """The subscribers' side: note answers, go on with handshakes."""
    count = rings.receive(client, burst, _AT_ONCE)
    end = count
    for row in range(count):
        at, added = burst.at[row], -1
        leave(burst, row, 0)
        if not is_whole(client.frames, at, burst.length[row]):
            ledger.tally[0]["broken"] += 1
            added = 0
        elif read8(client.frames, at + PROTOCOL) == TCP:
            added = tcp.take(client, burst, row, end, ledger, now)
        elif read8(client.frames, at + PROTOCOL) == UDP and datagrams.take(client, burst, row, ledger, now):
            added = 0
        if added < 0:
            ledger.tally[0]["unknown"] += 1
        else:
            end += added
    _finish(client, burst, end, ledger, count)
    return count


@hot
def _finish(handles: Rings, burst: Burst, rows: int, ledger: Ledger, received: int) -> None:
    """Send, and count. Also where there is nothing to send: sent frames are taken back, and others offered to receive into."""
    sent = 0
    for row in range(rows):
        sent += burst.out_length[row] > 0
    tally = ledger.tally[0]
    tally["full"] += send(handles, burst, rows)
    tally["sent"] += sent
    tally["received"] += received


@hot
def _order(handles: Rings, burst: Burst, ledger: Ledger, kind: int, now: int) -> int:
    """Send what is due of one kind; how many."""
    order = ledger.orders[kind]
    if order["next"] >= order["end"]:
        return 0
    due = (now - order["base_ns"]) * order["rate"] // 1_000_000_000 - order["done"]
    if due > 1 + order["rate"] * _LATE_NS // 1_000_000_000:
        order["base_ns"], order["done"] = now, 0
        order["missed"] += 1
        due = 1
    rows = 0
    while rows < min(due, _AT_ONCE) and order["next"] < order["end"]:
        number = order["next"]
        used = _one(handles, burst, rows, ledger, kind, number, now)
        if used == 0:  # no frame is free: later
            break
        order["next"] = number + 1
        rows += max(used, 0)
    order["done"] += rows
    if rows:
        _finish(handles, burst, rows, ledger, 0)
    return rows


@hot
def _one(handles: Rings, burst: Burst, row: int, ledger: Ledger, kind: int, number: int, now: int) -> int:
    """Write one of a kind; rows used, -1 where it is to be left out."""
    turned = ledger.orders[kind]["round"]
    if kind == OPEN:
        return tcp.open_one(handles, burst, row, ledger, number, now)
    if kind == ASK:
        one = ledger.connections[number]
        if one["established"] == 0 or one["closed"] == 1 or one["round"] > turned:
            return -1
        return tcp.ask_one(handles, burst, row, ledger, number, turned)
    if kind == CLOSE:
        return tcp.close_one(handles, burst, row, ledger, number)
    if kind == RESIDENTS:
        if ledger.residents[number]["round"] > turned:
            return -1
        return datagrams.ask_one(handles, burst, row, ledger, number, turned)
    if kind == STREAM_OUT:
        return datagrams.stream_out(handles, burst, row, ledger, number, now)
    if ledger.externals[number % len(ledger.externals)] == 0:
        return -1
    return datagrams.stream_in(handles, burst, row, ledger, number, now)


class Generator:
    """The loop in a thread of its own, from `with` to its end."""

    def __init__(self, client: End, server: End, sizes: Sizes, bases: Array, people: tuple[int, ...], cpu: int | None) -> None:
        self._client, self._server, self._cpu = client, server, cpu
        stations = (macs(client.station, client.source), macs(server.station, server.source))
        self.ledger: Ledger = new_ledger(sizes, bases, people, *stations)
        self._thread = threading.Thread(target=self._run, name="generator", daemon=True)

    def _run(self) -> None:
        if self._cpu is not None:
            os.sched_setaffinity(0, {self._cpu})  # of this thread
        promptness.ask_for()
        run(self._client.rings, self._server.rings, new_burst(), self.ledger, clock.new_box())

    def __enter__(self) -> Generator:
        self._thread.start()
        while not self.ledger.tally["turns"][0]:  # it may have to be compiled
            if not self._thread.is_alive():
                raise RuntimeError("the generator has ended")
            time.sleep(0.01)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.ledger.tally["stop"] = 1
        self._thread.join(10)

    # --- orders -----------------------------------------------------------------------------------------------------

    def _give(self, kind: int, first: int, end: int, rate: int, turned: int = 0) -> None:
        """`end` is written last: with it the loop begins."""
        order = self.ledger.orders
        order["end"][kind] = 0
        for name, value in (("next", first), ("rate", rate), ("round", turned), ("done", 0), ("missed", 0)):
            order[name][kind] = value
        order["base_ns"][kind] = time.monotonic_ns()
        order["end"][kind] = end

    def wait(self, kind: int, patience_s: float = 600.0) -> None:
        """Until everything of a kind has been sent, and what is under way has come; RuntimeError if that takes too long."""
        deadline = time.monotonic() + patience_s
        while self.ledger.orders["next"][kind] < self.ledger.orders["end"][kind]:
            if time.monotonic() > deadline or not self._thread.is_alive():
                raise RuntimeError("the generator does not get on")
            time.sleep(0.002)
        time.sleep(_SETTLING_S)

    def halt(self, kind: int) -> int:
        """No more of a kind; the number that would have been next."""
        order = self.ledger.orders
        order["end"][kind] = 0
        time.sleep(0.002)
        return int(order["next"][kind])

    def open(self, connections: int, rate: int) -> None:
        """Open so many more connections, `rate` a second."""
        first = int(self.ledger.orders["next"][OPEN])
        if first + connections > len(self.ledger.connections):
            raise ValueError(f"the ledger has no room for {first + connections} connections")
        self._give(OPEN, first, first + connections, rate)

    def close(self, connections: int, rate: int) -> None:
        """End the first so many connections, `rate` a second; what is asked later is about the others."""
        self._give(CLOSE, 0, connections, rate)

    @property
    def rounds(self) -> int:
        """The round that no connection has answered yet."""
        return int(self.ledger.connections["round"].max(initial=1))

    def ask(self, turned: int, rate: int, first: int = 0, end: int | None = None) -> None:
        """Ask every established connection, from this number on up to `end`, that has not answered in this round."""
        self._give(ASK, first, int(self.ledger.orders["next"][OPEN]) if end is None else end, rate, turned)

    def populate(self, turned: int, rate: int) -> None:
        """Ask every resident that has not answered in this round; the first one opens the sessions."""
        self._give(RESIDENTS, 0, len(self.ledger.residents), rate, turned)

    def pace(self, kinds: Sequence[int], rate: int) -> None:
        """Go on with these where they were halted, at this rate."""
        ends = {STREAM_OUT: len(self.ledger.out), STREAM_IN: len(self.ledger.into), OPEN: len(self.ledger.connections)}
        for kind in kinds:
            self._give(kind, int(self.ledger.orders["next"][kind]), ends[kind], rate)

    def stream(self, rate: int) -> None:
        """Send numbered datagrams both ways, `rate` a second each, until `halt` or until the ledger is full."""
        flows = len(self.ledger.externals)
        for lap in range(_LAPS):  # each flow once, slowly: then its external endpoint is known
            self._give(STREAM_OUT, lap * flows, (lap + 1) * flows, 10 * flows)
            self.wait(STREAM_OUT)
            if np.all(self.ledger.externals):
                break
        else:
            raise RuntimeError(f"{int(np.sum(self.ledger.externals == 0))} of {flows} flows did not come through")
        self._give(STREAM_OUT, (lap + 1) * flows, len(self.ledger.out), rate)
        self._give(STREAM_IN, 0, len(self.ledger.into), rate)


def ask_until_settled(generator: Generator, rate: int = 40_000, tries: int = 4, first: int = 0) -> int:
    """Ask every established connection from this number on, and those that did not answer again: a lost packet is no lost
    connection. The round.
    """
    turned = generator.rounds
    for _ in range(tries):
        generator.ask(turned, rate, first)
        generator.wait(ASK)
    return turned
