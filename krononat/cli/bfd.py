"""`krononat bfd`: whether the neighbours hear us and we them."""

from __future__ import annotations

import click

from krononat import client
from krononat.cli.output import output_option, print_rows, socket_option

COLUMNS = (
    "peer",
    "interface",
    "state",
    "since_s",
    "detect_ms",
    "transmit_ms",
    "flaps",
    "diagnostic",
    "received",
    "sent",
    "refused",
)


@click.command(epilog="Example: krononat bfd -o json")
@output_option("jsonl")
@socket_option
def bfd(form: str, socket: str | None) -> None:
    """Sessions of BFD with the neighbours: state, since when, how soon silence is noticed, how often they went down.

    The packet loop itself speaks it, so up means: packets are being served. `refused` counts what came with a neighbour's
    address and was not BFD of our session with it; `krononat drops` has the reasons.
    """
    rows = client.ask(client.find_socket(socket), {"do": "bfd"})["bfd"]
    if not rows and form == "table":
        click.echo("no sessions: the configuration has neither `[[bgp.peer]]` nor `peers` in [bfd]", err=True)
        return
    print_rows(rows, COLUMNS, form)
