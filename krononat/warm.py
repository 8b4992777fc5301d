"""Have every compiled path ready before the first packet: a packet must never meet the compiler.

Compiling one entry compiles all that it calls, for all branches, so it is enough to call each entry that Python uses once, with
arguments of the very types of a worker and nothing to do. From a warm cache that is loading, not compiling.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import cache

import numpy as np
from numba.core import event

from shards import (
    alarms,
    apply,
    bfd,
    cuckoo,
    doubt,
    grants,
    loop,
    pipeline,
    recovery,
    resume,
    rings,
    sessions,
    shard,
    shunt,
    slabs,
    timers,
)
from shards.bound import bound
from shards.burst import Burst, new_burst
from shards.frames import LOCAL, QUEUE, RING, Rings, owner
from shards.memif_rings import LINE
from shards.notes import LEDGER
from shards.state import MAPPING_0, SESSION6_0, SESSION_0, Array, Sizes, State, new_state

_SMALL = Sizes(
    extents=2, buckets=64, externals=1, accounts=2, prefixes=1, devices=1, limits=1, pools=1, rules=1, statics=1, ports=1,
    shards=1, peers=1, neighbours=64,
)  # fmt: skip

_PDEATHSIG = 1  # prctl(2)


@cache
def _stage() -> tuple[State, Array, Burst]:
    """A core with nothing in it, frames and columns; made once."""
    state = new_state(_SMALL)
    return state, np.zeros(4096, np.uint8), new_burst()


def _no_rings() -> Rings:
    """Rings without a queue, of the types that a worker has."""
    words, ring = np.zeros(2, np.int64), np.zeros(0, RING)
    return Rings(
        frames=np.zeros(0, np.uint8), owners=words[:0], ledger=np.zeros(1, LEDGER), links=words[:0], slots=words[:0],
        halves=words.view(np.uint16), words=words.view(np.uint32), longs=words, rx=ring, tx=ring, fill=ring, completion=ring,
        control_rx=ring, control_tx=ring, lines=np.zeros(0, LINE), queues=np.zeros(0, QUEUE), first=words[:0], width=words[:0],
        pending=words[:0], free=words[:0], local=np.zeros(1, LOCAL), polled=np.zeros((0, 2), np.int32), event=words[:1],
    )  # fmt: skip


def _table() -> None:
    state, _, burst = _stage()
    cuckoo.lookup_bulk(state, burst.key0, burst.key1, burst.ref, burst.verdict, 0)


def _recovery() -> None:
    state = _stage()[0]
    resume.resume(state, True, 0)
    doubt.begin(state)
    doubt.end(state)


def _pipeline() -> None:
    state, frames, burst = _stage()
    pipeline.process(state, frames, burst, 0, 0)
    pipeline.settle(state, burst, 0)


def _ends() -> None:
    state = _stage()[0]
    sessions.expire(state, 0, 0)
    sessions.delete_lives(state, np.zeros((0, 2), np.int64), 0)


def _grants() -> None:
    state = _stage()[0]
    grants.subscriber_of(state, 0, 0)
    grants.find(state, 0, 0, 0, 0)
    grants.address_of(state, 0, 0, 0)
    grants.grant(state, 0, 0, 0, 0, 0, 0, False, 0, 0)
    grants.revoke(state, 0, 0, 0)


def _loop() -> None:
    state, frames, burst = _stage()
    alarms.look(state, 0)
    timers.remaining(0, 0)  # replication asks by it how long the grace lasts
    pace, given = loop.new_pace(0, 0), (state, _no_rings(), frames, burst, shard.new_waiting())
    bound(loop.breathe, *given, pace)(0, 0)  # bound, as a worker calls it: so are the types known by which it finds the code
    bound(loop.serve, *given, pace)(0)
    rings.ready(_no_rings(), np.zeros(1, RING)[0])  # this and the next one: as who takes over calls them
    owner(0, 0, 0)
    rings.listen(_no_rings())
    rings.wait(_no_rings(), 0)
    shard.close(state, _no_rings(), frames, 0)
    bfd.begin(state, 0)
    bfd.wait(state, 0)
    sessions.expire(state, 0, 0)


def _replication() -> None:
    from replication import rows, steady
    from replication.lanes import Desk
    from replication.quiet import Quiet

    state = _stage()[0]
    source, sink, nothing = rows.StateSource(state, 0), rows.StateSink(state), np.zeros(0, np.uint8)
    source.mark(0)
    source.clean(0, 0)
    source.unsent(0)
    source.harvest([(0, False)], 0)
    source.quiet(0)
    source.ripen(0, 0)
    for klass in (SESSION_0, MAPPING_0, SESSION6_0):
        source.living(0, klass, 0, False, 0)
    slabs.local_row(state, 0, SESSION_0, 0)
    source.holds(0, 0, 0)
    source.refreshed(0, SESSION_0, 0, 0, 0)
    source.compared(0, SESSION_0, 0, (0, 0))
    sink.begin(0)
    for take in (sink.apply_ended, sink.apply_mappings, sink.apply_sessions, sink.apply_holds):
        take(0, nothing, 0)
    sink.refresh(0, SESSION_0, 0, np.zeros(1024, np.uint8), 0)
    sink.end_unseen(0, 0)
    apply.end_idle(state, 0, MAPPING_0, 0, 0, 0)
    recovery.install_statics(state, 0)
    Quiet(state, 0, 0).look(0, 1)
    shunt.prepare(state, 0)
    book, by_shard = steady.new_book(), (np.zeros(1, np.int64),) * 3
    lane = Desk().lane(book, np.zeros((0, steady.STREAM_COLUMNS), np.int64), by_shard)
    bound(steady.pump, state, lane)(True, 1, 0)  # no socket
    steady.acknowledge(*book, 0, 0, 0)
    steady.has_room(book.columns)


STEPS: list[tuple[str, Callable[[], None]]] = [
    ("table", _table),
    ("attach and recovery", _recovery),
    ("packet path", _pipeline),
    ("ends of sessions", _ends),
    ("mappings that are asked for", _grants),
    ("loop with rings", _loop),
    ("replication", _replication),
]


class _Watch(event.Listener):
    """Counts what is compiled from now on."""

    def __init__(self, state: State) -> None:
        self._core = state.core
        self._core[0]["late_compilations"] = 0

    def on_start(self, event: event.Event) -> None:
        """A compilation begins."""
        self._core[0]["late_compilations"] += 1

    def on_end(self, event: event.Event) -> None:
        """A compilation has ended."""


def watch(state: State) -> None:
    """Count every later compilation in `core.late_compilations`: one that a packet met would be seen there."""
    event.register("numba:compile", _Watch(state))  # type: ignore[no-untyped-call]


def load() -> None:
    """Run every step; from a warm cache a fraction of a second."""
    for _, step in STEPS:
        step()


def compile(progress: Callable[[str, int, int], None]) -> None:
    """Run every step and tell `progress(name, done, of)` before each and once at the end.

    Where something is to be compiled, a second process begins at the other end; neither waits but for what the other is at (see
    `shards.turns`).
    """
    with _Second():
        for done, (name, step) in enumerate(STEPS):
            progress(name, done, len(STEPS))
            step()
    progress("done", len(STEPS), len(STEPS))


class _Second(event.Listener):
    """Starts the second process with the first function that must be compiled, and ends it with the last."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> None:
        event.register("numba:compile", self)  # type: ignore[no-untyped-call]

    def __exit__(self, *_: object) -> None:
        event.unregister("numba:compile", self)  # type: ignore[no-untyped-call]
        if self._process:
            self._process.terminate()
            self._process.wait()

    def on_start(self, event: event.Event) -> None:
        """A compilation begins."""
        if self._process is None and len(os.sched_getaffinity(0)) > 1:
            # What goes wrong there goes wrong here as well, and is told here.
            self._process = subprocess.Popen([sys.executable, "-m", "krononat.warm"], stderr=subprocess.DEVNULL)

    def on_end(self, event: event.Event) -> None:
        """A compilation has ended."""


def main() -> None:
    """The second process: the steps from the last one on, as long as who started it lives."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends us
    ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    for _, step in reversed(STEPS):
        step()


if __name__ == "__main__":
    main()
