"""`krononat lab`, of a cluster: who gets which shard, and what befalls cores, links and switches."""

from __future__ import annotations

import time

import click

from krononat.client import Trouble
from krononat.lab import chaos, faults, steering
from krononat.lab.laboratory import Lab
from krononat.lab.names import name_option


@click.command(epilog="Example: krononat lab steer 3 s2/0 --first inbound")
@name_option
@click.argument("shard", type=int)
@click.argument("core", metavar="SERVER/CORE")
@click.option("--only", type=click.Choice(steering.DIRECTIONS), help="Move this direction, and leave the other one.")
@click.option("--first", type=click.Choice(steering.DIRECTIONS), default=steering.OUTBOUND, help="Which of both is first.")
def steer(name: str, shard: int, core: str, only: str | None, first: str) -> None:
    """Have the router send the packets of SHARD to another core: one route for each direction, changed in one step each."""
    found = Lab.find(name)
    if faults.of(found).routed:
        raise Trouble("here the switches route by themselves", "", f"krononat shard migrate {shard} {core}")
    steering.check(faults.of(found), shard, core)
    both = sorted(steering.DIRECTIONS, key=lambda direction: direction != first)
    steering.steer(found.namespace["tor"], shard, core, (only,) if only else both)


_KINDS = "; ".join(f"{name}: {kind.told}" for name, kind in chaos.KINDS.items())


@click.command(epilog=_KINDS)
@name_option
@click.argument("kind", type=click.Choice(tuple(chaos.KINDS)), metavar="KIND")
@click.argument("what", metavar="NAME")
def fail(name: str, kind: str, what: str) -> None:
    """Have something happen to a cluster whose switches route: KIND is what, NAME to whom (s1, s1/0, s1.in0, a, ain…)."""
    chaos.fail(Lab.find(name), kind, what)


@click.command(epilog="Example: krononat lab heal link s1.in0, krononat lab heal, krononat lab heal s1")
@name_option
@click.argument("kind", required=False)
@click.argument("what", metavar="[NAME]", required=False)
def heal(name: str, kind: str | None, what: str | None) -> None:
    """Undo `fail KIND NAME`; without KIND all that is broken; with the name of a server alone its partition."""
    found = Lab.find(name)
    if kind is None:
        click.echo(f"healed: {', '.join(chaos.heal_all(found)) or 'nothing was broken'}", err=True)
    elif what is None:
        _reunite(found, kind)
    elif kind not in chaos.KINDS:
        raise click.UsageError(f"no kind {kind!r}; there are: {', '.join(chaos.KINDS)}")
    else:
        chaos.heal(found, kind, what)


def _reunite(found: Lab, server: str) -> None:
    if faults.of(found).routed:
        chaos.heal(found, "partition", server)
    else:
        steering.heal(found.namespace, faults.node(found, server))


@click.command(epilog="Example: krononat lab partition s1 && sleep 10 && krononat lab heal s1")
@name_option
@click.argument("server", metavar="SERVER|switches")
@click.option("--shunts/--no-shunts", default=True, help="With static steering: cut the way of shunted packets, too.")
def partition(name: str, server: str, shunts: bool) -> None:
    """Cut SERVER off from the other servers; subscribers and Internet reach it as before. `switches`: them off each other."""
    found = Lab.find(name)
    if faults.of(found).routed:
        chaos.fail(found, "partition", server)
    else:
        steering.partition(found.namespace, faults.node(found, server), shunts)


@click.command(epilog="Example: krononat lab kill s1/0 --what core && krononat lab start s1/0")
@name_option
@click.argument("core", metavar="SERVER/CORE")
@click.option("--what", type=click.Choice(faults.WHATS), default="worker", show_default=True, help="The worker, or all.")
def kill(name: str, core: str, what: str) -> None:
    """Kill (-9) the worker of a core, or all of the core."""
    killed = faults.kill(Lab.find(name), core, what)
    click.echo(f"killed: {' '.join(map(str, killed))}", err=True)


@click.command(epilog="Example: krononat lab freeze s2/0 --seconds 5")
@name_option
@click.argument("core", metavar="SERVER/CORE")
@click.option("--what", type=click.Choice(faults.WHATS), default="core", show_default=True, help="The worker, or all.")
@click.option("--seconds", type=click.FloatRange(0, 3600), default=5.0, show_default=True, help="For how long.")
def freeze(name: str, core: str, what: str, seconds: float) -> None:
    """Stop a core (SIGSTOP) for a while: nothing is closed, nothing answers."""
    with faults.frozen(Lab.find(name), core, what):
        time.sleep(seconds)


@click.command(epilog="Example: krononat lab start s1/0")
@name_option
@click.argument("core", metavar="SERVER/CORE")
def start(name: str, core: str) -> None:
    """Start a core that was killed."""
    faults.start(Lab.find(name), core)


ALL = (steer, fail, heal, partition, kill, freeze, start)
