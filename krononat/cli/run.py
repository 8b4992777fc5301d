"""`krononat run`: the appliance in the foreground, as systemd calls it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from krononat import config as configuration


@click.command(epilog="Example: krononat run -c /etc/krononat/nat1.toml")
@click.option("-c", "--config", "path", type=click.Path(path_type=Path), required=True, help="Configuration (TOML).")
def run(path: Path) -> None:
    """Run the appliance in the foreground until SIGTERM or Ctrl-C, and take back whatever it set up.

    A wrong configuration starts nothing and exits with 78.
    """
    config = configuration.load(path)
    for doubt in configuration.warnings(config, path.read_text(), str(path)):
        click.echo(f"warning: {doubt}", err=True)
    environment = dict(os.environ)
    # Nothing there calls compiled code, so the compiler need not be loaded (see shards.jit); the worker loads it.
    os.environ["NUMBA_DISABLE_JIT"] = "1"
    from krononat import supervisor

    sys.exit(supervisor.run(config, path, environment))
