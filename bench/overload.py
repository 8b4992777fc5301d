"""`krononat bench overload`: a core gets twice what it can take, for half a minute. Who notices?

Two servers of one core. The flooded core has the last CPU, a sixth of it: five processes compute beside it, else the other CPU
could not send twice what it takes. That other CPU has the flood, the other core, the generator, the switches and every kernel's
forwarding. For three seconds the core gets as much as can be sent; then it gets twice what it took. What is seen is as `bench
events` has it, with

    events/overload/forwarded      of the flood and all else, by that core
    events/overload/ring_full      frames for which its data ring had no room, by the kernel's count
    events/overload/refused_share  % of what came to it that found no room: 50 where it gets twice what it can take
    events/overload/bfd_downs      of its BFD sessions
    events/overload/bgp_downs      of its server's BGP sessions
    events/overload/promotions     shards whose authority is another one afterwards
"""

from __future__ import annotations

from bench import report
from bench.cluster.happenings import overload
from bench.events import show
from bench.report import Result, Told
from krononat.lab.cluster import Wanted

KIND = "veth"
WANTED = Wanted(2, 4, sessions=100_000, tor="bird", apart=True)


def run(quick: bool, told: Told) -> list[Result]:
    """Once."""
    results = show(WANTED, [overload(10.0 if quick else 30.0)], 1, told, programs=False)
    return [*results, *_shares(results)]


def _shares(results: list[Result]) -> list[Result]:
    by_name = {each.name: each.value for each in results}
    forwarded, full = (by_name[f"events/overload/{name}"] for name in ("forwarded", "ring_full"))
    return [report.measured("events/overload/refused_share", "%", [100 * full / max(full + forwarded, 1)], 45)]


overload_bench = report.command(
    "overload", KIND, run, "Twice what a core can take: BGP, BFD and the others go on.", failing="failed"
)

if __name__ == "__main__":
    overload_bench()
