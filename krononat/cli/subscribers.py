"""`krononat subscribers`: who uses how much, and who was refused how often."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

import click

from krononat import client
from krononat.cli.groups import Group
from krononat.cli.output import open_memory, output_option, print_facts, print_json, print_rows, socket_option

if TYPE_CHECKING:
    from krononat.usage import Usage

COLUMNS = ("prefix", "kind", "external", "blocks", "sessions", "ports", "refused", "most_for")
ORDERS = ("refused", "sessions", "ports", "protocol", "rate", "blocks", "room", "fragments")


class Internal(click.ParamType[IPv4Address]):
    """An IPv4 address."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> IPv4Address:
        """Read it."""
        try:
            return IPv4Address(value)
        except ValueError:
            self.fail(f"{value!r} is not an IPv4 address", param, ctx)


@click.group(cls=Group)
def subscribers() -> None:
    """Show who uses how much, and who was refused how often."""


@subscribers.command(epilog="Example: krononat subscribers top --by sessions -n 5 -o json")
@click.option("--by", type=click.Choice(ORDERS), default="refused", show_default=True, help="What most of comes first.")
@click.option("-n", "--count", type=click.IntRange(1), default=20, show_default=True, help="At most so many.")
@output_option("jsonl")
@socket_option
def top(by: str, count: int, form: str, socket: str | None) -> None:
    """Those who were refused most often, or hold most sessions or ports.

    Refused packets count by reason: sessions, ports (limits of both), protocol (its share, or what others have reserved), rate,
    blocks (all that he may have are full), room (no block in the pool, no memory), fragments (too many at once).
    """
    from krononat import usage

    found = usage.top(open_memory(socket), by, count)
    if not found and form == "table":
        click.echo("nobody was refused anything" if by == "refused" else f"nobody has any {by}", err=True)
        return
    print_rows(map(_row if form == "table" else _facts, found), COLUMNS, form)


@subscribers.command(epilog="Example: krononat subscribers show 100.64.0.7")
@click.argument("address", type=Internal())
@output_option()
@socket_option
def show(address: IPv4Address, form: str, socket: str | None) -> None:
    """The subscriber with an internal address, and the device behind him."""
    from krononat import usage

    found = usage.of_address(open_memory(socket), address)
    if not found:
        told = "it is in no subscriber prefix, or has never sent anything"
        raise client.Trouble(f"nothing is known of {address}", told, "krononat subscribers top --by sessions", client.NOT_FOUND)
    if form == "json":
        print_json([_facts(row) for row in found])
        return
    for row in found:
        print_facts(_facts(row))


def _facts(row: Usage) -> dict[str, Any]:
    return row._asdict()


def _row(row: Usage) -> dict[str, Any]:
    most = max(row.refused_for, key=lambda reason: row.refused_for[reason])
    return {**row._asdict(), "most_for": most if row.refused else ""}
