"""`krononat config`: before, while and instead of running."""

from __future__ import annotations

import json
from pathlib import Path

import click

from krononat import client
from krononat import config as configuration
from krononat.cli.groups import Group
from krononat.cli.output import output_option, print_changes, print_json, socket_option

FILE = click.Path(path_type=Path)


@click.group(cls=Group)
def config() -> None:
    """Check, show, explain or begin a configuration."""


@config.command(epilog="Example: krononat config check /etc/krononat/nat1.toml")
@click.argument("file", type=FILE)
@click.option("-q", "--quiet", is_flag=True, help="Do not print the canonical form.")
@output_option()
def check(file: Path, quiet: bool, form: str) -> None:
    """Print the canonical form of FILE, defaults filled in; or what is wrong with it, and exit with 78.

    Doubts (accepted, but likely not meant) go to stderr as warnings.
    """
    read = configuration.load(file)
    for doubt in configuration.warnings(read, file.read_text(), str(file)):
        click.echo(f"warning: {doubt}", err=True)
    if not quiet:
        _print(read, form)


@config.command(epilog="Example: krononat config show")
@click.argument("file", type=FILE, required=False)
@output_option()
@socket_option
def show(file: Path | None, form: str, socket: str | None) -> None:
    """Print the running appliance's configuration, or FILE's, in canonical form."""
    if file:
        _print(configuration.load(file), form)
        return
    answer = client.ask(client.find_socket(socket), {"do": "config"})
    _print(configuration.read(answer["config"], "running configuration"), form)


@config.command(epilog="Example: krononat config apply --dry-run /etc/krononat/nat1.toml")
@click.argument("file", type=FILE)
@click.option("-n", "--dry-run", is_flag=True, help="Only say what would change.")
@output_option()
@socket_option
def apply(file: Path, dry_run: bool, form: str, socket: str | None) -> None:
    """Have the running appliance go by FILE from now on: rules, bypasses, pinholes, timers, addresses of pools.

    Live sessions are judged by the new rules with their next packet. What needs a restart is named, and then nothing changes.
    """
    read = configuration.load(file)
    request = {"do": "apply", "config": configuration.canonical(read), "dry": dry_run}
    answer = client.ask(client.find_socket(socket), request)
    print_changes(answer, form)


@config.command(epilog="Example: krononat config init > nat1.toml && krononat config check nat1.toml")
def init() -> None:
    """Print a commented starter file that passes `check`."""
    from krononat.starter import STARTER

    click.echo(STARTER, nl=False)


@config.command(epilog="Example: krononat config schema > krononat.schema.json")
def schema() -> None:
    """Print the JSON schema, for editors."""
    click.echo(json.dumps(configuration.Config.model_json_schema(by_alias=True), indent=2))


@config.command(epilog="Example: krononat config explain pool.block-size")
@click.argument("key", required=False, default="")
@output_option()
def explain(key: str, form: str) -> None:
    """Say what KEY (or a table, or without KEY the whole file) is for."""
    path = tuple(key.split(".")) if key else ()
    told, below = configuration.describe(path), configuration.keys_at(path)
    if path and not told:
        known = ", ".join(configuration.keys_at(path[:-1])) or "none"
        raise client.Trouble(f"there is no key {key!r}", f"known there: {known}", "krononat config explain", client.NOT_FOUND)
    entries = {".".join((*path, name)): configuration.describe((*path, name)) for name in below}
    if form == "json":
        print_json({key or "config": told, **entries})
        return
    click.echo(f"{key or 'the configuration'}: {told}")
    width = max(map(len, entries), default=0)
    for name, sentence in entries.items():
        click.echo(f"  {name.ljust(width)}  {sentence}")


def _print(read: configuration.Config, form: str) -> None:
    if form == "json":
        print_json(read.model_dump(mode="json", by_alias=True, exclude_none=True))
    else:
        click.echo(configuration.canonical(read), nl=False)
