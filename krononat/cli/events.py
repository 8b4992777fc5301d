"""`krononat events`: the log of NAT events, what there is of it or as it is written."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from krononat.cli.output import open_memory, output_option, print_rows, socket_option

if TYPE_CHECKING:
    from krononat.natlog import Event, Reader

COLUMNS = ("time", "kind", "proto", "internal", "external", "remote", "account", "reason")
_WIDTHS = (30, 20, 6, 22, 28, 22, 10, 0)
_PAUSE_S = 0.2


@click.command(epilog="Example: krononat events --follow -o jsonl")
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now on, until interrupted.")
@click.option("--last", type=click.IntRange(1), default=1000, show_default=True, help="At most so many of the past.")
@output_option("jsonl")
@socket_option
def events(follow: bool, last: int, form: str, socket: str | None) -> None:
    """What was translated for whom and when, oldest first: blocks of ports, mappings, sessions, refusals, alarms.

    `[log] events` of the configuration decides what is written. The ring holds 65,535 events; who reads too slowly is told how
    many went by (on stderr, and as an object `missed` in JSON lines).
    """
    from krononat.natlog import Reader, event

    if follow and form == "json":
        raise click.UsageError("a list that does not end is no JSON; use -o jsonl")
    state = open_memory(socket)
    if state.settings[0]["log"] == 0:
        click.echo('krononat: nothing is logged; set events = "blocks" under [log]', err=True)
    reader = Reader(state)
    past = [event(row) for row in reader.rows()[-last:]]
    if not follow:
        print_rows(map(_row if form == "table" else _facts, past), COLUMNS, form)
        return
    if form == "table":
        click.echo(_line({name: name.upper() for name in COLUMNS}))
    with contextlib.suppress(KeyboardInterrupt):
        _follow(reader, past, form)


def _follow(reader: Reader, past: list[Event], form: str) -> None:
    for told in _following(reader, past):
        if isinstance(told, int):
            click.echo(f"krononat: {told} events went by unread", err=True)
        if form == "jsonl":
            click.echo(json.dumps({"missed": told} if isinstance(told, int) else _facts(told)))
        elif not isinstance(told, int):
            click.echo(_line(_row(told)))


def _following(reader: Reader, past: list[Event]) -> Iterator[Event | int]:
    """Events as they come, and how many were missed where some were."""
    from krononat.natlog import event

    yield from past
    missed = reader.missed
    while True:
        rows = reader.rows()
        if reader.missed > missed:
            yield reader.missed - missed
            missed = reader.missed
        yield from map(event, rows)
        time.sleep(_PAUSE_S)


def _facts(event: Event) -> dict[str, Any]:
    return event._asdict()


def _row(event: Event) -> dict[str, Any]:
    """An event as a table shows it: endpoints in one cell, a block by its first and last port."""
    last = f"-{event.external_last}" if event.external_last > event.external_port else ""
    return {
        "time": event.time,
        "kind": event.kind,
        "proto": event.protocol,
        "internal": f"{event.internal}:{event.internal_port}" if event.protocol else event.internal,
        "external": f"{event.external}:{event.external_port}{last}" if event.external else "",
        "remote": f"{event.remote}:{event.remote_port}" if event.remote else "",
        "account": str(event.account),
        "reason": f"{event.what} {event.packets} % {event.level}" if event.what else event.reason,
    }


def _line(cells: dict[str, Any]) -> str:
    return " ".join(str(cells[name]).ljust(width) for name, width in zip(COLUMNS, _WIDTHS, strict=True)).rstrip()
