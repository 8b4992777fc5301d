"""`krononat lab`: up, status, exec, traffic, down, and the whole demonstration."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from krononat.cli.groups import Group
from krononat.cli.output import output_option, print_json, print_rows
from krononat.lab import faults, namespaces, steering
from krononat.lab.cluster import SERVERS_AT_MOST, SHARDS_AT_MOST, Wanted
from krononat.lab.laboratory import NAME, Lab
from krononat.lab.topology import TOPOLOGIES

Command = TypeVar("Command", bound=Callable[..., Any])


def _checked(_: click.Context, __: click.Parameter, name: str) -> str:
    """The name becomes part of namespaces, files and folders that are deleted again."""
    if not re.fullmatch(NAME, name):
        raise click.BadParameter(f"{name!r} is no name for a laboratory: a small letter, then at most nine of a-z 0-9 -")
    return name


name_option = click.option(
    "--name", default="kn", show_default=True, metavar="WORD", callback=_checked, help="Prefix of the namespaces' names."
)


@click.group(cls=Group)
def lab() -> None:
    """Clients, the appliance and an Internet in network namespaces of this machine, with real traffic."""


@lab.command(epilog="Example: krononat lab up && krononat lab exec c1 -- curl http://198.51.100.10/")
@name_option
@click.option(
    "--topology",
    "kind",
    type=click.Choice((*TOPOLOGIES, "cluster")),
    default="router",
    show_default=True,
    help="What is built.",
)
@click.option("--servers", type=click.IntRange(1, SERVERS_AT_MOST), default=3, show_default=True, help="Of a cluster.")
@click.option("--shards", type=click.IntRange(1, SHARDS_AT_MOST), default=12, show_default=True, help="Of a cluster.")
@click.option("--appliance/--no-appliance", default=True, help="Whether to start it, or leave that to you.")
def up(name: str, kind: str, servers: int, shards: int, appliance: bool) -> None:
    """Build a laboratory, clearing away what an earlier run of the same name left."""
    built = Lab.of_cluster(name, Wanted(servers, shards)) if kind == "cluster" else Lab(name, TOPOLOGIES[kind])
    built.up(appliance, tell=lambda told: click.echo(told, err=True))
    suffix = "" if name == "kn" else f" --name {name}"
    click.echo(f"up; next: krononat lab status{suffix}, krononat lab exec{suffix} c1 -- ping 198.51.100.10", err=True)
    for node in () if appliance else built.topology.appliances:
        words = f"krononat lab exec{suffix} {node} -- krononat run -c {built.config_of(node)}"
        click.echo(f"start it with: {words}", err=True)


@lab.command(epilog="Example: krononat lab status -o json")
@name_option
@output_option()
def status(name: str, form: str) -> None:
    """What runs where: a line for every node, and for every shard of a cluster where its packets go."""
    found = Lab.find(name)
    rows = found.nodes()
    places = steering.places(found.namespace["tor"], found.wanted) if found.wanted else []
    shards = [place._asdict() for place in places]
    if form == "json":
        told = {"name": name, "topology": found.topology.name, "config": str(found.config), "nodes": rows}
        print_json(told | ({"shards": shards} if found.wanted else {}))
        return
    print_rows(rows, ("node", "namespace", "addresses", "processes"), form)
    if shards:
        print_rows(shards, steering.Place._fields, form)
    for node in found.topology.appliances:
        click.echo(f"control socket of the appliance in {node}: {found.socket_of(node)}", err=True)


@lab.command("exec", context_settings={"ignore_unknown_options": True}, epilog="Example: krononat lab exec c1 -- ip route")
@name_option
@click.argument("node")
@click.argument("words", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(name: str, node: str, words: tuple[str, ...]) -> None:
    """Run a command in a node; its exit status is ours."""
    found = Lab.find(name)
    line = namespaces.inside(found.namespace_of(node), words)
    socket = found.socket_of(node if node in found.topology.appliances else found.first)
    os.execvpe(line[0], line, {**os.environ, "PATH": namespaces.PATH, "KRONONAT_SOCKET": str(socket)})


@lab.command(epilog="Example: krononat lab traffic ping route")
@name_option
@output_option()
@click.argument("kinds", nargs=-1)
def traffic(name: str, form: str, kinds: tuple[str, ...]) -> None:
    """Make real traffic, all KINDS or those named, and say what came of it; exit status 1 if anything failed."""
    from krononat.lab import traffic as making

    found = Lab.find(name)
    here = making.kinds(found)
    unknown = [kind for kind in kinds if kind not in here]
    if unknown:
        raise click.UsageError(f"no kind of traffic here: {', '.join(unknown)}; there are: {', '.join(here)}")
    outcomes = [here[kind](found) for kind in kinds or here]
    print_rows([outcome._asdict() for outcome in outcomes], ("name", "held", "told"), form)
    sys.exit(not all(outcome.held for outcome in outcomes))


# --- of a cluster -----------------------------------------------------------------------------------------------------------


@lab.command(epilog="Example: krononat lab steer 3 s2/0 --first inbound")
@name_option
@click.argument("shard", type=int)
@click.argument("core", metavar="SERVER/CORE")
@click.option("--only", type=click.Choice(steering.DIRECTIONS), help="Move this direction, and leave the other one.")
@click.option("--first", type=click.Choice(steering.DIRECTIONS), default=steering.OUTBOUND, help="Which of both is first.")
def steer(name: str, shard: int, core: str, only: str | None, first: str) -> None:
    """Have the router send the packets of SHARD to another core: one route for each direction, changed in one step each."""
    found = Lab.find(name)
    steering.check(faults.of(found), shard, core)
    both = sorted(steering.DIRECTIONS, key=lambda direction: direction != first)
    steering.steer(found.namespace["tor"], shard, core, (only,) if only else both)


@lab.command(epilog="Example: krononat lab partition s1 && sleep 10 && krononat lab heal s1")
@name_option
@click.argument("server")
@click.option("--shunts/--no-shunts", default=True, help="Whether to cut the way of shunted packets, too.")
def partition(name: str, server: str, shunts: bool) -> None:
    """Cut SERVER off from the other servers; subscribers and Internet reach it as before."""
    found = Lab.find(name)
    steering.partition(found.namespace, faults.node(found, server), shunts)


@lab.command(epilog="Example: krononat lab heal s1")
@name_option
@click.argument("server")
def heal(name: str, server: str) -> None:
    """End a partition."""
    found = Lab.find(name)
    steering.heal(found.namespace, faults.node(found, server))


@lab.command(epilog="Example: krononat lab kill s1/0 --what core && krononat lab start s1/0")
@name_option
@click.argument("core", metavar="SERVER/CORE")
@click.option("--what", type=click.Choice(faults.WHATS), default="worker", show_default=True, help="The worker, or all.")
def kill(name: str, core: str, what: str) -> None:
    """Kill (-9) the worker of a core, or all of the core."""
    killed = faults.kill(Lab.find(name), core, what)
    click.echo(f"killed: {' '.join(map(str, killed))}", err=True)


@lab.command(epilog="Example: krononat lab freeze s2/0 --seconds 5")
@name_option
@click.argument("core", metavar="SERVER/CORE")
@click.option("--what", type=click.Choice(faults.WHATS), default="core", show_default=True, help="The worker, or all.")
@click.option("--seconds", type=click.FloatRange(0, 3600), default=5.0, show_default=True, help="For how long.")
def freeze(name: str, core: str, what: str, seconds: float) -> None:
    """Stop a core (SIGSTOP) for a while: nothing is closed, nothing answers."""
    with faults.frozen(Lab.find(name), core, what):
        time.sleep(seconds)


@lab.command(epilog="Example: krononat lab start s1/0")
@name_option
@click.argument("core", metavar="SERVER/CORE")
def start(name: str, core: str) -> None:
    """Start a core that was killed."""
    faults.start(Lab.find(name), core)


# --- all of it --------------------------------------------------------------------------------------------------------------


@lab.command(epilog="Example: krononat lab down")
@name_option
def down(name: str) -> None:
    """End every process of the laboratory and remove its namespaces and files."""
    Lab.find(name).down()


@lab.command(epilog="Example: krononat lab demo --report report")
@name_option
@click.option(
    "--report", type=click.Path(path_type=Path, file_okay=False), default=Path("report"), help="Folder for its proof."
)
def demo(name: str, report: Path) -> None:
    """Laboratory up, all traffic, every packet accounted for, the worker killed, down again; exit status 0 only if all held."""
    from krononat.lab import demo as demonstration

    sys.exit(not demonstration.run(name, report))
