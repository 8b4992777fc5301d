"""`krononat bench failover`: the primary of a shard dies, its backup dies or sleeps, the link between them is cut.

**Takeover.** 20,000 new TCP connections a second, until four fifths of the ports that the primary may hand out are in use (its
side of the pool: 7 of 8 blocks, and of each 448 ports of 512); every subscriber uses the same internal ports. Then `kill -9`
of the primary's worker, and the router steers the shard to the backup. Who has just been connected has something under way, and
sends it again: the connections of the last 50 ms are asked at once, while new ones go on being opened. Later on every
connection that had been answered before the kill is asked, up to four times, and must answer at the same external endpoint:

    failover/older           % of those established more than 10 ms before the kill; failover/older/connections is how many;
                             its loss: connections begun before, but not established in time (much: the machine is too busy)
    failover/last10ms        % of those established in the last 10 ms; most of them the backup was never told of
    failover/outage_ms       longest silence of a numbered stream around the kill
    failover/two_owners        external endpoints that two internal ones had until a second after the kill, answered or not; the
                               story of each is told. Until then so many new connections come as the other side has ports
                               for: who needs more may get one of a connection that died with its owner
    failover/reused            endpoints given to others within the hold-down: a quarter of the connections was closed before
                               the kill, and when the grace is over, new ones are opened again; 0 with everything in place
    failover/without_derived/...      the same where each server derives ports with another key: what derived ports bring
    failover/without_hold_down/...    the same where copies do not know which ports rest: `replicate-hold-down = false`

**Backup.** It is killed, frozen for 5 s, started again, while the stream runs; that must not change by it:

    failover/backup/frozen/way_ratio    median time under way without: with it frozen, by turns (more is better); idle CPUs wait
                                        meanwhile and do not sleep
    failover/backup/.../lost, resync_s  datagrams lost meanwhile; time until it is in sync again, by itself

**Partition.** Both servers live, and do not hear each other; the router sends the shard's packets now to one, now to the other,
while connections are opened. Then it is healed:

    failover/partition/two_owners   external endpoints that two subscribers' endpoints had
    failover/partition/differing    rows in which the copies differ afterwards (`krononat shard verify`)
    failover/partition/alive        % of all connections that answer afterwards
"""

from __future__ import annotations

import os
import signal
import statistics
import time
from typing import NamedTuple

import numpy as np

from bench import report, verify
from bench.cluster.generator import ask_until_settled
from bench.cluster.ledger import CLOSE, OPEN, STREAM_IN, STREAM_OUT, Sizes
from bench.cluster.moving import watched
from bench.cluster.scene import People, Scene, scene, sleepless
from bench.cluster.stream import Survival, owners, reused, shared, story, survival
from bench.report import Result, Told
from krononat.lab import faults, steering
from krononat.lab.cluster import Wanted
from krononat.lab.steering import Hand

KIND = "veth"
NAME = "kfo"
RATE = 20_000  # new connections a second
STREAM = 10_000
BLOCKS, QUICK_BLOCKS = 24, 8  # of 512 ports, of each of the shard's 16 addresses; one in eight is of the other side
PORTS_EACH, FULL = 440, 0.8  # of the 448 of a block, and its share that is in use when it happens
TAKEOVERS, QUICK_TAKEOVERS = 5, 1  # with everything in place; without something once: that is information
LAST_NS = 10_000_000
FROZEN_S = 5.0
_AFTER_S = 1.0
_GRACE_S = 10.5  # after a kill: until then new connections get ports that nobody had (`grace-s`)
_ASIDE = 56  # new connections of a subscriber within the grace; of the other side his block has 64 ports
_CLOSED = 0.25  # of the connections that are to be there
_ENDING_S = 3.0  # a connection that was closed ends so long before the kill, or longer
_QUICKLY = "[timeouts]\nallow-short-timers = true\ntcp-transitory = 1\n"
_AROUND_NS = _YOUNG_NS = 50_000_000


class Takeover(NamedTuple):
    """What became of a takeover. `unopened`: share of the connections begun before it that were not established in time."""

    older: Survival
    last: Survival
    outage_ms: float
    two_owners: int
    reused: int
    unopened: float


def run(quick: bool, told: Told) -> list[Result]:
    """All three."""
    times, blocks = (QUICK_TAKEOVERS, QUICK_BLOCKS) if quick else (TAKEOVERS, BLOCKS)
    results = []
    for way in WAYS[:1] if quick else WAYS:
        made = [_takeover(blocks, way, told) for _ in range(times if way is WAYS[0] else 1)]
        results += _figures(way, made)
    return results + _two_servers(quick, told)


class Way(NamedTuple):
    """How a takeover is made: with everything, or without something, to see what that is worth."""

    name: str
    goals: tuple[float | None, ...] = (None, None, None)  # of older, last10ms, reused; two_owners must be 0 in every way
    derived: bool = True
    holds: bool = True


WAYS = (
    Way("failover", (100.0, 99.0, 0)),
    Way("failover/without_derived", derived=False),
    Way("failover/without_hold_down", holds=False),
)


def _wanted(blocks: int, way: Way) -> Wanted:
    sessions = 16 * 512 * blocks + 50_000
    more = f"replicate-hold-down = {str(way.holds).lower()}\n\n{_QUICKLY}"
    return Wanted(2, 1, sessions, f"1024-{1023 + 512 * blocks}", more=more, same_port_key=way.derived)


def _full(blocks: int) -> int:
    """Connections that take so much of the primary's side of the pool as it is to be full."""
    return int(FULL * 448 * _people(blocks).subscribers)


def _people(blocks: int) -> People:
    return People((0,), 16 * blocks * 7 // 8, PORTS_EACH)


# --- takeover ---------------------------------------------------------------------------------------------------------------


def _takeover(blocks: int, way: Way, told: Told) -> Takeover:
    connections = _people(blocks).subscribers * PORTS_EACH
    sizes = Sizes(connections, datagrams=STREAM * (connections // RATE + 50))
    told(f"{way.name}: a pool of {16 * 512 * blocks:,} ports is filled")
    with scene(NAME, _wanted(blocks, way), sizes, _people(blocks), told) as here:
        here.until_synced()
        here.generator.stream(STREAM)
        _fill(here, blocks)
        doomed = _doomed(here)
        here.until_opened(_full(blocks))
        killed = _kill_and_steer(here, doomed)
        _send_again(here, killed)
        time.sleep(_AFTER_S)
        for kind in (OPEN, STREAM_OUT, STREAM_IN):
            here.generator.halt(kind)
        two_owners = _two_owners(here, killed, told)
        _reopen(here, killed)
        told("every connection is asked")
        return _outcome(here, killed, two_owners)


def _fill(here: Scene, blocks: int) -> None:
    """Open connections, close the first of them when most are there, and go on opening."""
    rest, closed = int(_ENDING_S * RATE) // 2, int(_CLOSED * _full(blocks))
    here.generator.open(_full(blocks) - rest, RATE)
    here.generator.wait(OPEN)
    here.generator.close(closed, 2 * RATE)
    here.generator.wait(CLOSE)
    time.sleep(_ENDING_S / 2)
    here.generator.open(_ASIDE * _people(blocks).subscribers + rest, RATE)


def _reopen(here: Scene, killed: int) -> None:
    """The rest of the connections, once ports of the dead owner's side are handed out again."""
    time.sleep(max(_GRACE_S - (time.monotonic_ns() - killed) / 1e9, 0))
    here.generator.pace((OPEN,), RATE)
    here.generator.wait(OPEN)


def _two_owners(here: Scene, killed: int, told: Told) -> int:
    """How many there are; whose they were is told."""
    ledger = here.generator.ledger
    for external, rows in shared(ledger, ledger.connections["external"] != 0).items():
        told(f"two owners: {story(ledger, external, rows, killed)}")
    return owners(ledger)


class Doomed(NamedTuple):
    """The owner's worker, and who takes over from it."""

    worker: int
    backup: str


def _doomed(here: Scene) -> Doomed:
    owner = here.owner()
    return Doomed(here.lab.worker(here.lab.label(owner)), here.shard(owner)["passive"])


def _kill_and_steer(here: Scene, doomed: Doomed) -> int:
    """Kill it and send the shard to the backup; when, ns. Nobody is asked anything just before: that would keep them busy."""
    with Hand(here.tor) as hand:
        killed = time.monotonic_ns()
        os.kill(doomed.worker, signal.SIGKILL)
        hand.steer([0], doomed.backup)
    return killed


def _send_again(here: Scene, killed: int) -> None:
    """What a client does that has no answer: twice, a fifth of a second apart (RFC 6298 would wait longer)."""
    young = np.flatnonzero(here.generator.ledger.connections["opened"] >= killed - _YOUNG_NS)
    turned = here.generator.rounds
    for _ in range(2):
        here.generator.ask(turned, 2 * RATE, int(young[0]))
        time.sleep(0.2)


def _outcome(here: Scene, killed: int, two_owners: int) -> Takeover:
    ledger = here.generator.ledger
    ended = time.monotonic_ns()
    turned = ask_until_settled(here.generator)
    older = survival(ledger.connections, turned, 0, killed - LAST_NS)
    last = survival(ledger.connections, turned, killed - LAST_NS, killed)
    outage = max(each.longest_gap_ms for each in watched(here, killed - _AROUND_NS, ended))
    begun = int(np.sum((ledger.connections["opened"] > 0) & (ledger.connections["opened"] < killed - LAST_NS)))
    return Takeover(older, last, outage, two_owners, reused(ledger), 1 - older.established / max(begun, 1))


def _figures(way: Way, made: list[Takeover]) -> list[Result]:
    name, (older, last, again) = way.name, way.goals
    unopened = statistics.fmean(each.unopened for each in made)
    return [
        report.measured(f"{name}/older", "%", [100 * each.older.share for each in made], older, unopened),
        report.measured(f"{name}/older/connections", "connections", [each.older.established for each in made]),
        report.measured(f"{name}/last10ms", "%", [_share([each.last for each in made])], last),
        report.measured(f"{name}/last10ms/connections", "connections", [sum(each.last.established for each in made)]),
        report.measured(f"{name}/outage_ms", "ms", [each.outage_ms for each in made]),
        report.measured(f"{name}/two_owners", "count", [sum(each.two_owners for each in made)], 0),
        report.measured(f"{name}/reused", "count", [sum(each.reused for each in made)], again),
    ]


def _share(parts: list[Survival]) -> float:
    """Of all together, %."""
    return 100 * Survival(sum(each.established for each in parts), sum(each.alive for each in parts)).share


# --- the backup ---------------------------------------------------------------------------------------------------------------


def _two_servers(quick: bool, told: Told) -> list[Result]:
    """A cluster whose pool is as full as it is to be; first the backup's troubles, then the link's."""
    turns, seconds = (1, 4) if quick else (5, 10)
    connections = _people(QUICK_BLOCKS).subscribers * PORTS_EACH
    sizes = Sizes(connections, datagrams=STREAM * int(2 * turns * (FROZEN_S + 10) + 60))
    with scene(NAME, _wanted(QUICK_BLOCKS, WAYS[0]), sizes, _people(QUICK_BLOCKS), told) as here:
        here.until_synced()
        here.generator.open(_full(QUICK_BLOCKS), RATE // 2)
        here.generator.wait(OPEN)
        here.until_synced()
        return _backup(here, turns, told) + _partition(here, seconds, told)


def _backup(here: Scene, turns: int, told: Told) -> list[Result]:
    here.generator.stream(STREAM)
    backup = str(here.shard(here.owner())["passive"])
    told(f"the backup, {backup}, is frozen for {FROZEN_S:g} s")
    with sleepless(told):
        frozen = [_frozen(here, backup) for _ in range(turns)]
        told("the backup is killed and started again")
        killed = [_killed(here, backup)]
    for kind in (STREAM_OUT, STREAM_IN):
        here.generator.halt(kind)
    return [
        report.measured("failover/backup/frozen/way_ratio", "x", [each.ratio for each in frozen], 0.98),
        report.measured("failover/backup/frozen/lost", "count", [sum(each.lost for each in frozen)], 0),
        report.measured("failover/backup/frozen/resync_s", "s", [each.resync_s for each in frozen]),
        report.measured("failover/backup/killed/way_ratio", "x", [each.ratio for each in killed]),
        report.measured("failover/backup/killed/lost", "count", [sum(each.lost for each in killed)], 0),
        report.measured("failover/backup/killed/resync_s", "s", [each.resync_s for each in killed]),
    ]


class Away(NamedTuple):
    """What it was without a backup for a while. `ratio`: time under way before, by that meanwhile."""

    ratio: float
    lost: int
    resync_s: float


def _frozen(here: Scene, backup: str) -> Away:
    before = _way(here, FROZEN_S)
    with faults.frozen(here.lab, backup):
        meanwhile = _way(here, FROZEN_S)
    resync_s = here.until_synced()
    return Away(before[0] / meanwhile[0], before[1] + meanwhile[1], resync_s)


def _killed(here: Scene, backup: str) -> Away:
    before = _way(here, 1.0)
    faults.kill(here.lab, backup, "core")
    meanwhile = _way(here, 1.0)
    faults.start(here.lab, backup)
    resync_s = here.until_synced()
    return Away(before[0] / meanwhile[0], before[1] + meanwhile[1], resync_s)


def _way(here: Scene, seconds: float) -> tuple[float, int]:
    """Median time under way of the stream for a while, ns, and how many of it were lost."""
    began = time.monotonic_ns()
    time.sleep(seconds)
    ended = time.monotonic_ns()
    time.sleep(0.2)
    ways, lost = [], 0
    for rows in (here.generator.ledger.out, here.generator.ledger.into):
        some = rows[(rows["sent"] >= began) & (rows["sent"] < ended)]
        came = some[some["times"] > 0]
        lost += len(some) - len(came)
        ways.append(float(np.median(came["came"] - came["sent"])))
    return statistics.fmean(ways), lost


# --- a partition --------------------------------------------------------------------------------------------------------------


def _partition(here: Scene, seconds: int, told: Told) -> list[Result]:
    ledger = here.generator.ledger
    told(f"a partition for {seconds} s")
    _apart(here, seconds, (len(ledger.connections) - _full(QUICK_BLOCKS)) // seconds)
    healed = here.until_synced()
    differing = _verify(here)
    told("every connection is asked")
    living = survival(ledger.connections, ask_until_settled(here.generator), 0, time.monotonic_ns())
    return [
        report.measured("failover/partition/two_owners", "count", [owners(ledger)], 0),
        report.measured("failover/partition/differing", "count", [differing], 0),
        report.measured("failover/partition/resync_s", "s", [healed]),
        report.measured("failover/partition/alive", "%", [100 * living.share]),
        report.measured("failover/partition/connections", "connections", [living.established]),
    ]


def _apart(here: Scene, seconds: int, rate: int) -> None:
    """Both servers get the shard's packets, one second each, and cannot hear each other."""
    steering.partition(here.lab.namespace, "s1")
    here.generator.open(rate * seconds, rate)
    with Hand(here.tor) as hand:
        for second in range(seconds):
            hand.steer([0], ("s2/0", "s1/0")[second % 2])
            time.sleep(1)
    here.generator.wait(OPEN)
    steering.heal(here.lab.namespace, "s1")
    steering.steer(here.tor, 0, here.owner() or "s1/0")


def _verify(here: Scene) -> int:
    """Rows in which the copies differ, as `krononat shard verify` says; Trouble where it could not compare them."""
    owner = here.owner().partition("/")[0]
    return len(verify.differing(here.lab.krononat("shard", "verify", "0", "-o", "json", node=owner)))


failover = report.command("failover", KIND, run, "The primary dies, the backup sleeps, the link between them is cut.")

if __name__ == "__main__":
    failover()
