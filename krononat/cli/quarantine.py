"""`krononat quarantine`: signatures that were in hand at two deaths of the worker, and are dropped since."""

from __future__ import annotations

from typing import Any

import click

from krononat import client
from krononat.cli.groups import Group
from krononat.cli.output import output_option, print_json, print_rows, socket_option


@click.group(cls=Group)
def quarantine() -> None:
    """What is dropped before it reaches the worker, because that died twice with it in hand.

    Only faults count (SIGSEGV and the like, exceptions, a loop without end): who kills a worker by SIGKILL blames nobody.
    """


@quarantine.command("list", epilog="Example: krononat quarantine list -o json")
@output_option("jsonl")
@socket_option
def list_(form: str, socket: str | None) -> None:
    """Signatures that are dropped: whose frames, since when, of what the worker died."""
    answer = _ask(socket, False)
    if not answer["quarantine"] and form == "table":
        click.echo("nothing is quarantined", err=True)
        return
    print_rows(answer["quarantine"], ("frames", "since_s", "deaths"), form)
    click.echo(f"{answer['frames']:,} frames dropped so far", err=True)


@quarantine.command(epilog="Example: krononat quarantine clear")
@output_option()
@socket_option
def clear(form: str, socket: str | None) -> None:
    """Drop none of them any more, and forget who was in hand at earlier deaths."""
    cleared = _ask(socket, True)["cleared"]
    if form == "json":
        print_json({"cleared": cleared})
    click.echo(f"{cleared} signatures are dropped no more", err=True)


def _ask(socket: str | None, clearing: bool) -> dict[str, Any]:
    return client.ask(client.find_socket(socket), {"do": "quarantine", "clear": clearing})
