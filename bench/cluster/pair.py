"""Cores in memory, each in a process of its own: one forwards at full speed and replicates, another applies, a third is alone.

They have no rings: frames are laid down by numpy between breaths, which is not timed. A breath is 16,384 packets of established
flows and the first packets of new ones, at a rate of so many in each second of *busy* time; then the timers; then, where it
replicates, a turn of the exchange. All of that is timed, and nothing else.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench import traffic
from bench.traffic import FRAME_BYTES
from krononat import memory, warm
from replication import keys
from replication.exchange import Exchange
from replication.protocol import Peer, Settings
from replication.rows import StateSink, StateSource
from shards import sessions, tcp
from shards.burst import Burst
from shards.jit import hot
from shards.shard import EXPIRE_AT_MOST
from shards.state import PASSIVE, TCP, Array, State
from shards.verdict import FORWARDED_IN, FORWARDED_OUT

KNOWN = 1 << 14  # packets of established flows in a breath
FRESH_AT_MOST = 1 << 12
ROWS = 1 << 18  # frames that are used in turn
LIFETIME = 8000  # ticks of UDP: what comes also goes, within the run; what is established is TCP and stays
HOLD_DOWN_S = 5  # of ports: if they rested for 120 s, after 2.5 million new sessions none would be left
SHARDS = (0, 1)
PACKET_CPU, OTHER_CPU = 0, 1
_IDLE_S = 0.02  # a replicating core that has no slot speaks to its peer so often
_PATIENCE_S = 60.0


class Who(NamedTuple):
    """A core: its name, its own key and endpoint, and its peer's; no peer: it is alone."""

    me: Peer
    key: keys.Key
    peer: Peer | None


class Turn(NamedTuple):
    """The longest turns of the exchange, ms: by the clock; in CPU time; and what is neither CPU time nor waiting for a CPU.

    A turn sleeps nowhere. If it took long by the clock and not in CPU time, others had the CPU, unless it was `blocked`: by
    the kernel, or since the host of this machine had taken the CPU away (steal), of which a thread cannot know.
    """

    longest_ms: float = 0.0
    cpu_ms: float = 0.0
    blocked_ms: float = 0.0

    def or_longer(self, other: Turn) -> Turn:
        """The longest of both, in each respect."""
        return Turn(*map(max, self, other))


class Slot(NamedTuple):
    """What a core did in a slot of busy time."""

    packets: int
    seconds: float
    cpu_s: float  # of these, in which this thread had the CPU
    lost: int
    made: int  # new sessions
    lag_p99_s: float
    io_share: float  # of a CPU, by the threads of ZeroMQ
    turn: Turn
    turn_us: float  # CPU time of a turn of the exchange, the median

    @property
    def rate(self) -> float:
        """M packets/s of busy time."""
        return self.packets / self.seconds / 1e6

    @property
    def cpu_rate(self) -> float:
        """M packets/s of CPU time."""
        return self.packets / self.cpu_s / 1e6


@hot
def breathe(state: State, known: Array, fresh: Array, burst: Burst, count: int, now: int) -> None:
    """Serve established flows and `count` new ones, then the timers."""
    traffic.run(state, known, burst, KNOWN, 2, now)
    traffic.run(state, fresh, burst, count, 1, now)
    sessions.expire(state, now, EXPIRE_AT_MOST + count)


class Ticks:
    """Milliseconds from the instant on at which the first sessions were opened (`traffic.NOW`)."""

    def __init__(self) -> None:
        self._base = time.monotonic_ns()

    def now(self) -> int:
        """The present one."""
        return traffic.NOW + (time.monotonic_ns() - self._base) // 1_000_000

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Time stands still meanwhile."""
        began = time.monotonic_ns()
        yield
        self._base += time.monotonic_ns() - began


class RunDelay:
    """For how long this thread could have run and others did (proc(5), schedstat); sees nothing of what the host takes."""

    def __init__(self) -> None:
        self._file = os.open("/proc/thread-self/schedstat", os.O_RDONLY)

    def ms(self) -> float:
        """Ever."""
        return int(os.pread(self._file, 100, 0).split()[1]) / 1e6


class Forwarding:
    """The core that has the packets."""

    def __init__(self, who: Who, flows: int, universe: int) -> None:
        os.sched_setaffinity(0, {PACKET_CPU})
        scene = traffic.build(flows, ROWS, protocol=TCP, room=flows + universe)
        self.state, self._burst = scene.state, scene.burst
        _populate(self.state)
        _settings(self.state)
        self._known = traffic.packets_of(scene.frames).copy()
        self._coming = traffic.packets_of(traffic.outbound(flows + np.arange(universe))).copy()
        self._frames, self._fresh = (np.zeros(rows * FRAME_BYTES, np.uint8) for rows in (KNOWN, FRESH_AT_MOST))
        self._ticks = Ticks()
        self._at = self._next = 0
        self._owed = 0.0
        self._delay, self._turn = RunDelay(), Turn()
        self.exchange = _exchange(self.state, who, self._ticks.now())
        self._peer = who.peer

    def slot(self, seconds: float, rate: int, held: bool = False) -> Slot:
        """Forward for so long. First a turn: a change may be as old as the turn before it, for all that is known of it.

        `held`: time stands still while frames are laid down, as for a core that is never idle and gets them from a card.
        """
        self.idle()
        forwarded, began_s, io_s = self._forwarded(), time.monotonic(), _io_seconds()
        busy, packets, made, lags, turns, self._turn = 0.0, 0, 0, [], [0], Turn()
        had = 0.0
        while busy < seconds:
            with self._ticks.held() if held else contextlib.nullcontext():
                count = self._lay()
            waited = self._delay.ms()
            cpu = turn = 0
            begun, having = time.perf_counter(), time.thread_time()
            now = self._ticks.now()
            breathe(self.state, self._frames, self._fresh, self._burst, count, now)
            if self.exchange and self.exchange.is_due(now):
                cpu, turn = time.thread_time_ns(), time.perf_counter_ns()
                self.exchange.turn(now)
                cpu, turn = time.thread_time_ns() - cpu, time.perf_counter_ns() - turn
                turns.append(cpu)
            took, had = time.perf_counter() - begun, had + time.thread_time() - having
            blocked = (turn - cpu) / 1e6 - (self._delay.ms() - waited)
            self._turn = self._turn.or_longer(Turn(turn / 1e6, cpu / 1e6, blocked))
            busy, packets, made = busy + took, packets + KNOWN + count, made + count
            self._owed += rate * took
            lags.append(self.lag_s())
        share = (_io_seconds() - io_s) / (time.monotonic() - began_s)
        lost = packets - (self._forwarded() - forwarded)
        median_us = float(np.median(turns[1:] or turns)) / 1000
        return Slot(packets, busy, had, lost, made, float(np.percentile(lags, 99)), share, self._turn, median_us)

    def _lay(self) -> int:
        """Lay a breath's frames down; how many are of new flows."""
        count = min(int(self._owed), FRESH_AT_MOST, len(self._coming) - self._next)
        self._owed -= count
        traffic.packets_of(self._frames)[:] = self._known[self._at : self._at + KNOWN]
        traffic.packets_of(self._fresh)[:count] = self._coming[self._next : self._next + count]
        self._at = (self._at + KNOWN) % ROWS
        self._next = (self._next + count) % len(self._coming)
        return count

    def _forwarded(self) -> int:
        return int(self.state.counters[FORWARDED_OUT, 0]) + int(self.state.counters[FORWARDED_IN, 0])

    def lag_s(self) -> float:
        """How old the oldest change is that the peer has not acknowledged."""
        if not self.exchange or not self._peer:
            return 0.0
        return max(self.exchange.lag(shard, self._peer.name).seconds for shard in SHARDS)

    def stream(self) -> None:
        """Send both shards to the peer from now on, beginning with a snapshot."""
        for shard in SHARDS:
            assert self.exchange and self._peer
            self.exchange.stream(shard, self._peer.name, True)

    def story(self) -> dict[str, Any]:
        """What is known of the exchange."""
        assert self.exchange
        return self.exchange.status()

    def synced(self) -> bool:
        """Whether the peer has it all."""
        assert self.exchange and self._peer
        return all(self.exchange.synced(shard, self._peer.name) for shard in SHARDS)

    def idle(self) -> None:
        """No slot: only the link is kept."""
        if self.exchange:
            self.exchange.turn(self._ticks.now())


def _exchange(state: State, who: Who, now: int) -> Exchange | None:
    if who.peer is None:
        return None
    settings = Settings(cpus=(OTHER_CPU,))
    exchange = Exchange(StateSource(state, 0), StateSink(state), who.me, who.key, settings)
    exchange.meet(who.peer, now)
    return exchange


def _io_seconds() -> float:
    """CPU time of ZeroMQ's own threads (proc(5), stat: utime and stime), s."""
    total = 0
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            name, _, rest = (task / "stat").read_text().rpartition(")")
            if "ZMQbg" in name:
                total += sum(map(int, rest.split()[11:13]))
    return total / os.sysconf("SC_CLK_TCK")


# --- processes ----------------------------------------------------------------------------------------------------------------


def forward(channel: Connection, who: Who, flows: int, universe: int) -> None:
    """A core that does what it is told: ("slot", seconds, rate), ("stream",), ("synced",); ends with its channel."""
    core = Forwarding(who, flows, universe)
    _settle()
    channel.send("ready")
    with contextlib.suppress(EOFError):
        while True:
            while not channel.poll(_IDLE_S):
                core.idle()
            what, *given = channel.recv()
            channel.send(getattr(core, what)(*given))


def apply(channel: Connection, who: Who, room: int) -> None:
    """A core that has nothing of its own and takes what its peer sends; it tells how many sessions it has when asked."""
    os.sched_setaffinity(0, {OTHER_CPU})
    state = traffic.empty(room)
    _populate(state)
    _settings(state)
    state.shards["role"], state.shards["creates"] = PASSIVE, 0
    ticks = Ticks()
    exchange = _exchange(state, who, ticks.now())
    assert exchange and who.peer
    for shard in SHARDS:
        exchange.accept(shard, who.peer.name, int(state.shards[shard]["epoch"]))
    _settle()
    channel.send("ready")
    with contextlib.suppress(EOFError):
        while True:
            if not exchange.turn(ticks.now()):
                time.sleep(0.001)
            if channel.poll():
                (what,) = channel.recv()
                channel.send(exchange.status() if what == "story" else int(state.shards["sessions"].sum()))


def _settings(state: State) -> None:
    state.settings["lifetimes"][:, tcp.STREAM] = LIFETIME
    state.settings["hold_down_s"] = HOLD_DOWN_S


def _populate(state: State) -> None:
    """As the supervisor does for a worker, ahead of it: the first touch of a huge page takes a breath 5 ms."""
    memory.populate(state)
    memory.keep_ahead(state, 0, len(state.extents))


def _settle() -> None:
    """As the worker does before its first packet.

    What was never called is loaded when it is, 10 ms each; and the garbage collector walks half a million objects of the
    compiler, for 50 ms, whenever it likes.
    """
    warm.load()
    gc.collect()
    gc.freeze()
    gc.disable()


class Child(NamedTuple):
    """A core's process and the channel to it."""

    process: BaseProcess
    channel: Connection

    def ask(self, *told: Any) -> Any:
        """Have it do something; what it answers. TimeoutError where it does not."""
        self.channel.send(told)
        return self.answer()

    def answer(self, patience_s: float = _PATIENCE_S) -> Any:
        """What it says next."""
        if not self.channel.poll(patience_s):
            raise TimeoutError("a core does not answer")
        return self.channel.recv()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Stopped meanwhile."""
        os.kill(self.process.pid or 0, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.process.pid or 0, signal.SIGCONT)


class Cores(NamedTuple):
    """All three."""

    replicating: Child
    applying: Child
    alone: Child


@contextlib.contextmanager
def cores(flows: int, universe: int, ports: tuple[int, int]) -> Iterator[Cores]:
    """A pair of cores that are linked over the loopback device, and one that is alone, with the same flows."""
    own = [keys.generate() for _ in ports]
    peers = [Peer(name, f"tcp://127.0.0.1:{port}", key.public, 1) for name, port, key in zip("ab", ports, own, strict=True)]
    whos = Who(peers[0], own[0], peers[1]), Who(peers[1], own[1], peers[0]), Who(peers[0], own[0], None)
    with contextlib.ExitStack() as undoing:
        room = flows + universe
        made = [
            undoing.enter_context(_child(forward, whos[0], flows, universe)),
            undoing.enter_context(_child(apply, whos[1], room)),
            undoing.enter_context(_child(forward, whos[2], flows, universe)),
        ]
        for child in made:
            child.answer(600.0)  # it may have to compile
        yield Cores(*made)


@contextlib.contextmanager
def _child(target: Any, *given: Any) -> Iterator[Child]:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=target, args=(theirs, *given), daemon=True)
    process.start()
    theirs.close()
    try:
        yield Child(process, ours)
    finally:
        ours.close()
        process.join(5)
        if process.is_alive():
            process.kill()
            process.join()
