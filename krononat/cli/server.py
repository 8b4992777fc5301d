"""`krononat server`: the cores of a cluster by server; empty one before it is stopped, fill it again afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from krononat import client
from krononat.cli import mapping
from krononat.cli.groups import Group
from krononat.cli.moves import (
    EVERY_S,
    View,
    agree,
    carry_out_all,
    dry_run_option,
    look,
    measured,
    settled,
    steps_of,
    timeout_option,
    yes_option,
)
from krononat.cli.output import output_option, print_rows, socket_option
from replication import layout, placement
from replication.layout import Step
from replication.placement import server_of

Plan = TypeVar("Plan")

COLUMNS = ("server", "cores", "alive", "active", "passive", "sessions")
CORES = ("core", "evidence", "endpoint", "active", "passive", "sessions")


@click.group(cls=Group)
def server() -> None:
    """Show servers, empty one, fill it again, have one join or leave."""


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

    First the network is told to prefer whoever else has a shard, and to take copies that are here last (GRACEFUL_SHUTDOWN,
    RFC 8326); `undrain` takes that back. What the server has the authority of meanwhile goes on coming to it.

    A shard goes to its backup, which has all of it already; where it has none, to the core with the fewest sessions.
    """
    view, rooms = look(socket), mapping.rooms(socket)
    _cores(view, name)
    found = steps_of(_planned(lambda: placement.drain(view.places(), view.alive(), name, view.loads(), rooms)))
    _carry_out(view, found, yes, dry_run, timeout_s, form, socket, "server drain", lambda: _mark(view, name, True))
    if not dry_run:
        _conclude(look(socket), name)


def _carry_out(
    view: View,
    found: Sequence[Step],
    yes: bool,
    dry_run: bool,
    timeout_s: float,
    form: str,
    socket: str | None,
    what: str,
    first: Callable[[], None],
) -> None:
    """Have it agreed to and carried out. The map stays: what is drained comes home by it."""
    if settled(found, yes, dry_run, form):
        with mapping.right_to_move(socket, what) as (_, lock):
            first()
            carry_out_all(view, found, timeout_s, form, lambda: mapping.held(lock))


def _mark(view: View, name: str, on: bool) -> None:
    """Have the routes of a server's cores marked, or no more; whom we cannot ask here we tell of, and nothing fails by that."""
    for row in _cores(view, name):
        if row["evidence"] == "alive":
            try:
                client.ask(view.path(row["core"], f"the routes of {row['core']}"), {"do": "drain", "on": on})
            except client.Trouble as trouble:
                click.echo(f"krononat: the routes of {row['core']} stay as they are: {trouble.told()}", err=True)


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
    found = steps_of(_planned(lambda: placement.undrain(view.places(), meant, view.alive(), name)))
    if not found and not dry_run:
        _mark(view, name, False)
    _carry_out(view, found, yes, dry_run, timeout_s, form, socket, "server undrain", lambda: _mark(view, name, False))


@server.command(epilog="Example: krononat server join s4 --map new.toml --dry-run")
@click.argument("name", metavar="SERVER")
@click.option("--map", "file", type=click.Path(path_type=Path), help="A newer map that has its cores: gone by first.")
@click.option(
    "--over", "over_s", type=click.FloatRange(0.1), default=1.0, show_default=True, metavar="S", help="Count packets so long."
)
@yes_option
@dry_run_option
@timeout_option
@output_option()
@socket_option
def join(
    name: str, file: Path | None, over_s: float, yes: bool, dry_run: bool, timeout_s: float, form: str, socket: str | None
) -> None:
    """Give a new server its share: shards move there one at a time, no packet is lost, no connection breaks.

    Its cores must be in the map, or in the one that --map names, without a shard; they are waited for. Where rooms are named it
    gets a share of its own room's shards only.
    """
    if file and not dry_run:
        _apply(file, yes, socket)
    view = _awaited(name, file, dry_run, timeout_s, socket)
    loads, rooms = measured(view, over_s, "both"), _rooms(file, socket)
    found = layout.even(view.homes(), _joined(view, name, file), loads, slack=0.5, rooms=rooms)
    if settled(found, yes, dry_run, form):
        mapping.move_and_record(socket, view, found, timeout_s, form, "server join")


def _apply(file: Path, yes: bool, socket: str | None) -> None:
    """Go by the map, unless that is gone by already."""
    from krononat import cluster as clusters

    if mapping.stored(socket).map != clusters.load(file):
        mapping.have_applied(file, yes, False, "none", socket)


def _awaited(name: str, file: Path | None, dry_run: bool, timeout_s: float, socket: str | None) -> View:
    """The view once all cores of a server are alive; a dry run waits for nobody."""
    until = time.monotonic() + timeout_s
    while True:
        view = look(socket)
        rows = [row for row in view.cores if server_of(row["core"]) == name]
        missing = [row["core"] for row in rows if row["evidence"] != "alive"]
        if dry_run or (rows and not missing):
            return view
        if not rows and not file:
            _cores(view, name)
        if time.monotonic() > until:
            told = f"not alive: {', '.join(missing) or name}"
            remedy = f"start them, then krononat server join {name}"
            raise client.Trouble(f"{name} did not come", told, remedy, client.TIMED_OUT)
        time.sleep(EVERY_S)


def _rooms(file: Path | None, socket: str | None) -> dict[str, str]:
    """Of those too that are about to come."""
    from krononat import cluster as clusters

    found = {**mapping.rooms(socket), **(clusters.load(file).rooms() if file else {})}
    return found if any(found.values()) else {}


def _joined(view: View, name: str, file: Path | None) -> list[str]:
    """Cores that may have something, those among them that are about to come."""
    from krononat import cluster as clusters

    coming = [core.name for core in clusters.load(file).core if core.server == name] if file else []
    known = [row["core"] for row in view.cores if server_of(row["core"]) == name]
    return list(dict.fromkeys([*view.alive(), *known, *coming]))


@server.command(epilog="Example: krononat server leave s4 --dry-run")
@click.argument("name", metavar="SERVER")
@yes_option
@dry_run_option
@timeout_option
@output_option()
@socket_option
def leave(name: str, yes: bool, dry_run: bool, timeout_s: float, form: str, socket: str | None) -> None:
    """Move every shard and every copy off a server, then have a map without it. It can be stopped for good then.

    A server that is dead has no shard any more; its copies are made anew elsewhere as soon as the map is without it.
    """
    view = look(socket)
    rows = _cores(view, name)
    alive = any(row["evidence"] == "alive" for row in rows)
    found = _planned(lambda: layout.leave(view.homes(), view.alive(), name, view.loads(), mapping.rooms(socket)))
    if (found or dry_run) and not settled(found, yes, dry_run, form):
        return
    if not found:
        agree(f"Have a map without {name}?", yes, lambda: None)
    with mapping.right_to_move(socket, "server leave") as (told, lock):
        mapping.placed(told.map, layout.following(view.homes(), found), {}, name)  # if that cannot be, nothing is moved
        if alive:
            _mark(view, name, True)
            carry_out_all(view, found, timeout_s, form, lambda: mapping.held(lock))
            view = look(socket)
        homes = view.homes() if alive else layout.following(view.homes(), found)
        newer = mapping.put(told, lock, mapping.placed(told.map, homes, view.epochs(), name)).map
    mapping.wait_followed(socket, newer.version, name)
    click.echo(f"krononat: version {newer.version} of the map is without {name}: it can be stopped", err=True)


def _planned(make: Callable[[], list[Plan]]) -> list[Plan]:
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
