"""`krononat mappings`: which internal endpoint has which external one, who keeps it so, and for how long."""

from __future__ import annotations

import itertools
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING, Any

import click

from krononat.cli.groups import Group
from krononat.cli.output import open_memory, output_option, print_rows, socket_option
from krononat.cli.sessions import NUMBERS, PORT, Prefix

if TYPE_CHECKING:
    from krononat.view_mappings import Mapping

COLUMNS = ("proto", "internal", "external", "origin", "sessions", "expires_s")
ORIGINS = ("dynamic", "static", "pcp", "nat-pmp", "adopted")


@click.group(cls=Group)
def mappings() -> None:
    """List mappings: those of sessions, of the configuration, and those that subscribers asked for."""


@mappings.command("list", epilog="Example: krononat mappings list --origin pcp --subscriber 100.64.0.7")
@click.option("-p", "--proto", type=click.Choice(tuple(NUMBERS)), help="Protocol.")
@click.option("--subscriber", type=Prefix(), help="Internal address or prefix.")
@click.option("--port", type=PORT, help="Internal port (ICMP: identifier).")
@click.option("--nat-src", type=Prefix(), help="External address or prefix.")
@click.option("--nat-port", type=PORT, help="External port.")
@click.option("--origin", type=click.Choice(ORIGINS), help="Who keeps it.")
@click.option("--limit", type=click.IntRange(1), default=1000, show_default=True, help="At most so many.")
@output_option("jsonl")
@socket_option
def list_(
    proto: str | None, subscriber: IPv4Network | IPv6Network | None, port: int | None,
    nat_src: IPv4Network | IPv6Network | None, nat_port: int | None, origin: str | None, limit: int, form: str,
    socket: str | None,
) -> None:  # fmt: skip
    """Mappings that fit all filters, in the order of their rows.

    ORIGIN: dynamic (of its sessions), static (of the file), pcp and nat-pmp (asked for, EXPIRES S is what is left), adopted
    (asked for at another core, before this one took the shard over).
    """
    from krononat.view import Filter
    from krononat.view_mappings import mappings

    wanted = Filter(NUMBERS.get(proto or ""), subscriber, source_port=port, external=nat_src, external_port=nat_port)
    found = mappings(open_memory(socket), wanted, origin)
    shown = itertools.islice(found, limit)
    print_rows((each._asdict() for each in shown) if form != "table" else map(_row, shown), COLUMNS, form)
    if next(found, None) is not None:
        click.echo(f"krononat: more than {limit} fit; --limit shows more", err=True)


def _row(mapping: Mapping) -> dict[str, Any]:
    """A mapping as a table shows it: endpoints in one cell."""
    return {
        "proto": mapping.protocol,
        "internal": _endpoint(mapping.internal, mapping.internal_port),
        "external": _endpoint(mapping.external, mapping.external_port),
        "origin": mapping.origin,
        "sessions": mapping.sessions,
        "expires_s": "-" if mapping.expires_s is None else mapping.expires_s,
    }


def _endpoint(address: str, port: int) -> str:
    return f"{address}:{port}" if port else address
