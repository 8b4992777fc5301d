"""`krononat server`: the cores of a cluster by server; empty one before it is stopped, fill it again afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from krononat import client
from krononat.cli.groups import Group
from krononat.cli.moves import View, carry_out_all, dry_run_option, look, timeout_option, yes_option
from krononat.cli.output import output_option, print_rows, socket_option
from replication import placement
from replication.placement import Move, server_of

COLUMNS = ("server", "cores", "alive", "active", "passive", "sessions")
CORES = ("core", "evidence", "endpoint", "active", "passive", "sessions")


@click.group(cls=Group)
def server() -> None:
    """Show servers, empty one, fill it again."""


@server.command("list", epilog="Example: krononat server list")
@output_option("jsonl")
@socket_option
def list_(form: str, socket: str | None) -> None:
    """Every server in a line: its cores, those alive, the shards that they have and keep copies of."""
    cores = look(socket).cores
    names = sorted({server_of(row["core"]) for row in cores})
    print_rows([_sum(name, [row for row in cores if server_of(row["core"]) == name]) for name in names], COLUMNS, form)


def _sum(name: str, cores: Sequence[dict[str, Any]]) -> dict[str, Any]:
    alive = sum(row["evidence"] == "alive" for row in cores)
    counted = {key: sum(row[key] for row in cores) for key in ("active", "passive", "sessions")}
    return {"server": name, "cores": len(cores), "alive": alive, **counted}


@server.command(epilog="Example: krononat server show s1")
@click.argument("name", metavar="SERVER")
@output_option()
@socket_option
def show(name: str, form: str, socket: str | None) -> None:
    """The cores of a server."""
    print_rows(_cores(look(socket), name), CORES, form)


@server.command(epilog="Example: krononat server drain s1 --dry-run")
@click.argument("name", metavar="SERVER")
@yes_option
@dry_run_option
@timeout_option
@output_option()
@socket_option
def drain(name: str, yes: bool, dry_run: bool, timeout_s: float, form: str, socket: str | None) -> None:
    """Move every shard off a server, so that stopping it costs no packet.

    A shard goes to its backup, which has all of it already; where it has none, to the core with the fewest sessions.
    """
    view = look(socket)
    _cores(view, name)
    found = _planned(lambda: placement.drain(view.places(), view.alive(), name, view.loads()))
    carry_out_all(view, found, yes, dry_run, timeout_s, form)
    if not dry_run:
        _conclude(look(socket), name)


def _conclude(view: View, name: str) -> None:
    """Say whether the server can be stopped, and what is without a backup then."""
    left = [row["shard"] for row in view.shards if row["active"] and server_of(row["active"]) == name]
    if left:
        told = f"it still has: {', '.join(map(str, left))}"
        raise client.Trouble(f"{name} is not empty", told, f"krononat server drain {name}", client.PARTIAL)
    click.echo(f"krononat: {name} has no shard any more: it is safe to stop", err=True)
    bare = sum(bool(row["passive"]) and server_of(row["passive"]) == name for row in view.shards)
    if bare:
        click.echo(f"krononat: {bare} shards have their copy there, and no backup while it is away", err=True)


@server.command(epilog="Example: krononat server undrain s1 --yes")
@click.argument("name", metavar="SERVER")
@yes_option
@dry_run_option
@timeout_option
@output_option()
@socket_option
def undrain(name: str, yes: bool, dry_run: bool, timeout_s: float, form: str, socket: str | None) -> None:
    """Move the shards back whose primary, by the map, is a core of this server."""
    view = look(socket)
    _cores(view, name)
    meant = {row["shard"]: row["primary"] for row in view.shards}
    found = _planned(lambda: placement.undrain(view.places(), meant, view.alive(), name))
    carry_out_all(view, found, yes, dry_run, timeout_s, form)


def _planned(make: Callable[[], list[Move]]) -> list[Move]:
    try:
        return make()
    except placement.Impossible as error:
        raise client.Trouble("there is no such plan", str(error), "krononat shard list") from None


def _cores(view: View, name: str) -> list[dict[str, Any]]:
    found = [row for row in view.cores if server_of(row["core"]) == name]
    if not found:
        told = ", ".join(sorted({server_of(row["core"]) for row in view.cores}))
        raise client.Trouble(f"there is no server {name!r}", f"there is {told}", "krononat server list", client.NOT_FOUND)
    return found
