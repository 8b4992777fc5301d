"""`krononat bench events`: what happens to a cluster whose switches route by themselves, and what its users notice of it.

Three servers, twelve shards, switches with BIRD (`--tor frr`: with FRR), real ExaBGP, BFD at 50 ms x 3. A numbered
stream of 10,000 datagrams a second each way goes through all shards, 2,000 new TCP connections a second are opened, and
everyday programs (iperf3 at 50 Mbit/s, curl, scp, ssh, a call over UDP) use shard 0. Then things happen, one by one; each
time all is well again before the next one. What is hit are the shards of the core that has shard 0, or all of them where it is
a switch. `--tors 2`: two switches in two ASes, two servers of one core, four shards, and what befalls switches.

    events/NAME/lost         datagrams of the hit shards that never came; those of the others in events/NAME/others_lost
    events/NAME/outage_ms    longest silence of a hit shard, of the worse direction; of a single flow where all are hit
    events/NAME/back/...     the same of the time from when it is set right (the killed server started, the link up again) on
    events/NAME/older        % of the connections established more than 10 ms before that answer afterwards
    events/NAME/last10ms     % of those established in the last 10 ms; who connected in the last 50 ms says more after it
    events/NAME/routing_ms   from the first change of a route in the switches to the last one, where it happened
    events/NAME/split        shards that have not exactly one authority afterwards
    events/NAME/failed       how often it could not be made to happen at all (a refused move, say): told, and exit status 1
    events/un_natted         packets on the Internet's side that nobody had translated, in all of it
    events/two_owners        external endpoints that two internal ones had, both of them alive
    events/reused            of connections that were lost with their last owner: endpoints that others had later on
    events/broken            runs of programs that failed, in all of it

Figures on veth are functional: the cores' CPUs have the generator, all switches and programs, too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import click
import numpy as np

from bench import report
from bench.cluster import losses
from bench.cluster.generator import ask_until_settled
from bench.cluster.happenings import ALL, CORE, SERVER, Happening, graceful, hard, harmless, stored, twofold
from bench.cluster.ledger import ASK, OPEN, STREAM_IN, STREAM_OUT, Sizes
from bench.cluster.programs import Programs
from bench.cluster.routes import Watch, watch
from bench.cluster.scene import People, Scene, scene, until
from bench.cluster.stillness import Stillness
from bench.cluster.stream import Awake, Survival, awake, became, owners, silence_ms, survival
from bench.report import Result, Told
from krononat.client import NOT_FOUND, Trouble
from krononat.lab import cluster, leaks, overview
from krononat.lab.cluster import Wanted
from shards.state import Array

KIND = "veth"
NAME = "kev"
ONE = Wanted(3, 12, apart=True)
# MEDs do not count between two ASes (docs/routing.md). A switch has twice the daemons and sessions: so fewer cores.
TWO = Wanted(2, 4, tors=2, preference="longest-prefix", apart=True)
CPUS_FOR_TWO = 8  # where there are so many, servers have two cores each: all else wants two more CPUs than the cores
RATE, OPENED, ASKED = 10_000, 2_000, 10_000
FLOWS = 8  # of a shard
BEFORE_S, AFTER_S = 1.0, 1.0
OLDER_NS, LAST_NS, AROUND_NS = 10_000_000_000, 10_000_000, 50_000_000
SETTLE_S = 60.0
_TRIES, _AGAIN_S = 3, 0.2  # of a client: the least retransmission timeout of Linux
_LONG_MS, _STORY = 50.0, 60  # a silence that is explained; by so many changed routes
_EACH_S = 40  # at most, for the room of the ledger


class Heard(NamedTuple):
    """What became of the streams in a span of time. `losers`: the shards of which something was lost, told."""

    lost: int
    others_lost: int
    outage_ms: float
    losers: tuple[str, ...] = ()


class Noticed(NamedTuple):
    """What was noticed of one happening. `back`: while it was set right, where that is something of its own."""

    heard: Heard
    back: Heard | None
    older: Survival
    last: Survival
    routing_ms: float
    settled_s: float
    split: int
    counted: dict[str, float]
    failed: bool = False


def run(
    quick: bool, told: Told, tor: str = "bird", tors: int = 1, only: tuple[str, ...] = (), cores: int | None = None
) -> list[Result]:
    """All that may happen, or what is named."""
    happenings = all_of(tor, tors)
    unknown = set(only) - {each.name for each in happenings}
    if unknown:
        known = ", ".join(each.name for each in happenings)
        raise Trouble(f"nothing is called {', '.join(sorted(unknown))}", "", f"there are: {known}", NOT_FOUND)
    chosen = [each for each in happenings if not only or each.name in only]
    etcd = any(each.name == "etcd" for each in chosen)
    return show(wanted(tor, tors, cores)._replace(etcd=etcd), chosen, 1 if quick else 5, told)


def all_of(tor: str, tors: int) -> tuple[Happening, ...]:
    """What may happen where there are so many switches."""
    return twofold() if tors == 2 else (*graceful(), *hard(tor), *harmless(tor), *stored())


def wanted(tor: str, tors: int = 1, cores: int | None = None) -> Wanted:
    """The cluster that it happens to; `cores` of a server: as many as this machine has CPUs for, where nobody says."""
    fitting = 2 if tors == 1 and len(os.sched_getaffinity(0)) >= CPUS_FOR_TWO else 1
    return (TWO if tors == 2 else ONE)._replace(tor=tor, cores=cores or fitting, sessions=200_000)


def show(cluster: Wanted, happenings: Sequence[Happening], times: int, told: Told, programs: bool = True) -> list[Result]:
    """These, each so many times, in one laboratory."""
    seconds = _EACH_S + times * sum(_EACH_S + int(each.takes_s) for each in happenings)
    with ExitStack() as stack:
        here = stack.enter_context(stage(cluster, seconds, told))
        used = stack.enter_context(Programs(here.lab)) if programs else None
        routes = stack.enter_context(watch(here))
        stillness = stack.enter_context(Stillness())
        results: list[Result] = []
        for each in happenings:
            results += _figures(each, [_happen(here, routes, stillness, each, told) for _ in range(times)])
        return [*results, *_in_all(here, used)]


@contextmanager
def stage(cluster: Wanted, seconds: int, told: Told) -> Iterator[Scene]:
    """The cluster, the stream through all its shards, and connections; room for so many seconds of them."""
    sizes = Sizes(OPENED * seconds, datagrams=RATE * seconds, flows=FLOWS * cluster.shards)
    with scene(NAME, cluster, sizes, People(tuple(range(cluster.shards)), 64, 200), told) as here:
        _until_well(here)  # the start of the generator itself may have kept a CPU for longer than BFD waits
        here.generator.stream(RATE)
        yield here


# --- one ----------------------------------------------------------------------------------------------------------------------


def _happen(here: Scene, routes: Watch, stillness: Stillness, each: Happening, told: Told) -> Noticed:
    _until_well(here)
    core = each.whose(here)
    mine = _shards_of(here, core, each.hits)
    told(f"{each.name}: {each.told} ({core}, shards {', '.join(map(str, mine))})")
    here.generator.pace((OPEN,), OPENED)
    time.sleep(BEFORE_S)
    counted, places = each.counts(here, core), losses.lost(here)
    before = time.monotonic_ns()
    struck, failed = _tried(lambda: each.act(here, core), each.name, told)
    began = struck or before
    routing_ms = routes.span_ms(before)
    if each.routing_ms and not routing_ms and not failed:
        raise Trouble(f"{each.name}: no route of a switch has changed", "then nothing was moved, or nothing was seen of it")
    _say_more(here, began)
    time.sleep(each.lasts_s)
    mended = time.monotonic_ns() if each.lasts_s else None
    _, left = _tried(lambda: each.undo(here, core), each.name, told)
    settled_s = _until_well(here)
    more = {name: count - counted[name] for name, count in each.counts(here, core).items()}
    time.sleep(AFTER_S)
    here.generator.halt(OPEN)
    split = sum(len(here.authorities(shard)) != 1 for shard in range(here.wanted.shards))
    heard = _heard(here, mine, began, mended, each.hits)
    for which, span in zip((each.name, f"{each.name}/back"), heard, strict=True):
        if span and span.losers:
            told(f"{which}: lost of {'; of '.join(span.losers)}")
    if any(span and (span.others_lost or span.outage_ms > _LONG_MS) for span in heard):
        still_ms = max(stillness.longest_ms(before, time.monotonic_ns()).values())
        _explain(each, losses.told(losses.lost(here) - places, still_ms), routes.story(before), told)
    return Noticed(*heard, *_survived(here, mine, began), routing_ms, settled_s, split, more, failed or left)


def _explain(each: Happening, places: str, story: list[str], told: Told) -> None:
    """Where frames may have ended, and what became of the routes."""
    for line in (f"{each.name}: {places}", *story[:_STORY]):
        told(line)


def _say_more(here: Scene, began: int) -> None:
    """Those who had just connected say something more, as a client does, and again where that is not answered."""
    opened = here.generator.ledger.connections["opened"]
    young = np.flatnonzero((opened >= began - AROUND_NS) & (opened < began))
    turned = here.generator.rounds
    for _ in range(_TRIES if len(young) else 0):
        here.generator.ask(turned, OPENED, int(young[0]), int(young[-1]) + 1)
        here.generator.wait(ASK)
        time.sleep(_AGAIN_S)


def _tried(work: Callable[[], int | None], name: str, told: Told) -> tuple[int | None, bool]:
    """What it gives, and whether it failed: why is told then, and what others notice is measured all the same."""
    try:
        return work(), False
    except Trouble as trouble:
        told(f"{name} has failed: {trouble.what}: {trouble.why}")
        return None, True


def _until_well(here: Scene) -> float:
    """Wait until all is announced and in sync; seconds."""
    lacks: list[str] = []

    def well() -> bool:
        lacks[:] = overview.lacks(here.lab)
        return not lacks

    try:
        return until(well, "the cluster does not get well", SETTLE_S, 0.2)
    except Trouble as trouble:
        raise Trouble(trouble.what, f"{trouble.why}: {'; '.join(lacks[:4])}") from None


def _shards_of(here: Scene, core: str, hits: str) -> list[int]:
    """Shards that are hit: the core's, those of all cores of its server, or all."""
    names = cluster.cores(here.wanted)
    beside = [name for name in names if cluster.node_of(name) == cluster.node_of(core)]
    hit = {CORE: [core], SERVER: beside, ALL: names}[hits]
    return [shard for shard in range(here.wanted.shards) if any(name in hit for name in here.authorities(shard))]


def _heard(here: Scene, mine: Sequence[int], began: int, mended: int | None, hits: str) -> tuple[Heard, Heard | None]:
    """What became of the streams meanwhile, and from when it was set right on."""
    ended = time.monotonic_ns()
    time.sleep(0.1)
    if mended is None:
        return _between(here, mine, began - AROUND_NS, ended, hits), None
    return _between(here, mine, began - AROUND_NS, mended, hits), _between(here, mine, mended, ended, hits)


def _between(here: Scene, mine: Sequence[int], since: int, until: int, hits: str) -> Heard:
    ledger, shards = here.generator.ledger, here.wanted.shards
    rest = [shard for shard in range(shards) if shard not in mine]
    both = ledger.out, ledger.into
    hit, others = ([became(_of(part, some, shards), since, until) for part in both] for some in (mine, rest))
    # Where all are hit some flows do not use what has failed: theirs would hide the others' silence. So would another shard's.
    each, of = (range(FLOWS * shards), FLOWS * shards) if hits == ALL else (mine, shards)
    clocks = [(part, awake(part)) for part in both]
    outage_ms = max(silence_ms(_of(part, [one], of), clock, since, until) for part, clock in clocks for one in each)
    told = (_losers(way, *one, shards, since, until) for way, one in zip(("outward", "inward"), clocks, strict=True))
    losers = tuple(line for lines in told for line in lines)
    return Heard(sum(part.lost for part in hit), sum(part.lost for part in others), outage_ms, losers)


def _losers(way: str, datagrams: Array, clock: Awake, shards: int, since: int, until: int) -> Iterator[str]:
    """What was lost of each shard, this way."""
    for shard in range(shards):
        mine = _of(datagrams, [shard], shards)
        if lost := became(mine, since, until).lost:
            flows = sum(became(mine[flow::FLOWS], since, until).lost > 0 for flow in range(FLOWS))
            silent = silence_ms(mine, clock, since, until)
            yield f"shard {shard} {way} {lost}, of {flows} flows (silent for {silent:.1f} ms)"


def _survived(here: Scene, mine: Sequence[int], began: int) -> tuple[Survival, Survival]:
    """Of the hit shards' connections: those that were older when it happened, and those that were not 10 ms old."""
    connections = here.generator.ledger.connections
    # Those of all happenings before, asked at once, would be more than cores can serve beside the stream: none would answer.
    first = int(np.argmax(connections["established"] >= began - OLDER_NS))
    turned = ask_until_settled(here.generator, ASKED, first=first)
    some = _of(connections, mine, here.wanted.shards)
    older = survival(some, turned, began - OLDER_NS, began - LAST_NS)
    return older, survival(some, turned, began - LAST_NS, began)


def _of(rows: Array, chosen: Sequence[int], of: int) -> Array:
    """Rows of these shards or flows: number n is of n % (how many there are)."""
    return rows[np.isin(np.arange(len(rows)) % of, chosen)]


# --- figures ----------------------------------------------------------------------------------------------------------------


def _figures(each: Happening, noticed: Sequence[Noticed]) -> list[Result]:
    name = f"events/{each.name}"
    older = [100 * one.older.share for one in noticed]
    last = [one.last for one in noticed]
    routing_ms = [one.routing_ms for one in noticed if not one.failed]
    return [
        *_of_streams(name, [one.heard for one in noticed], each.lost, each.outage_ms),
        *_of_streams(f"{name}/back", [one.back for one in noticed if one.back], 0, None),
        report.measured(f"{name}/older", "%", older, 100),
        report.measured(f"{name}/older/connections", "connections", [sum(one.older.established for one in noticed)]),
        report.measured(f"{name}/last10ms", "%", [_share(last)], 99 if any(one.established for one in last) else None),
        report.measured(f"{name}/last10ms/connections", "connections", [sum(one.established for one in last)]),
        *([report.measured(f"{name}/routing_ms", "ms", routing_ms, each.routing_ms)] if routing_ms else []),
        report.measured(f"{name}/settled_s", "s", [one.settled_s for one in noticed]),
        report.measured(f"{name}/split", "count", [sum(one.split for one in noticed)], 0),
        report.measured(f"{name}/failed", "count", [sum(one.failed for one in noticed)], 0),
        *(
            report.measured(f"{name}/{what}", "count", [one.counted[what] for one in noticed], each.goals.get(what))
            for what in noticed[0].counted
        ),
    ]


def _of_streams(name: str, heard: Sequence[Heard], lost: float | None, outage_ms: float | None) -> Iterator[Result]:
    if heard:
        yield report.measured(f"{name}/lost", "count", [sum(one.lost for one in heard)], lost)
        yield report.measured(f"{name}/others_lost", "count", [sum(one.others_lost for one in heard)], 0)
        yield report.measured(f"{name}/outage_ms", "ms", [one.outage_ms for one in heard], outage_ms)


def _share(parts: Sequence[Survival]) -> float:
    return 100 * Survival(sum(each.established for each in parts), sum(each.alive for each in parts)).share


def _in_all(here: Scene, programs: Programs | None) -> list[Result]:
    for kind in (STREAM_OUT, STREAM_IN):
        here.generator.halt(kind)
    both = owners(here.generator.ledger, alive=True)
    counted = leaks.counted(here.lab)
    if counted is None:
        raise Trouble("nobody counts untranslated packets any more", "the counter in the Internet's router has ended")
    return [
        report.measured("events/un_natted", "count", [counted], 0),
        report.measured("events/two_owners", "count", [both], 0),
        report.measured("events/reused", "count", [owners(here.generator.ledger) - both]),
        report.measured("events/lost_at_our_ends", "count", [here.lost_at_our_ends()]),
        *(_of_programs(programs) if programs else ()),
    ]


def _of_programs(programs: Programs) -> Iterator[Result]:
    programs.end_call()
    for each in programs.broken():
        click.echo(f"{each.kind}: {each.wrong}", err=True)
    yield report.measured("events/broken", "count", [len(programs.broken())], 0)
    yield report.measured("events/programs", "programs", [len(programs.ended)])


_TOR = click.Option(
    ["--tor"], type=click.Choice(["bird", "frr"]), default="bird", show_default=True, help="The switches' daemon."
)

_TORS = click.Option(["--tors"], type=click.IntRange(1, 2), default=1, show_default=True, help="Switches, each in its own AS.")
_ONLY = click.Option(["--only"], multiple=True, metavar="NAME", help="Have only this happen; may be repeated.")

CORES = click.Option(
    ["--cores"], type=click.IntRange(1, 4), help=f"Cores of a server; by itself 2 on {CPUS_FOR_TWO} CPUs and more, else 1."
)

_OWN = (_TOR, _TORS, _ONLY, CORES)

events = report.command("events", KIND, run, "What happens to a cluster, and what its users notice of it.", _OWN, "failed")

if __name__ == "__main__":
    events()
