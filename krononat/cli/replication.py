"""`krononat replication`: is there a copy of everything, how far is it behind, and what went wrong on the way."""

from __future__ import annotations

from typing import Any

import click

from krononat import client
from krononat.cli.groups import Group
from krononat.cli.moves import asked, look, sockets
from krononat.cli.output import output_option, print_json, print_rows, socket_option
from krononat.cli.shard import SHARD

COLUMNS = (
    "core", "shard", "role", "epoch", "peer", "evidence", "in_sync", "lag_records", "lag_bytes", "lag_s", "gaps", "resyncs",
    "refused",
)  # fmt: skip


@click.group(cls=Group)
def replication() -> None:
    """Show how the copies of shards are kept, have one made anew."""


@replication.command(epilog="Example: krononat replication status --check   (exits with 1 where an alarm stands)")
@click.option("--check", is_flag=True, help="Exit with 1 where an alarm stands, or a core here does not answer.")
@output_option("jsonl")
@socket_option
def status(check: bool, form: str, socket: str | None) -> None:
    """Every shard on every link: how far its copy is behind, what was lost, refused and sent anew; alarms, in words."""
    answers = asked(socket, "replication")
    rows = [{"core": me, **row} for me, _, (found,) in answers for row in found]
    print_rows([_row(row) for row in rows] if form == "table" else rows, COLUMNS, form)
    alarms = list(dict.fromkeys(f"{row['core']}: {alarm}" for row in rows for alarm in row["alarms"]))
    for alarm in alarms:
        click.echo(f"krononat: alarm: {alarm}", err=True)
    if check and (alarms or len(answers) < len(sockets(socket))):
        raise SystemExit(1)


def _row(row: dict[str, Any]) -> dict[str, Any]:
    """A link as a table shows it; reasons that count nothing are left out."""
    refused = ", ".join(f"{reason} {frames:,}" for reason, frames in row["refused"].items() if frames)
    return {**row, "shard": "-" if row["shard"] is None else row["shard"], "refused": refused or "-"}


@replication.command(epilog="Example: krononat replication resync 3")
@click.argument("number", metavar="SHARD", type=SHARD)
@output_option()
@socket_option
def resync(number: int, form: str, socket: str | None) -> None:
    """Have the copy of a shard made anew; packets are forwarded meanwhile as ever."""
    view = look(socket)
    row = view.shard(number)
    if not row["passive"]:
        raise client.Trouble(f"shard {number} has no copy", "no core is its backup now", "krononat shard list")
    end = row["passive"] if row["passive"] in view.paths else row["active"]
    told = client.ask(view.path(end, f"shard {number}"), {"do": "resync", "shard": number})["resync"]
    print_json(told) if form == "json" else click.echo(f"shard {number}: {told['target']} copies {told['source']} anew")
