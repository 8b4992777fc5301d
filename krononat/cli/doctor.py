"""`krononat doctor`: what is wrong with this machine, before anything runs on it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from krononat.cli.output import output_option, print_json, print_table


@click.command(epilog="Example: krononat doctor -c /etc/krononat/nat1.toml")
@click.option("-c", "--config", "path", type=click.Path(path_type=Path), help="Also check what this configuration needs.")
@output_option()
def doctor(path: Path | None, form: str) -> None:
    """Check whether this machine can run the appliance: measured, needed, and how to fix it. Exits with 1 after a FAIL."""
    os.environ["NUMBA_DISABLE_JIT"] = "1"  # only asks where the compiler's cache is
    from krononat import config as configuration
    from krononat import doctor as examination

    findings = examination.examine(examination.Machine(config=configuration.load(path) if path else None))
    if form == "json":
        print_json([finding._asdict() for finding in findings])
    else:
        print_table([finding._asdict() for finding in findings], ("result", "id", "measured", "needed", "fix"))
    sys.exit(1 if any(finding.result == examination.FAIL for finding in findings) else 0)
