"""`krononat lab`: up, status, exec, traffic, down, and the whole demonstration."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from krononat.cli.groups import Group
from krononat.cli.output import output_option, print_json, print_rows
from krononat.lab import namespaces
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
@click.option("--topology", type=click.Choice(tuple(TOPOLOGIES)), default="router", show_default=True, help="What is built.")
@click.option("--appliance/--no-appliance", default=True, help="Whether to start it, or leave that to you.")
def up(name: str, topology: str, appliance: bool) -> None:
    """Build a laboratory, clearing away what an earlier run of the same name left."""
    built = Lab(name, TOPOLOGIES[topology])
    built.up(appliance, tell=lambda told: click.echo(told, err=True))
    suffix = "" if name == "kn" else f" --name {name}"
    click.echo(f"up; next: krononat lab status{suffix}, krononat lab exec{suffix} c1 -- ping 198.51.100.10", err=True)
    if not appliance:
        click.echo(f"start it with: krononat lab exec{suffix} nat -- krononat run -c {built.config}", err=True)


@lab.command(epilog="Example: krononat lab status -o json")
@name_option
@output_option()
def status(name: str, form: str) -> None:
    """What runs where: a line for every node."""
    found = Lab.find(name)
    rows = found.nodes()
    if form == "json":
        print_json({"name": name, "topology": found.topology.name, "config": str(found.config), "nodes": rows})
    else:
        print_rows(rows, ("node", "namespace", "addresses", "processes"), form)
        click.echo(f"control socket of the appliance: {found.socket}", err=True)


@lab.command("exec", context_settings={"ignore_unknown_options": True}, epilog="Example: krononat lab exec c1 -- ip route")
@name_option
@click.argument("node")
@click.argument("words", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(name: str, node: str, words: tuple[str, ...]) -> None:
    """Run a command in a node; its exit status is ours."""
    found = Lab.find(name)
    line = namespaces.inside(found.namespace_of(node), words)
    os.execvpe(line[0], line, {**os.environ, "PATH": namespaces.PATH, "KRONONAT_SOCKET": str(found.socket)})


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


@lab.command()
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
