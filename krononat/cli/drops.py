"""`krononat drops`: reasons, in the order of how often they struck."""

from __future__ import annotations

import click

from krononat.cli.output import open_memory, output_option, print_rows, socket_option


@click.command(epilog="Example: krononat drops --all -o json")
@click.option("--all", "everything", is_flag=True, help="Also the reasons that never struck.")
@click.option("--reason", metavar="WORD", help="Only reasons that contain this word.")
@output_option("jsonl")
@socket_option
def drops(everything: bool, reason: str | None, form: str, socket: str | None) -> None:
    """Packets dropped: reason, count, what it means, what to do."""
    from krononat import view

    rows = [
        row._asdict() for row in view.drops(open_memory(socket)) if (everything or row.packets) and (reason or "") in row.reason
    ]
    if not rows and form == "table":
        click.echo("nothing was dropped" if not reason else f"nothing was dropped for a reason like {reason!r}", err=True)
        return
    print_rows(rows, ("reason", "packets", "sentence", "remedy"), form)
