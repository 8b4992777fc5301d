"""`krononat status`: one screen of facts, from the supervisor and from the core's memory."""

from __future__ import annotations

import contextlib
import json
import time
from typing import TYPE_CHECKING, Any

import click

from krononat import client
from krononat.cli.output import open_memory, output_option, print_facts, socket_option

if TYPE_CHECKING:
    from shards.state import State


@click.command(epilog="Example: krononat status --watch 1")
@click.option("--watch", "every_s", type=float, is_flag=False, flag_value=1.0, metavar="[SECONDS]", help="Again and again.")
@output_option()
@socket_option
def status(every_s: float | None, form: str, socket: str | None) -> None:
    """How the appliance is doing: worker, interfaces, packets by fate, sessions, memory, most frequent drops."""
    path = client.find_socket(socket)
    state = open_memory(socket)
    told = _gather(path, state)
    _print(told, form, every_s is not None)
    with contextlib.suppress(KeyboardInterrupt):
        while every_s is not None:
            time.sleep(max(every_s, 0.1))
            before, told = told, _gather(path, state)
            told["rates"] = _rates(before, told)
            if form == "table":
                click.clear()
            _print(told, form, True)


def _gather(path: str, state: State) -> dict[str, Any]:
    from krononat import view

    answer = client.ask(path, {"do": "status"})["status"]
    drops = {row.reason: row.packets for row in view.drops(state) if row.packets}
    return {
        "at": time.monotonic(),
        "appliance": answer,
        "packets": answer.pop("packets", None) or view.fates(state),  # the supervisor knows what was punted before us
        "drops": dict(list(drops.items())[:5]),
        "core": view.totals(state),
        "pools": {str(row.number): f"{row.blocks - row.blocks_free} of {row.blocks} blocks" for row in view.pools(state)},
    }


def _rates(before: dict[str, Any], after: dict[str, Any]) -> dict[str, int]:
    """Packets a second by fate between two looks."""
    seconds = max(after["at"] - before["at"], 1e-3)
    return {f"{fate}_pps": round((count - before["packets"][fate]) / seconds) for fate, count in after["packets"].items()}


def _print(told: dict[str, Any], form: str, again: bool) -> None:
    """One look; as JSON a line of its own where others follow."""
    shown = {key: value for key, value in told.items() if key != "at"}
    if form == "json":
        click.echo(json.dumps(shown, indent=None if again else 2))
    else:
        print_facts(shown)
