"""A peer in another process is frozen, killed, replaced: the sender never waits, and the copy is whole again by itself."""

from __future__ import annotations

import json
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from replication import keys
from replication.protocol import ALIVE, CLOSED, SILENT, Peer
from shards.state import SESSION_0
from tests.exchanges import ANYWHERE, Room, ticks

pytestmark = pytest.mark.alone

SHARD, ME, PEER = 3, "s1/0", "s2/0"
FROZEN_S = 1.6  # longer than our own patience; its kernel answers for it meanwhile


class Far:
    """Another core, in a process."""

    def __init__(self, room: Room) -> None:
        self.room, self.key = room, keys.generate()
        self.endpoint = ANYWHERE
        self.process = self.start()
        self.room[ME].exchange.meet(Peer(PEER, self.endpoint, self.key.public), ticks())

    def start(self) -> subprocess.Popen[str]:
        """Start it, at the endpoint that it had, if it had one."""
        me = self.room[ME].peer
        told = {
            "name": PEER, "key": [key.decode() for key in self.key], "endpoint": self.endpoint,
            "peers": [[me.name, me.endpoint, me.public_key.decode()]], "accept": [[SHARD, ME]],
        }  # fmt: skip
        command = [sys.executable, "-m", "tests.exchange_peer"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdin and process.stdout
        print(json.dumps(told), file=process.stdin, flush=True)
        self.endpoint = process.stdout.readline().strip()
        return process

    def end(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def far() -> Iterator[Far]:
    """A peer in sync with some rows of ours."""
    with Room(ME) as room:
        far = Far(room)
        for row in range(3000):
            room[ME].tables.put(SHARD, SESSION_0, row, row)
        room[ME].exchange.stream(SHARD, PEER, True)
        room.until(lambda: room[ME].exchange.synced(SHARD, PEER))
        yield far
        far.end()


def undisturbed_ns() -> int:
    """Time in which this thread ran, or waited for anything but a CPU that others had (proc(5), schedstat)."""
    return time.perf_counter_ns() - int(Path("/proc/thread-self/schedstat").read_text().split()[1])


def change(far: Far, seconds: float) -> int:
    """Change rows for so long; the longest turn, in ms, without what other processes had the CPU for."""
    exchange, tables, chance = far.room[ME].exchange, far.room[ME].tables, random.Random(1)
    exchange.longest_turn_ns, exchange._clock = 0, undisturbed_ns
    last = time.monotonic() + seconds
    while time.monotonic() < last:
        for _ in range(20):
            tables.put(SHARD, SESSION_0, chance.randrange(3000), chance.randrange(1 << 32))
        exchange.turn(ticks())
        time.sleep(0.0005)
    return exchange.longest_turn_ns // 1_000_000


def agree(far: Far) -> None:
    """Both have the same, in sync, as `verify` sees it."""
    exchange = far.room[ME].exchange
    far.room.until(lambda: exchange.synced(SHARD, PEER))
    exchange.verify(SHARD, PEER)
    far.room.until(lambda: (found := exchange.compared(SHARD, PEER)) is not None and found.done)
    found = exchange.compared(SHARD, PEER)
    assert found is not None and found.rows >= 3000 and (found.error, found.differing) == ("", [])


def test_a_frozen_peer_costs_nothing_and_is_in_sync_again_by_itself(far: Far) -> None:
    exchange = far.room[ME].exchange
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    far.process.send_signal(signal.SIGSTOP)
    longest = change(far, FROZEN_S)
    assert exchange.evidence(PEER, ticks()) == SILENT
    assert not exchange.synced(SHARD, PEER) and exchange.lag(SHARD, PEER).seconds > 1
    assert longest < 100  # it was frozen for 1,600
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10  # KiB
    far.process.send_signal(signal.SIGCONT)
    far.room.until(lambda: exchange.evidence(PEER, ticks()) == ALIVE)
    agree(far)
    assert exchange.status()["links"][PEER]["lives"] > 1


def test_a_peer_that_is_frozen_again_and_again_is_in_sync_each_time(far: Far) -> None:
    """For a moment, for as long as makes it silent, until connections end, until the life is given up."""
    exchange, chance = far.room[ME].exchange, random.Random(11)
    for span in (0.05, 0.2, 0.35, 0.5, 1.2, 0.31, 1.05, 0.3, 0.4, 0.02):
        far.process.send_signal(signal.SIGSTOP)
        change(far, span + 0.05 * chance.random())
        far.process.send_signal(signal.SIGCONT)
        change(far, 0.1 * chance.random())  # it may be stopped again before it has all
        if chance.random() < 0.7:
            far.room.until(lambda: exchange.synced(SHARD, PEER))
    agree(far)


def test_a_killed_peer_is_known_to_be_dead_at_once_and_its_successor_gets_a_copy(far: Far) -> None:
    exchange = far.room[ME].exchange
    far.process.kill()
    killed = time.monotonic()
    far.room.until(lambda: exchange.evidence(PEER, ticks()) == CLOSED)
    assert time.monotonic() - killed < 0.1
    far.process.communicate()
    change(far, 0.2)
    far.process = far.start()
    agree(far)
    assert exchange.evidence(PEER, ticks()) == ALIVE


def test_a_slow_peer_is_not_waited_for(far: Far) -> None:
    """It runs a tenth of the time: what it misses coalesces, and once it runs again it is there soon."""
    for _ in range(10):
        far.process.send_signal(signal.SIGSTOP)
        assert change(far, 0.09) < 100
        far.process.send_signal(signal.SIGCONT)
        assert change(far, 0.01) < 100
    agree(far)
