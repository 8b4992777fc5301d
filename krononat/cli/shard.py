"""`krononat shard`: who has which part of the sessions, and how it gets elsewhere."""

from __future__ import annotations

import time
from typing import Any

import click

from krononat import client
from krononat.cli import mapping, moves
from krononat.cli.groups import Group
from krononat.cli.moves import View, agree, dry_run_option, look, timeout_option, yes_option
from krononat.cli.output import output_option, print_facts, print_json, print_rows, print_table, socket_option
from replication import layout
from replication.layout import HEAD_ROOM
from replication.placement import TOLERANCE

COLUMNS = ("shard", "primary", "backup", "active", "passive", "epoch", "in_sync", "sessions", "mappings", "shunted", "alarms")
VERIFIED = ("shard", "active", "passive", "rows", "differing", "error")

BY = ("both", "packets", "sessions")
SLACK = 0.5  # of a shard: see `layout.even`
_HEAD_ROOM = "after any server's death no core has more than so many times the mean"

SHARD = click.IntRange(0, (1 << 16) - 1)


@click.group(cls=Group)
def shard() -> None:
    """Show shards, move them, compare their copies."""


shard.add_command(mapping.group)


@shard.command("list", epilog="Example: krononat shard list")
@output_option("jsonl")
@socket_option
def list_(form: str, socket: str | None) -> None:
    """Every shard in a line: by the map (primary, backup) and now (active, passive)."""
    rows = look(socket).shards
    print_rows([_row(row) for row in rows] if form == "table" else rows, COLUMNS, form)


@shard.command(epilog="Example: krononat shard show 3 -o json")
@click.argument("number", metavar="SHARD", type=SHARD)
@output_option()
@socket_option
def show(number: int, form: str, socket: str | None) -> None:
    """One shard."""
    row = look(socket).shard(number)
    print_json(row) if form == "json" else print_facts(_row(row))


@shard.command(epilog="Example: krononat shard migrate 3 s2/0 --yes")
@click.argument("number", metavar="SHARD", type=SHARD)
@click.argument("target", metavar="SERVER/CORE", callback=moves.core_name)
@yes_option
@dry_run_option
@click.option("--wait/--no-wait", default=True, show_default=True, help="Until it is done, and tell what it cost.")
@timeout_option
@output_option()
@socket_option
def migrate(
    number: int, target: str, yes: bool, dry_run: bool, wait: bool, timeout_s: float, form: str, socket: str | None
) -> None:
    """Move a shard to another core while it works: no packet is lost, no connection breaks."""
    view = look(socket)
    _move(view, view.shard(number), target, yes, dry_run, wait, timeout_s, form, socket)


@shard.command(epilog="Example: krononat shard swap 3 --yes")
@click.argument("number", metavar="SHARD", type=SHARD)
@yes_option
@dry_run_option
@click.option("--wait/--no-wait", default=True, show_default=True, help="Until it is done, and tell what it cost.")
@timeout_option
@output_option()
@socket_option
def swap(number: int, yes: bool, dry_run: bool, wait: bool, timeout_s: float, form: str, socket: str | None) -> None:
    """Let the two cores that have a shard change places."""
    view = look(socket)
    row = view.shard(number)
    if not row["passive"]:
        told = "no other core keeps a copy of it"
        raise client.Trouble(f"shard {number} cannot be swapped", told, f"krononat shard migrate {number} SERVER/CORE")
    _move(view, row, row["passive"], yes, dry_run, wait, timeout_s, form, socket)


def _move(
    view: View, row: dict[str, Any], target: str, yes: bool, dry_run: bool, wait: bool, timeout_s: float, form: str,
    socket: str | None,
) -> None:  # fmt: skip
    view.known(target)
    path = view.path(row["active"], f"shard {row['shard']}")
    plan = moves.plan(path, row["shard"], target)
    if dry_run:
        print_json({"plan": plan})
        return
    agree(f"Move shard {row['shard']} from {plan['source']} to {plan['target']}?", yes, lambda: print_facts(plan))
    with mapping.right_to_move(socket, "shard migrate"):
        number = moves.begin(path, row["shard"], target)
        done = moves.watch(path, number, timeout_s) if wait else {}
    if not wait:
        print_json({"move": number}) if form == "json" else click.echo(f"move {number} has begun")
        return
    print_json({"move": done}) if form == "json" else click.echo(moves.told(done))


@shard.command(epilog="Example: krononat shard copy 3 s3/0 --yes")
@click.argument("number", metavar="SHARD", type=SHARD)
@click.argument("target", metavar="SERVER/CORE", callback=moves.core_name)
@yes_option
@dry_run_option
@timeout_option
@output_option()
@socket_option
def copy(number: int, target: str, yes: bool, dry_run: bool, timeout_s: float, form: str, socket: str | None) -> None:
    """Have another core keep the copy of a shard, which itself stays where it is."""
    view = look(socket)
    row = view.shard(number)
    view.known(target)
    path = view.path(row["active"], f"shard {number}")
    plan = moves.plan(path, number, target, True)
    if dry_run:
        print_json({"plan": plan})
        return
    agree(f"Have {target} keep the copy of shard {number}?", yes, lambda: print_facts(plan))
    with mapping.right_to_move(socket, "shard copy"):
        done = moves.watch(path, moves.begin(path, number, target, True), timeout_s)
    print_json({"move": done}) if form == "json" else click.echo(moves.told(done))


@shard.command(epilog="Example: krononat shard rebalance --plan")
@click.option("--plan", is_flag=True, help="Print the moves that it would make, and change nothing.")
@click.option("--by", type=click.Choice(BY), default="both", show_default=True, help="What a shard costs.")
@click.option(
    "--over", "over_s", type=click.FloatRange(0.1), default=1.0, show_default=True, metavar="S", help="Count packets so long."
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 10),
    default=TOLERANCE,
    show_default=True,
    help="Of the mean; what is within it stays.",
)
@click.option(
    "--head-room",
    type=click.FloatRange(1),
    default=HEAD_ROOM,
    show_default=True,
    help=f"Copies move too, so that {_HEAD_ROOM}.",
)
@yes_option
@dry_run_option
@timeout_option
@output_option()
@socket_option
def rebalance(
    plan: bool, by: str, over_s: float, tolerance: float, head_room: float, yes: bool, dry_run: bool, timeout_s: float,
    form: str, socket: str | None,
) -> None:  # fmt: skip
    """Move shards, and copies, until cores that are alive have about the same to do, and still would without any one server.

    Where the map names rooms each is evened out by itself, and reserves stay whose they are.
    """
    view = look(socket)
    loads = moves.measured(view, over_s, by)
    found = layout.even(view.homes(), view.alive(), loads, tolerance, head_room, SLACK, mapping.rooms(socket))
    if plan and form == "table" and found:
        print_table([move._asdict() for move in found], moves.PLAN)
    elif plan and form == "table":
        click.echo("nothing to move")
    elif moves.settled(found, yes, dry_run or plan, form):
        mapping.move_and_record(socket, view, found, timeout_s, form, "shard rebalance")


@shard.command(epilog="Example: krononat shard verify 3   (without SHARD: all that cores of this server have)")
@click.argument("number", metavar="[SHARD]", type=SHARD, required=False)
@timeout_option
@output_option()
@socket_option
def verify(number: int | None, timeout_s: float, form: str, socket: str | None) -> None:
    """Compare both copies of a shard, row by row; exits with 1 where they differ, or cannot be compared."""
    view = look(socket)
    rows = [view.shard(number)] if number is not None else _comparable(view)
    found = [_verify(view, row, timeout_s) for row in rows]
    shown = found if form == "json" else [{**row, "differing": len(row["differing"])} for row in found]
    print_rows(shown, VERIFIED, form)
    wrong = [row for row in found if row["differing"] or row["error"]]
    if wrong:
        told = ", ".join(str(row["shard"]) for row in wrong)
        remedy = f"krononat replication resync {wrong[0]['shard']}"
        raise client.Trouble(f"{len(wrong)} of {len(found)} shards have no true copy", f"they are: {told}", remedy)


def _comparable(view: View) -> list[dict[str, Any]]:
    """Shards with a copy whose owner can be asked here; the others are told of. Trouble where there are none."""
    here = [row for row in view.shards if row["passive"] and row["active"] in view.paths]
    bare = [row["shard"] for row in view.shards if not row["passive"]]
    there = sorted({row["active"] for row in view.shards if row["passive"] and row["active"] not in view.paths})
    left = [f"no copy of {', '.join(map(str, bare))}"] * bool(bare)
    left += [f"of the shards of {', '.join(there)} ask there"] * bool(there)
    if not here:
        raise client.Trouble("no shard was compared", "; ".join(left), "krononat shard list")
    for told in left:
        click.echo(f"krononat: not compared: {told}", err=True)
    return here


def _verify(view: View, row: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    if not row["passive"]:
        told = "no other core keeps one"
        raise client.Trouble(f"shard {row['shard']} has no copy to compare", told, "krononat shard list")
    path, until = view.path(row["active"], f"shard {row['shard']}"), time.monotonic() + timeout_s
    asked = {"do": "verify", "shard": row["shard"]}
    found = client.ask(path, {**asked, "begin": True})["verification"]
    while not found["done"]:
        if time.monotonic() > until:
            told = f"{found['rows']:,} rows were compared"
            remedy = f"krononat shard verify {row['shard']} --timeout {2 * timeout_s:g}"
            raise client.Trouble(f"shard {row['shard']} is not compared in {timeout_s:g} s", told, remedy, client.TIMED_OUT)
        time.sleep(moves.EVERY_S)
        found = client.ask(path, asked)["verification"]
    kept = {key: found[key] for key in ("rows", "differing", "error")}
    return {"shard": row["shard"], "active": row["active"], "passive": found["peer"], **kept}


def _row(row: dict[str, Any]) -> dict[str, Any]:
    """A shard as a table shows it; "-": nothing, or not known here."""
    names = {name: row[name] or "-" for name in ("backup", "active", "passive")}
    in_sync = "-" if row["in_sync"] is None else row["in_sync"]
    return {**row, **names, "in_sync": in_sync, "alarms": "; ".join(row["alarms"]) or "-"}
