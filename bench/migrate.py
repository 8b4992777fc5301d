"""`krononat bench migrate`: a shard goes round three servers, again and again, under a million sessions and traffic.

A numbered stream of 10,000 datagrams a second each way, 20,000 TCP connections, a million UDP sessions, and everyday programs
(iperf3 at 50 Mbit/s, downloads by curl, copies by scp) are the shard's. Each move goes to the next server, and the router's
routes follow it, outbound first and inbound first by turns, a tenth of a second apart. Then every connection and every session
is asked whether it lives, at the same external endpoint.

    migrate/moves          moves that were made; each took migrate/duration_ms
    migrate/lost           datagrams of the stream that never came; beside it those that came twice or late, and how many
                           frames of any kind found no room at the generator's own ends (lost_at_our_ends)
    migrate/gap_ms         longest silence of the stream in each move, less what of it the generator itself slept (it sends and
                           sees nothing then); its goal is the longest of the ten calm seconds before each move, and 5 ms: as
                           many calm spans as moves, since of more of either a longer one is seen
    migrate/calm/gap_ms    that of these ten seconds each (`--quick`: three, before each tenth move)
    migrate/within         moves whose gap was no longer than that goal; .../within_own: than its own ten seconds' and 5 ms
    migrate/longest_gap_ms  the longest of them all; .../pause_ms: for how long its cores let nobody create
    migrate/silence_ms     the silences as they were; migrate/sender_ms: longest time in each move that nothing was sent
    migrate/still_ms       the longest that one of our CPUs stood still in each move; 0: for less than 20 ms
    migrate/broken         programs, connections and sessions that did not outlive it, by kind in migrate/broken/...
    migrate/50k/...        the same at 50,000 datagrams a second, for a few moves more, as information

`--count N` makes N moves. With `--tor bird|frr` no hand moves the routes: the cores tell switches with that daemon by BGP.
Figures on veth are functional; two CPUs have the generator, three cores and all programs.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import click
import numpy as np

from bench import report
from bench.cluster import losses
from bench.cluster.generator import ask_until_settled
from bench.cluster.ledger import OPEN, RESIDENTS, STREAM_IN, STREAM_OUT, Sizes
from bench.cluster.moving import Moved, move, watched
from bench.cluster.programs import Programs
from bench.cluster.routes import Watch, watch
from bench.cluster.scene import People, Scene, scene
from bench.cluster.stillness import Stillness
from bench.cluster.stream import owners, survival
from bench.report import Result, Told
from krononat.lab import cluster
from krononat.lab.cluster import STATIC, TORS, Wanted
from krononat.lab.steering import Hand

KIND = "veth"
NAME = "kmi"
MOVES, QUICK_MOVES, MORE_MOVES = 100, 3, 5
SESSIONS, QUICK_SESSIONS = 1_000_000, 100_000
CONNECTIONS = 20_000
RATE, MORE_RATE = 10_000, 50_000
BEFORE_S, QUICK_BEFORE_S = 10.0, 3.0
GAP_MS = 5.0
_A_MOVE_S = 15  # at most, for the room of the ledger
_EACH, _QUICK_EACH = 1, 10  # moves, of which the first has calm seconds before it
_STORY = 60  # changed routes that are told of a move that has lost something
_PEOPLE = People((0,), 1700, 440)  # an owner's side of the pool: 7 of 8 blocks, of each 448 ports of 512
_LASTING = "[timeouts]\nudp = 7000\n"  # a hundred moves take longer than the 300 s of an unused UDP session


class Calm(NamedTuple):
    """So many seconds without a move, before each so manieth move."""

    seconds: float
    each: int


def run(quick: bool, told: Told, count: int | None = None, tor: str = STATIC) -> list[Result]:
    """All moves, then the question who lives."""
    wanted = count or (QUICK_MOVES if quick else MOVES)
    sessions = QUICK_SESSIONS if quick else SESSIONS
    calm = Calm(QUICK_BEFORE_S, _QUICK_EACH) if quick else Calm(BEFORE_S, _EACH)
    seconds = int(calm.seconds * (1 + wanted // calm.each) + _A_MOVE_S * wanted) + 60
    more = 0 if quick else MORE_MOVES
    sizes = Sizes(CONNECTIONS, sessions, RATE * seconds + MORE_RATE * _A_MOVE_S * more)
    room = sessions + 4 * CONNECTIONS
    with scene(NAME, Wanted(3, 1, sessions=room, more=_LASTING, tor=tor, apart=True), sizes, _PEOPLE, told) as here:
        _fill(here, told)
        with Programs(here.lab) as programs:
            results = _moves(here, wanted, calm, told)
            results += _faster(here, more, told)
        told("every connection and session is asked")
        ours = report.measured("migrate/lost_at_our_ends", "count", [here.lost_at_our_ends()])
        return [*results, ours, *_broken(here, programs)]


def _fill(here: Scene, told: Told) -> None:
    told(f"{len(here.generator.ledger.residents):,} sessions, {CONNECTIONS:,} connections")
    here.until_synced()
    here.populate()
    here.generator.open(CONNECTIONS, 10_000)
    here.generator.wait(OPEN)
    here.until_synced()


def _moves(here: Scene, count: int, calm: Calm, told: Told) -> list[Result]:
    here.generator.stream(RATE)
    before: list[float] = []  # by move

    def between(number: int) -> None:
        before.append(before[-1] if number % calm.each else _calm(here, calm.seconds, told))

    made = _round(here, count, told, between)
    here.generator.halt(STREAM_OUT)
    here.generator.halt(STREAM_IN)
    goal = max(before) + GAP_MS
    within = sum(each.longest_gap_ms <= goal for each in made)
    own = sum(each.longest_gap_ms <= gap_ms + GAP_MS for each, gap_ms in zip(made, before, strict=True))
    return [
        *_figures("migrate", made, count, goal),
        report.measured("migrate/within", "moves", [within], count),
        report.measured("migrate/within_own", "moves", [own]),
        report.measured("migrate/calm/gap_ms", "ms", before[:: calm.each]),
    ]


def _calm(here: Scene, seconds: float, told: Told) -> float:
    """Longest gap while nothing moves, ms. A machine's bad minute is neither the moves' alone nor these seconds'."""
    told(f"{seconds:g} s without a move")
    time.sleep(0.2)
    began = time.monotonic_ns()
    time.sleep(seconds)
    return max(each.longest_gap_ms for each in watched(here, began, time.monotonic_ns()))


def _faster(here: Scene, count: int, told: Told) -> list[Result]:
    if not count:
        return []
    here.generator.pace((STREAM_OUT, STREAM_IN), MORE_RATE)
    made = _round(here, count, told, lambda number: None)
    here.generator.halt(STREAM_OUT)
    here.generator.halt(STREAM_IN)
    return [_unaimed(result) for result in _figures("migrate/50k", made, count, None)]


def _round(here: Scene, count: int, told: Told, between: Callable[[int], None]) -> list[Moved]:
    """So many moves, and before each, which is told its number, what is between them."""
    cores, routed = cluster.cores(here.wanted), here.wanted.routed
    made: list[Moved] = []
    with contextlib.ExitStack() as undoing:
        hand = None if routed else undoing.enter_context(Hand(here.tor))
        stillness = undoing.enter_context(Stillness())
        routes = undoing.enter_context(watch(here) if routed else Watch([]))
        for number in range(count):
            between(number)
            target = cores[(cores.index(here.owner()) + 1) % len(cores)]
            told(f"move {number + 1} of {count}, to {target}; {sum(each.lost for each in made)} lost so far")
            before, began = losses.lost(here), time.monotonic_ns()
            moved = move(here, hand, 0, target, inbound_first=number % 2 == 1)
            made.append(moved._replace(still_ms=max(stillness.longest_ms(began, time.monotonic_ns()).values())))
            _tell(made[-1], losses.lost(here) - before, routes.story(began), told)
    return made


def _tell(moved: Moved, places: Counter[str], story: list[str], told: Told) -> None:
    """What was lost, where that may have been, and what became of the routes then."""
    told(_where(moved, places))
    for line in story[:_STORY] if moved.lost else []:
        told(line)


def _where(moved: Moved, places: Counter[str]) -> str:
    where = losses.told(places, moved.still_ms)
    return f"{moved.lost} datagrams lost (out {moved.out.lost}, in {moved.into.lost}); {where}"


def _figures(name: str, made: list[Moved], count: int, gap_ms: float | None) -> list[Result]:
    sent = sum(each.out.sent + each.into.sent for each in made)
    lost = sum(each.lost for each in made)
    twice = sum(each.out.duplicated + each.into.duplicated for each in made)
    late = sum(each.out.late + each.into.late for each in made)
    loss = lost / max(sent, 1)
    worst = max(made, key=lambda each: each.longest_gap_ms)
    return [
        report.measured(f"{name}/moves", "moves", [len(made)], count),
        report.measured(f"{name}/lost", "count", [lost], 0, loss),
        report.measured(f"{name}/duplicated", "count", [twice]),
        report.measured(f"{name}/late", "count", [late]),
        report.measured(f"{name}/gap_ms", "ms", [each.longest_gap_ms for each in made], gap_ms, loss),
        report.measured(f"{name}/longest_gap_ms", "ms", [worst.longest_gap_ms], gap_ms, loss),
        report.measured(f"{name}/longest_gap/pause_ms", "ms", [worst.told["pause_ms"]]),
        report.measured(f"{name}/silence_ms", "ms", [each.longest_silence_ms for each in made]),
        report.measured(f"{name}/sender_ms", "ms", [each.longest_pause_ms for each in made]),
        report.measured(f"{name}/still_ms", "ms", [each.still_ms for each in made]),
        report.measured(f"{name}/pause_ms", "ms", [each.told["pause_ms"] for each in made]),
        report.measured(f"{name}/duration_ms", "ms", [each.told["duration_ms"] for each in made]),
        report.measured(f"{name}/sessions", "sessions", [statistics.median(each.told["sessions"] for each in made)]),
        report.measured(f"{name}/shunted", "packets", [each.told["shunted"] for each in made]),
    ]


def _unaimed(result: Result) -> Result:
    return Result(result.name, result.value, result.unit, result.low, result.high, loss=result.loss)


def _broken(here: Scene, programs: Programs) -> list[Result]:
    ledger = here.generator.ledger
    living = survival(ledger.connections, ask_until_settled(here.generator), 0, time.monotonic_ns())
    turned = int(ledger.residents["round"].max())
    for _ in range(4):
        here.generator.populate(turned, 40_000)
        here.generator.wait(RESIDENTS)
    broken = {
        "programs": len(programs.broken()),
        "connections": living.established - living.alive,
        "sessions": int(np.sum((ledger.residents["round"] <= turned) | (ledger.residents["moved"] > 0))),
        "two_owners": owners(ledger),
    }
    for each in programs.broken():
        click.echo(f"{each.kind}: {each.wrong}", err=True)
    results = [report.measured(f"migrate/broken/{kind}", "count", [count], 0) for kind, count in broken.items()]
    asked = {"programs": len(programs.ended), "connections": living.established, "sessions": len(ledger.residents)}
    results += [report.measured(f"migrate/asked/{kind}", kind, [count]) for kind, count in asked.items()]
    return [report.measured("migrate/broken", "count", [sum(broken.values())], 0), *results]


_COUNT = click.Option(["--count"], type=click.IntRange(1, 10_000), help="How many moves.")
_TOR = click.Option(["--tor"], type=click.Choice(TORS), default=STATIC, show_default=True, help="Who moves the routes.")

migrate = report.command("migrate", KIND, run, "A shard moved again and again under traffic.", (_COUNT, _TOR))

if __name__ == "__main__":
    migrate()
