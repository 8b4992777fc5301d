"""`krononat fabric`: what the switches around the cores must be told."""

from __future__ import annotations

from pathlib import Path

import click

from krononat.cli.groups import Group
from krononat.client import NOT_FOUND, Trouble

KINDS = ("bird", "frr", "arista", "cisco", "sonic")


@click.group(cls=Group)
def fabric() -> None:
    """What the switches around the cores must be told."""


@fabric.command(epilog="Example: krononat fabric show --tor frr --switch a --domain inside /etc/krononat/*.toml")
@click.argument("configs", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--tor", type=click.Choice(KINDS), default="bird", show_default=True, help="Kind of switch; the first two are tested."
)
@click.option("--switch", "name", metavar="LETTER", help="Which one: a has the lowest AS; default: all.")
@click.option("--domain", type=click.Choice(("inside", "outside", "both")), help="Which domain of it; default: all.")
@click.option("--domains", type=click.IntRange(1, 2), default=2, show_default=True, help="Routing domains (VRFs) of a switch.")
@click.option("--rules", is_flag=True, help="Print the rules of Linux that go with it (`ip -batch`), not the configuration.")
def show(configs: tuple[Path, ...], tor: str, name: str | None, domain: str | None, domains: int, rules: bool) -> None:
    """Print what switches must be told for the cores of these CONFIGS: sessions, what is believed of them, steering, its floor.

    Uplinks and the ports' own names are yours to add.
    """
    from importlib import import_module

    from krononat import fabric as fabrics
    from krononat.config import load
    from routing.fabric import instances
    from routing.fabric import rules as rules_of

    told = fabrics.of([load(path) for path in configs], domains)
    there = [one for switch in told.switches for one in instances(told, switch)]
    wanted = [one for one in there if name in (None, one.switch.name) and domain in (None, one.domain)]
    if not wanted:
        names = ", ".join(f"{one.switch.name} {one.domain}" for one in there)
        raise Trouble("there is no such domain of a switch", "", f"there are: {names}", NOT_FOUND)
    for one in wanted:
        text = "\n".join(rules_of(told, one)) if rules else import_module(f"routing.{tor}").render(told, one)
        click.echo(text.rstrip())
