"""`krononat lab clock`: what takes hours, in a moment."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from krononat import client
from krononat.cli.output import output_option, print_json
from krononat.client import NOT_FOUND, Trouble
from krononat.clock import MOVE_AT_MOST
from krononat.lab.laboratory import Lab
from krononat.lab.names import name_option

_AHEAD = re.compile(r"\+(\d{1,6}(?:\.\d{1,3})?)s?")


class Order(click.ParamType[dict[str, Any]]):
    """`+7440`, `stop` or `go` as the control socket wants it."""

    name = "+SECONDS|stop|go"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        """Usage errors say what may stand there."""
        if isinstance(value, dict):
            return value
        if value in ("stop", "go"):
            return {"stands": value == "stop"}
        found = _AHEAD.fullmatch(str(value))
        ahead_ms = round(float(found[1]) * 1000) if found else 0
        if not found or ahead_ms > MOVE_AT_MOST:
            self.fail(f"{value!r} is none of +SECONDS (at most a day in one go; it only goes forwards), stop, go", param, ctx)
        return {"ahead_ms": ahead_ms}


@click.command(epilog="Example: krononat lab clock stop && krononat lab clock +7440 && krononat lab clock go")
@name_option
@click.option("--core", metavar="NODE", help="Appliance of the laboratory; default: its first one.")
@click.option("--socket", metavar="PATH", help="Control socket of another core, whose configuration allows it.")
@output_option()
@click.argument("order", type=Order(), required=False)
def clock(name: str, core: str | None, socket: str | None, form: str, order: dict[str, Any] | None) -> None:
    """Show the clock that packets and sessions go by; move it ahead, have it stand still, or go on from where it stood.

    All that is due until then has ended when this returns. Only that clock moves: whether neighbours, and the worker itself,
    are alive goes by the machine's. A core that is not made for it (`movable-clock` in [server]) refuses.
    """
    path = socket or str(_socket(Lab.find(name), core))
    told = client.ask(path, {"do": "clock", **(order or {})}, timeout_s=30.0)
    if form == "json":
        print_json({**told["clock"], "movable": told["movable"]})
        return
    ahead_s, stands = told["clock"]["ahead_ms"] / 1000, told["clock"]["stands"]
    click.echo(f"{abs(ahead_s):,.3f} s {'behind' if ahead_s < 0 else 'ahead'}, {'stands' if stands else 'goes'}")


def _socket(found: Lab, core: str | None) -> Path:
    labels = list(found.topology.appliances)
    if core is not None and core not in labels:
        raise Trouble(f'no appliance "{core}"', "", f"there are: {', '.join(labels)}", NOT_FOUND)
    return found.socket_of(core or found.first)
