"""What commands print: tables for people, JSON for programs; and how they reach the appliance."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from krononat import client

if TYPE_CHECKING:
    from shards.state import State

Command = TypeVar("Command", bound=Callable[..., Any])
Row = Mapping[str, Any]


def output_option(*more: str) -> Callable[[Command], Command]:
    """The option -o, as `form`."""
    return click.option(
        "-o", "--output", "form", type=click.Choice(("table", "json", *more)), default="table", show_default=True, help="Form."
    )


socket_option = click.option(
    "--socket", envvar="KRONONAT_SOCKET", metavar="PATH", help="Control socket; default: the only one in /run/krononat."
)


def print_json(value: Any) -> None:
    """A value as JSON, indented."""
    click.echo(json.dumps(value, indent=2))


def print_rows(rows: Iterable[Row], columns: Sequence[str], form: str) -> None:
    """Rows in the form asked for; `columns` are the keys that a table shows."""
    if form == "json":
        print_json([dict(row) for row in rows])
    elif form == "jsonl":
        for row in rows:
            click.echo(json.dumps(dict(row)))
    else:
        print_table(rows, columns)


def print_table(rows: Iterable[Row], columns: Sequence[str]) -> None:
    """A table: drawn by rich on a terminal, plain aligned columns where it is piped."""
    cells = [[_cell(row.get(column, "")) for column in columns] for row in rows]
    titles = [column.upper().replace("_", " ") for column in columns]
    numeric = [all(_is_number(line[index]) for line in cells) for index in range(len(columns))]
    if sys.stdout.isatty():
        _draw(titles, cells, numeric)
        return
    widths = [max(len(line[index]) for line in [titles, *cells]) for index in range(len(columns))]
    for line in [titles, *cells]:
        told = (
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(line, widths, numeric, strict=True)
        )
        click.echo("  ".join(told).rstrip())


def _draw(titles: Sequence[str], cells: Sequence[Sequence[str]], numeric: Sequence[bool]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title, number in zip(titles, numeric, strict=True):
        table.add_column(title, justify="right" if number else "left", overflow="fold")
    for line in cells:
        table.add_row(*map(Text, line))
    Console().print(table)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _is_number(cell: str) -> bool:
    return cell.replace(",", "").isdigit()


def print_facts(value: Mapping[str, Any], indent: int = 0) -> None:
    """A nested mapping as indented lines `key  value`."""
    width = max((len(str(key)) for key, entry in value.items() if not isinstance(entry, dict)), default=0)
    for key, entry in value.items():
        name = str(key).replace("_", " ")
        if isinstance(entry, dict):
            click.echo(f"{' ' * indent}{name}")
            print_facts(entry, indent + 2)
        elif isinstance(entry, list) and entry and isinstance(entry[0], dict):
            for number, item in enumerate(entry):
                click.echo(f"{' ' * indent}{name} {number}")
                print_facts(item, indent + 2)
        else:
            plain = key in ("pid", "row")  # numbers that are names
            told = ", ".join(map(str, entry)) if isinstance(entry, list) else str(entry) if plain else _cell(entry)
            click.echo(f"{' ' * indent}{name.ljust(width)}  {told}")


def open_memory(socket: str | None) -> State:
    """The running appliance's state, read-only."""
    from krononat import view

    descriptor = client.memory(client.find_socket(socket))
    try:
        return view.open_view(descriptor)
    except ValueError as error:
        raise client.Trouble(
            "this program cannot read the appliance's memory", str(error), "use the program that runs it"
        ) from None
    finally:
        os.close(descriptor)


def print_changes(answer: Mapping[str, Any], form: str) -> None:
    """What another configuration changes, or would change, of an appliance that runs (see `client`)."""
    if form != "table":
        print_json({key: answer[key] for key in ("applied", "live", "restart", "pools", "refused") if key in answer})
        return
    done = "changed" if answer["applied"] else "would change"
    told = [f"{done}: {key}" for key in answer["live"]] + [f"{done}: {sentence}" for sentence in answer["pools"]]
    told += [f"needs a restart: {key}" for key in answer["restart"]]
    told += [f"would be refused: {answer['refused']}"] if answer.get("refused") else []
    for line in told or ["nothing differs from what runs"]:
        click.echo(line)
