"""`krononat plan`: a cluster on paper, before there is one."""

from __future__ import annotations

from typing import Any, get_args

import click

from krononat import plan as planning
from krononat.cli.output import output_option, print_facts, print_json
from krononat.plan import CORES_AT_MOST, SERVERS_AT_MOST, SHARDS_AT_MOST, Size
from routing.announcements import Preference


@click.command(epilog="Example: krononat plan --shards 1024 --servers 8 --cores 40 -o json")
@click.option("--shards", type=click.IntRange(1, SHARDS_AT_MOST), required=True, help="Parts of the subscribers.")
@click.option("--servers", type=click.IntRange(2, SERVERS_AT_MOST), required=True, help="Servers, alike.")
@click.option("--cores", type=click.IntRange(1, CORES_AT_MOST), required=True, help="Cores of each.")
@click.option("--switches", type=click.IntRange(1, 8), default=2, show_default=True, help="Switches that every server is on.")
@click.option("--domains", type=click.IntRange(1, 2), default=2, show_default=True, help="Routing domains of a switch.")
@click.option(
    "--preference", type=click.Choice(get_args(Preference)), default="med", show_default=True, help="`bgp.preference`."
)
@click.option(
    "--rooms", type=click.IntRange(1, 16), default=1, show_default=True, help="Both copies of a shard are in one, reserves not."
)
@output_option()
def plan(
    shards: int, servers: int, cores: int, switches: int, domains: int, preference: Preference, rooms: int, form: str
) -> None:
    """Where shards would be, what moves when a server comes or goes, what the worst core has when one dies, what is announced.

    Computed, not measured: shards count the same. Nothing here needs a cluster, or makes one.
    """
    if servers * cores > CORES_AT_MOST:
        raise click.BadParameter(f"{servers} servers of {cores} cores are more than {CORES_AT_MOST}", param_hint="--cores")
    if servers < 2 * rooms:
        told = f"{servers} servers are too few for {rooms} rooms: both copies of a shard are in one, on two servers"
        raise click.BadParameter(told, param_hint="--rooms")
    found = planning.report(Size(shards, servers, cores, switches, domains, preference, rooms))
    print_json(found) if form == "json" else print_facts(_flat(found))


def _flat(told: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Facts in one column: `placement.idle_cores`; a span of two numbers as 3-4."""
    facts: dict[str, Any] = {}
    for key, value in told.items():
        name = f"{above}{key}"
        if isinstance(value, dict):
            facts |= _flat(value, f"{name}.")
        else:
            facts[name] = "-".join(map(str, dict.fromkeys(value))) if isinstance(value, list) else value
    return facts
