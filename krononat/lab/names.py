"""The option that names a laboratory."""

from __future__ import annotations

import re

import click

from krononat.lab.laboratory import NAME


def _checked(_: click.Context, __: click.Parameter, name: str) -> str:
    """The name becomes part of namespaces, files and folders that are deleted again."""
    if not re.fullmatch(NAME, name):
        raise click.BadParameter(f"{name!r} is no name for a laboratory: a small letter, then at most nine of a-z 0-9 -")
    return name


name_option = click.option(
    "--name", default="kn", show_default=True, metavar="WORD", callback=_checked, help="Prefix of the namespaces' names."
)
