"""`krononat speaker`: the sessions of all cores of a server, held by one process."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import click

from krononat import promptness, speaking
from krononat.cli.groups import Group
from krononat.config import load
from krononat.control import lock
from routing.speaker.sessions import Plan


@click.group(cls=Group)
def speaker() -> None:
    """Tell the network the routes of this server's cores."""


@speaker.command(epilog="Example: krononat speaker run /etc/krononat/s1-0.toml /etc/krononat/s1-1.toml")
@click.argument("configs", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--print", "printed", is_flag=True, help="Print ExaBGP's configuration, and start nothing.")
def run(configs: tuple[Path, ...], printed: bool) -> None:
    """Hold the sessions of the cores of these configurations, until SIGTERM.

    A core that is silent has its routes withdrawn; ExaBGP is started anew when it dies, and told everything again.
    """
    read = [load(path) for path in configs]
    if printed:
        return _print(speaking.plan(read, "MEMORY"))
    from routing.speaker.keeper import Keeper

    promptness.ask_for()
    plan = speaking.plan(read, "")
    folder = Path(plan.socket + ".d")  # survives a speaker that is killed: the next one goes on with what was said
    plan = plan._replace(memory=f"{folder}/said.json")
    with lock(plan.socket, "the speaker of this server", "stop it first; one speaker holds the sessions of all cores"):
        folder.mkdir(mode=0o700, exist_ok=True)
        keeper = Keeper(plan, folder, os.environ, _say)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: keeper.stop())
        keeper.run()
        shutil.rmtree(folder)
        Path(plan.socket).unlink(missing_ok=True)


def _print(plan: Plan) -> None:
    from routing.speaker import exabgp

    click.echo(exabgp.configuration(plan, ("HELPER",)), nl=False)


def _say(line: str) -> None:
    print(f"krononat speaker: {line}", file=sys.stderr, flush=True)
