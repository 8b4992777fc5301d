"""`krononat worker`: upgrade in place."""

from __future__ import annotations

import time
from typing import Any

import click

from krononat import client
from krononat.cli.groups import Group
from krononat.cli.output import output_option, print_facts, print_json, socket_option
from krononat.client import TIMED_OUT, Trouble

PATIENCE_S = 300  # new code is compiled first, if nobody has done that
_LOOK_EVERY_S = 0.1


@click.group(cls=Group)
def worker() -> None:
    """The process that forwards packets."""


@worker.command(epilog="Example: krononat worker replace, after `krononat compile`")
@output_option()
@socket_option
def replace(form: str, socket: str | None) -> None:
    """Start a worker from the files on disk and have it take the place of the present one.

    That one goes on until the new one has loaded its code; packets wait in the rings for the milliseconds between. A program
    whose memory is laid out differently refuses, and nothing changes.
    """
    path = client.find_socket(socket)
    client.ask(path, {"do": "replace"})
    told = _outcome(path)
    if told["state"] == "refused":
        raise Trouble("the new worker cannot take over", told["why"], "stop and start the appliance to use it")
    if form == "json":
        print_json(told)
    else:
        print_facts(told)


def _outcome(path: str) -> dict[str, Any]:
    """What has become of it, when it is over."""
    latest = time.monotonic() + PATIENCE_S
    while time.monotonic() < latest:
        told: dict[str, Any] = client.ask(path, {"do": "status"})["status"]["worker"]["replacement"]
        if told["state"] != "starting":
            return told
        time.sleep(_LOOK_EVERY_S)
    raise Trouble("the new worker does not come", f"it has not loaded its code in {PATIENCE_S} s", "see the log", TIMED_OUT)
