"""`krononat bench rooms`: a whole room is lost, another one serves its shards from nothing, and the room comes back.

Room A (two servers) has all shards, room B (one server) no copy of any: it announces wider prefixes, and steps in when packets
come by them. A numbered stream of 4,000 datagrams a second each way goes through all shards, 1,000 new TCP connections a second
are opened. Then the room is lost, `--how room`: every process is killed, and kernels close what was open, if they get to it in
time; `--how blackout`: it has no power, nothing is closed; `--how dead`: the same, where reserves take a silent room for dead
(`silent-room`). Later it starts again, copies what B has, and gets its shards back (`krononat server undrain`).

    rooms/HOW/new_ms         from the loss until new connections come up again: to the end of the last 50 ms in which more than
                             one in a hundred did not
    rooms/HOW/outage_ms      longest silence of the stream, of the worse direction, until the room comes back
    rooms/HOW/rebuilt        % of the older connections that answer from where they were, rebuilt by their next packet
    rooms/HOW/lost           datagrams of the stream that never came, until the room comes back
    rooms/HOW/back/lost      and from its start until all is where it was
    rooms/HOW/back/older     % of the connections that B opened, or rebuilt, which answer afterwards
    rooms/HOW/back/early     times that the room was seen to announce a shard of which it had no complete copy
    rooms/HOW/split          shards that have not exactly one authority afterwards
    rooms/HOW/two_owners     external endpoints that two internal ones had, both of them alive
    rooms/HOW/un_natted      packets on the Internet's side that nobody had translated

Figures on veth are functional: two CPUs have the generator, three cores and all switches.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

import click
import numpy as np

from bench import report
from bench.cluster.generator import ask_until_settled
from bench.cluster.happenings import operate
from bench.cluster.ledger import OPEN, STREAM_IN, STREAM_OUT, Ledger, Sizes
from bench.cluster.scene import People, Scene, scene, until
from bench.cluster.stream import Became, Survival, became, owners, survival
from bench.report import Result, Told
from krononat.client import Trouble
from krononat.lab import chaos, cluster, leaks, overview
from krononat.lab.cluster import Wanted
from shards.state import Array

KIND = "veth"
NAME = "kro"
WANTED = Wanted(3, 4, tor="bird", rooms=2, sessions=200_000)
HOWS = {"room": ("room", ""), "blackout": ("blackout", ""), "dead": ("blackout", 'silent-room = "dead"')}
LOST, LEFT = cluster.ROOMS
RATE, OPENED = 4_000, 1_000
BEFORE_S, SERVED_S, AFTER_S = 2.0, 3.0, 1.0
NEW_MS = 1000.0
SETTLE_S = 90.0
_SECONDS = 240  # of traffic, for the room of the ledger
_BIN_NS = 50_000_000


class Noticed(NamedTuple):
    """What was noticed of one loss and return."""

    new_ms: float
    gone: tuple[Became, Became]  # outbound, inbound, until the room came back
    rebuilt: Survival
    back: tuple[Became, Became]
    older: Survival
    early: int
    split: int
    settled_s: float


def run(quick: bool, told: Told, how: tuple[str, ...] = ()) -> list[Result]:
    """Each way of losing a room, once; where it is to be quick and nothing is named, only the first."""
    chosen = how or tuple(HOWS)[: 1 if quick else None]
    return [result for each in chosen for result in _figures(each, told)]


def _figures(how: str, told: Told) -> Iterator[Result]:
    sizes = Sizes(OPENED * _SECONDS, datagrams=RATE * _SECONDS, flows=8 * WANTED.shards)
    wanted = WANTED._replace(more=HOWS[how][1])
    with scene(NAME, wanted, sizes, People(tuple(range(WANTED.shards)), 64, 200), told) as here:
        here.generator.stream(RATE)
        noticed = _lose(here, how, told)
        for kind in (STREAM_OUT, STREAM_IN):
            here.generator.halt(kind)
        counted = leaks.counted(here.lab)
        if counted is None:
            raise Trouble("nobody counts untranslated packets any more", "the counter in the Internet's router has ended")
        yield from _of(f"rooms/{how}", noticed)
        yield report.measured(f"rooms/{how}/two_owners", "count", [owners(here.generator.ledger, alive=True)], 0)
        yield report.measured(f"rooms/{how}/un_natted", "count", [counted], 0)


def _of(name: str, noticed: Noticed) -> Iterator[Result]:
    yield report.measured(f"{name}/new_ms", "ms", [noticed.new_ms], NEW_MS)
    yield report.measured(f"{name}/outage_ms", "ms", [max(part.longest_gap_ms for part in noticed.gone)])
    yield report.measured(f"{name}/lost", "count", [sum(part.lost for part in noticed.gone)])
    yield report.measured(f"{name}/rebuilt", "%", [100 * noticed.rebuilt.share])
    yield report.measured(f"{name}/rebuilt/connections", "connections", [noticed.rebuilt.established])
    yield report.measured(f"{name}/back/lost", "count", [sum(part.lost for part in noticed.back)], 0)
    yield report.measured(f"{name}/back/older", "%", [100 * noticed.older.share], 100)
    yield report.measured(f"{name}/back/older/connections", "connections", [noticed.older.established])
    yield report.measured(f"{name}/back/early", "count", [noticed.early], 0)
    yield report.measured(f"{name}/back/settled_s", "s", [noticed.settled_s])
    yield report.measured(f"{name}/split", "count", [noticed.split], 0)


# --- one loss -----------------------------------------------------------------------------------------------------------------


def _lose(here: Scene, how: str, told: Told) -> Noticed:
    told(f"{how}: room {LOST} is lost")
    ledger = here.generator.ledger
    here.generator.pace((OPEN,), OPENED)
    time.sleep(BEFORE_S)
    kind, _ = HOWS[how]
    began = chaos.fail(here.lab, kind, LOST)
    until(lambda: all(_room(here, shard) == LEFT for shard in range(WANTED.shards)), f"room {LEFT} does not step in", 30.0)
    time.sleep(SERVED_S)
    here.generator.halt(OPEN)
    served = time.monotonic_ns()
    turned = ask_until_settled(here.generator)
    rebuilt = survival(ledger.connections, turned, began - int(BEFORE_S * 1e9), began)
    new_ms = new_connections_ms(ledger, began, served)
    told(f"{how}: room {LOST} is back")
    returning = time.monotonic_ns()
    early, settled_s = _return(here, kind)
    done = time.monotonic_ns()
    time.sleep(AFTER_S)
    turned = ask_until_settled(here.generator)
    older = survival(ledger.connections, turned, began + int(NEW_MS * 1e6), returning)
    split = sum(len(here.authorities(shard)) != 1 for shard in range(WANTED.shards))
    gone, back = _both(ledger, began - _BIN_NS, returning), _both(ledger, returning, done)
    return Noticed(new_ms, gone, rebuilt, back, older, early, split, settled_s)


def _both(ledger: Ledger, since: int, end: int) -> tuple[Became, Became]:
    return became(ledger.out, since, end), became(ledger.into, since, end)


def new_connections_ms(ledger: Ledger, began: int, served: int) -> float:
    """From the loss until all but one in a hundred of the connections opened in each 50 ms came up; all of it if none did."""
    rows = ledger.connections[(ledger.connections["opened"] >= began) & (ledger.connections["opened"] < served)]
    bins = (rows["opened"] - began) // _BIN_NS
    bad = [number for number in range(int(bins.max(initial=-1)) + 1) if _failed(rows["established"][bins == number])]
    return (max(bad) + 1) * _BIN_NS / 1e6 if bad else 0.0


def _failed(established: Array) -> bool:
    return bool(len(established)) and float(np.mean(established > 0)) < 0.99


def _room(here: Scene, shard: int) -> str:
    owner = here.owner(shard)
    return cluster.room_of(WANTED, owner) if owner else ""


def _return(here: Scene, kind: str) -> tuple[int, float]:
    """Start the room, wait for its copies, give it its shards; (times it announced too early, seconds until all is well)."""
    began = time.monotonic()
    chaos.heal(here.lab, kind, LOST)
    early = 0

    def copied() -> bool:
        nonlocal early
        early += _announced_early(here)
        return all(here.is_synced(shard) for shard in range(WANTED.shards))

    until(copied, f"room {LOST} does not get its copies", SETTLE_S, 0.2)
    for server in cluster.servers_of(WANTED, LOST):
        operate(here, "server", "undrain", server, "--yes")
    until(lambda: _is_home(here), f"the shards do not get home to room {LOST}", SETTLE_S, 0.2)
    return early, time.monotonic() - began


def _announced_early(here: Scene) -> int:
    """Shards that a core of the lost room announces, and had no complete copy of, before we looked and afterwards."""
    before = _incomplete(here)
    places = overview.places(WANTED, overview.look(here.lab)) if before else []
    after = _incomplete(here) if places else set()
    words = {place.shard: place.told_inside + place.told_outside for place in places}
    return sum(f"{core} " in words[shard] for core, shard in before & after)


def _incomplete(here: Scene) -> set[tuple[str, int]]:
    found = set()
    for core in cluster.cores_of(WANTED, LOST):
        for shard in range(WANTED.shards):
            with suppress(Trouble):
                if here.shard(core, shard)["role"] in ("joining", "syncing"):
                    found.add((core, shard))
    return found


def _is_home(here: Scene) -> bool:
    """Whether every shard is where the map means it to be, its copy too, and the switches know."""
    for shard in range(WANTED.shards):
        owner = here.owner(shard)
        if owner != cluster.first_core(WANTED, shard):
            return False
        row = here.shard(owner, shard)
        if row["passive"] != cluster.backup_of(WANTED, shard) or not row["in_sync"]:
            return False
    return not overview.lacks(here.lab)


_HOW = click.Option(["--how"], multiple=True, type=click.Choice(tuple(HOWS)), help="Have only this happen; may be repeated.")

rooms = report.command("rooms", KIND, run, "A whole room is lost, and comes back: what its users notice.", (_HOW,))

if __name__ == "__main__":
    rooms()
