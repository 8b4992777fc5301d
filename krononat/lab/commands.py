"""`krononat lab`: up, status, exec, traffic, down, and the whole demonstration."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from krononat.cli.groups import Group
from krononat.cli.output import output_option, print_json, print_rows
from krononat.client import Trouble
from krononat.lab import (
    chaos,
    clock_commands,
    cluster_commands,
    graph,
    leaks,
    legs,
    namespaces,
    overview,
    scenario_commands,
    steering,
)
from krononat.lab.cluster import SERVERS_AT_MOST, SHARDS_AT_MOST, STATIC, TORS, Wanted
from krononat.lab.laboratory import Lab, ending_in_order
from krononat.lab.names import name_option
from krononat.lab.topology import TOPOLOGIES, home


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
    help="What is built; `cluster` if --tor says who routes.",
)
@click.option("--servers", type=click.IntRange(1, SERVERS_AT_MOST), default=3, show_default=True, help="Of a cluster.")
@click.option("--shards", type=click.IntRange(1, SHARDS_AT_MOST), default=12, show_default=True, help="Of a cluster.")
@click.option("--cores", type=click.IntRange(1, legs.CORES_AT_MOST), help="Of each server; default: 1. More need --tor bird.")
@click.option("--tor", type=click.Choice(TORS), help="The switches: BIRD, FRR, or routes by hand (`lab steer`).")
@click.option("--tors", type=click.IntRange(1, 2), default=1, show_default=True, help="How many switches, in an AS each.")
@click.option(
    "--rooms", type=click.IntRange(1, 2), default=1, show_default=True, help="The second one is the first one's reserve."
)
@click.option("--domains", type=click.IntRange(1, 2), default=2, show_default=True, help="Routing domains of a switch.")
@click.option("--preference", default="med", show_default=True, help="How the primary's routes are preferred, as [bgp] has it.")
@click.option("--bfd-ms", type=click.IntRange(0, 1000), default=50, show_default=True, help="Interval of BFD; 0: none.")
@click.option("--six/--no-six", default=False, help="IPv6 beside it: subscribers' prefixes are announced and steered, too.")
@click.option("--etcd/--no-etcd", default=False, help="Whether etcd holds the map of the cluster, or a file.")
@click.option("--appliance/--no-appliance", default=True, help="Whether to start it, or leave that to you.")
def up(name: str, kind: str, tor: str | None, cores: int | None, appliance: bool, **more: Any) -> None:
    """Build a laboratory, clearing away what an earlier run of the same name left."""
    if tor or cores or kind == "cluster":
        wanted = Wanted(cores=cores or 1, tor=tor or (STATIC if (cores or 1) == 1 else "bird"), **more)
        built = _of_cluster(name, wanted)
    else:
        built = Lab(name, TOPOLOGIES[kind])
    with ending_in_order():
        built.up(appliance, tell=lambda told: click.echo(told, err=True))
    suffix = "" if name == "kn" else f" --name {name}"
    click.echo(f"up; next: krononat lab status{suffix}, krononat lab exec{suffix} c1 -- ping 198.51.100.10", err=True)
    for label in () if appliance else built.topology.appliances:
        words = f"krononat lab exec{suffix} {home(label)} -- krononat run -c {built.config_of(label)}"
        click.echo(f"start it with: {words}", err=True)


def _of_cluster(name: str, wanted: Wanted) -> Lab:
    try:
        return Lab.of_cluster(name, wanted)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


@lab.command(epilog="Example: krononat lab status -o json")
@name_option
@output_option()
def status(name: str, form: str) -> None:
    """What runs where: a line for every node, and for every shard of a cluster where its packets go, and who says so."""
    found = Lab.find(name)
    rows = found.nodes()
    told = {"name": name, "topology": found.topology.name, "config": str(found.config), "nodes": rows} | _of(found)
    if form == "json":
        print_json(told)
        return
    print_rows(rows, ("node", "namespace", "addresses", "processes"), form)
    for key in ("shards", "sessions"):
        if told.get(key):
            click.echo()
            print_rows(told[key], tuple(told[key][0]), form)
    for key in ("broken", "untranslated"):
        if key in told:
            click.echo(f"{key}: {told[key] or ('nothing' if told[key] == [] else told[key])}", err=True)
    for label in found.topology.appliances:
        click.echo(f"control socket of the appliance {label}: {found.socket_of(label)}", err=True)


def _of(found: Lab) -> dict[str, Any]:
    """What there is to say of a cluster."""
    if found.wanted is None:
        return {}
    if not found.wanted.routed:
        return {"shards": [place._asdict() for place in steering.places(found.namespace["tor"], found.wanted)]}
    seen = overview.look(found)
    return {
        "shards": [place._asdict() for place in overview.places(found.wanted, seen)],
        "sessions": [session._asdict() for session in overview.sessions(found, seen)],
        "broken": [f"{kind} {what}" for kind, what in chaos.broken(found)],
        "untranslated": leaks.counted(found),
    }


@lab.command("graph", epilog="Example: krononat lab graph -o cluster.svg")
@name_option
@click.option("-o", "--output", "path", type=click.Path(dir_okay=False, path_type=Path), help="File; default: print it.")
def graph_(name: str, path: Path | None) -> None:
    """Draw a cluster as an SVG picture: nodes, links, who has which shard, what is broken."""
    found = Lab.find(name)
    if found.wanted is None or not found.wanted.routed:
        raise Trouble(f'the laboratory "{name}" has no switches', "", "krononat lab up --tor bird")
    places = overview.places(found.wanted, overview.look(found))
    text = graph.draw(found.wanted, places, chaos.broken(found), leaks.counted(found))
    if path is None:
        click.echo(text, nl=False)
    else:
        path.write_text(text)
        click.echo(f"{path}: {len(text):,} bytes", err=True)


@lab.command("exec", context_settings={"ignore_unknown_options": True}, epilog="Example: krononat lab exec c1 -- ip route")
@name_option
@click.argument("node")
@click.argument("words", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(name: str, node: str, words: tuple[str, ...]) -> None:
    """Run a command in a node; its exit status is ours."""
    found = Lab.find(name)
    line = namespaces.inside(found.namespace_of(node), words)
    socket = found.socket_of(found.label_in(node))
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


for command in (clock_commands.clock, scenario_commands.scenario, *cluster_commands.ALL):
    lab.add_command(command)


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
