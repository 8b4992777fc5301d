"""`krononat pool`: how much of the external addresses is in use."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

import click

from krononat import client
from krononat.cli.groups import Group
from krononat.cli.output import open_memory, output_option, print_facts, print_json, print_rows, socket_option

if TYPE_CHECKING:
    from shards.state import State

COLUMNS = (
    "name",
    "addresses",
    "first",
    "last",
    "block_size",
    "blocks",
    "blocks_free",
    "use_percent",
    "subscribers",
    "ports_used",
    "closed",
)


@click.group(cls=Group)
def pool() -> None:
    """Show the use of external addresses and ports."""


@pool.command("list", epilog="Example: krononat pool list")
@output_option("jsonl")
@socket_option
def list_(form: str, socket: str | None) -> None:
    """Every pool in a line."""
    print_rows(_pools(open_memory(socket), socket), COLUMNS, form)


@pool.command(epilog="Example: krononat pool show main -o json")
@click.argument("name", required=False)
@output_option()
@socket_option
def show(name: str | None, form: str, socket: str | None) -> None:
    """One pool with its addresses in use; without NAME all pools."""
    from krononat import view

    state = open_memory(socket)
    pools = [row for row in _pools(state, socket) if name in (None, row["name"])]
    if not pools:
        names = ", ".join(row["name"] for row in _pools(state, socket))
        raise client.Trouble(f"there is no pool {name!r}", f"there is {names}", "krononat pool list", client.NOT_FOUND)
    for row in pools:
        used = [
            address._asdict() for address in view.addresses(state, row["number"]) if address.blocks_used or address.ports_used
        ]
        row["in_use"] = used
    if form == "json":
        print_json(pools)
        return
    for row in pools:
        used = row.pop("in_use")
        print_facts({"pool": row.pop("name"), **row})
        click.echo("")
        print_rows(used, ("address", "blocks_used", "subscribers", "ports_used", "use"), form)


@pool.command(epilog="Example: krononat pool drain 203.0.113.7")
@click.argument("addresses", nargs=-1, required=True)
@output_option("jsonl")
@socket_option
def drain(addresses: tuple[str, ...], form: str, socket: str | None) -> None:
    """Pair nobody with ADDRESSES anew; whoever is paired with them stays so until his last mapping ends.

    Prints what is left there; ask again to see it shrink. It holds until the appliance is started again; `drain` of the pool
    in the file makes it last.
    """
    _close(addresses, False, form, socket)


@pool.command(epilog="Example: krononat pool undrain 203.0.113.7")
@click.argument("addresses", nargs=-1, required=True)
@output_option("jsonl")
@socket_option
def undrain(addresses: tuple[str, ...], form: str, socket: str | None) -> None:
    """Hand out ADDRESSES again."""
    _close(addresses, True, form, socket)


def _close(addresses: tuple[str, ...], undo: bool, form: str, socket: str | None) -> None:
    from krononat import view

    client.ask(client.find_socket(socket), {"do": "close", "addresses": list(addresses), "undo": undo})
    print_rows(view.left(open_memory(socket), addresses), ("address", "use", "mappings", "sessions"), form)


def _pools(state: State, socket: str | None) -> list[dict[str, Any]]:
    from krononat import view

    names = _names(socket)
    return [
        {"name": names.get(row.number, str(row.number)), **row._asdict(), "use_percent": _percent(row.blocks, row.blocks_free)}
        for row in view.pools(state)
    ]


def _percent(blocks: int, free: int) -> float:
    return round(100 * (blocks - free) / blocks, 1) if blocks else 0.0


def _names(socket: str | None) -> dict[int, str]:
    """Names of the pools; the state's memory knows numbers only."""
    answer = client.ask(client.find_socket(socket), {"do": "config"})
    return {number: row["name"] for number, row in enumerate(tomllib.loads(answer["config"])["pool"])}
